"""``python -m legacy_poll`` is ``legacy-poll``."""

from .cli import main

main(prog_name="legacy-poll")
