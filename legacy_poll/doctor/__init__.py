"""What stands between a client and the server, found out by holding polls through it; see docs/operations.md.

Knows the wire as any client does, and the programs that are usually in between. Needs neither our database nor our
settings, so it may run on any machine. Prints nothing: `legacy-poll doctor` does.
"""

from __future__ import annotations

from .examination import Examination
from .findings import FINE, NOTE, WRONG, Finding, Report
from .question import Target

__all__ = ["FINE", "NOTE", "WRONG", "Examination", "Finding", "Report", "Target"]
