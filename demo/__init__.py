"""The demo: a shop's order board, served by ``make run``. Start reading at ``app.py``."""
