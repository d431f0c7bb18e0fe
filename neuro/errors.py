"""The errors that are told in one line, without a traceback."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 2000  # characters of a line that is told
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def legible(text: str) -> str:
    """Return a message as a terminal and a log can show it.

    A name in a file of somebody else's may hold signs that move the cursor, or a million letters.
    """
    shown = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
    lines = (
        line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 3 :]}"
        for line in shown.split("\n")
    )
    return "\n".join(lines)


class InputError(ValueError):
    """The user's input or configuration is wrong.

    The message says what is wrong, the rule, what was got and the cure. The commands print it as
    one line and leave with exit status 2.
    """

    def __str__(self) -> str:
        return legible(super().__str__())


class FailedRun(RuntimeError):
    """A run went wrong in a way that one line tells, and no input is known to be wrong.

    The message says where it was and how to go on. The commands print it as one line and leave
    with exit status 1.
    """


class ScanError(InputError):
    """One scan cannot be used.

    Args:
        path: The file.
        step: Where on the road it failed: ``find``, ``read``, ``geometry`` or ``recipe``.
        reason: What is wrong and what was got.
        cure: What the user can do about it.
    """

    def __init__(self, path: Path | str, step: str, reason: str, cure: str) -> None:
        self.path = Path(path)
        self.step = step
        self.reason = reason
        self.cure = cure
        super().__init__(f"{self.path}: {step}: {reason} {cure}")

    def __reduce__(self) -> tuple[type, tuple[Path, str, str, str]]:
        return type(self), (self.path, self.step, self.reason, self.cure)


class NotAScan(ScanError):
    """Something that lies among scans and was never meant to be one: a screen save, a localizer.

    It is named like any other failure, and does not count against ``data.max_failed``: every export
    from an archive has some.
    """
