"""What an examination ends with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Tuple

__all__ = ["FINE", "NOTE", "WRONG", "Finding", "Report"]

FINE = "fine"
#: Works, but somebody should know.
NOTE = "note"
#: Polls fail, come late or cost what they need not.
WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: FINE, NOTE or WRONG.
        about: What was looked at, in a word or two; the same for each level.
        what: What was seen, with the figures.
        advice: What to change to what, and where; empty if there is nothing to do.
    """

    level: str
    about: str
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """All findings, in the order of the examination.

    Attributes:
        url: The prefix that was examined, behind all redirects.
        programs: Names of what showed itself on the way, nearest first; never complete.
    """

    url: str
    programs: Tuple[str, ...]
    findings: Tuple[Finding, ...]

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.level != WRONG for finding in self.findings)

    def as_dict(self) -> Dict[str, Any]:
        """For JSON."""
        return {
            "url": self.url,
            "fine": self.fine,
            "programs": list(self.programs),
            "findings": [dict(vars(finding)) for finding in self.findings],
        }
