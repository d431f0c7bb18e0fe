"""The errors that a user can cause and cure: one line, without a traceback."""

from __future__ import annotations

from pathlib import Path


class InputError(ValueError):
    """The user's input or configuration is wrong.

    The message says what is wrong, the rule, what was got and the cure. The commands print it as
    one line and leave with exit status 2.
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
