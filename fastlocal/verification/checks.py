"""Results of checks and their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 28


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        area: "environment", "kernel" or "module".
        name: Subject of the check.
        fault: The fault in one line, or None.
        detail: Further information.
    """

    area: str
    name: str
    fault: str | None
    detail: str = ""

    def __str__(self) -> str:
        verdict = "ok    " if self.fault is None else "WRONG "
        text = self.detail if self.fault is None else self.fault
        return f"{self.area:<12}{self.name:<{WIDTH}} {verdict} {text}".rstrip()


@dataclass(frozen=True)
class Verification:
    """Results of all checks, in order."""

    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        """Return True if every check holds."""
        return all(check.fault is None for check in self.checks)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.checks), self.summary()])

    def summary(self) -> str:
        """Return the verdict in one line."""
        wrong = [check.name for check in self.checks if check.fault is not None]
        if not wrong:
            return f"All {len(self.checks)} checks hold."
        return f"{len(wrong)} of {len(self.checks)} checks do not hold: {', '.join(wrong)}."
