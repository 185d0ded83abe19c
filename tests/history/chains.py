"""What one reader got, along the cursors that it adopted."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.history import Answer, Reader


@dataclass
class Chain:
    """What *reader* got from one start on. `marks` has the chain's length at each cursor adopted."""

    reader: Reader
    start: Answer | None
    complete: bool = False
    rows: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    marks: dict[str | None, int] = field(default_factory=dict)
    branches: list[tuple[str | None, int, list[int]]] = field(default_factory=list)

    def adopt(self, answer: Answer, mark: int, rows: list[int]) -> None:
        if mark < len(self.rows):
            cut = self.rows[mark:]
            self.branches.append((answer.request_cursor, mark, cut))
            del self.rows[mark:]
            for row in cut:
                del self.place[row]
            self.marks = {cursor: length for cursor, length in self.marks.items() if length <= mark}
        for row in rows:
            self.place[row] = len(self.rows)
            self.rows.append(row)
        self.marks[answer.cursor] = len(self.rows)
