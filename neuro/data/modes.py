"""Which recipe a series gets: by its name, by what its files say, or by default."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from neuro.data.ids import check_texts
from neuro.errors import InputError, ScanError

log = logging.getLogger(__name__)

OF_DICOM = {"MR": "mri", "CT": "ct"}
LEFT_OUT = "none"
HOW = (
    "'data.mode_mapping={*/localizer*: none, ct-*: ct}', or, whatever signs a pattern holds, "
    "'data.mode_mapping=[\"*/[ab]-*: ct\"]'"
)


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Which recipe a series gets.

    Args:
        mapping: Names, or patterns with ``*``, ``?`` and ``[ab]``, to a modality, or to ``none``,
            which leaves the series out. They are compared with ``study`` and ``study/series``;
            the first that fits counts. As a mapping, or as a list of ``"PATTERN: MODALITY"``,
            which a command line can carry whatever the pattern holds.
        default: Where no pattern fits and neither DICOM nor a side-car says what it is; None makes
            such a series a failure.

    Raises:
        InputError: The mapping is neither.
    """

    mapping: Any = None
    default: str | None = None
    _patterns: dict[str, str] = field(init=False, repr=False)
    _used: set[str] = field(init=False, repr=False, compare=False, default_factory=set)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patterns", dict(_pairs(self.mapping)))

    def of(self, study: str, series: str, said: str) -> str | None:
        """Return the modality of a series, or ``none``; None where nothing tells.

        Args:
            study: Its study.
            series: Its name in the study.
            said: What DICOM or a side-car says, ``MR`` for example; may be empty.
        """
        mapped = self.mapped(study, series)
        if mapped is not None:
            return mapped
        return OF_DICOM.get(said.upper()) if said else self.default or None

    def mapped(self, study: str, series: str) -> str | None:
        """Return what the mapping says of a series; None where no pattern fits."""
        for pattern, modality in self._patterns.items():
            for name in (study, f"{study}/{series}"):
                if name == pattern or fnmatchcase(name, pattern):
                    self._used.add(pattern)
                    return modality
        return None

    def warn_of_unused(self, study: str) -> None:
        """Say which patterns have decided about no series so far.

        Args:
            study: The name of one, to show what patterns are compared with.
        """
        unused = [pattern for pattern in self._patterns if pattern not in self._used]
        if unused:
            log.warning(
                "data.mode_mapping: %s fits no series, or another pattern before it does; patterns "
                "are compared with STUDY and STUDY/SERIES, and there is for example the study %r",
                ", ".join(map(repr, unused)),
                study,
            )


def unknown_modality(path: Path, study: str, series: str, said: str) -> ScanError:
    """Return the failure of a series that :meth:`Modes.of` knows nothing about."""
    pattern = f"{glob.escape(study)}/*"
    if said:
        reason = f"series {series!r} is {said}, which has no recipe."
        cure = f"Add 'data.mode_mapping=[\"{pattern}: none\"]' to leave it out, or a modality."
        return ScanError(path, "find", reason, cure)
    reason = f"series {series!r} is of unknown modality, which has no recipe."
    cure = f"Add data.default_mode=mri (or ct, T1) or 'data.mode_mapping=[\"{pattern}: mri\"]'."
    return ScanError(path, "find", reason, cure)


def _pairs(mapping: Any) -> Iterator[tuple[str, str]]:
    """Yield patterns and modalities, in their order."""
    if mapping is None:
        return
    if isinstance(mapping, str) or not isinstance(mapping, Mapping | Sequence):
        raise InputError(
            f"data.mode_mapping takes patterns with a modality each; got {mapping!r}. Write {HOW}."
        )
    if isinstance(mapping, Mapping):
        check_texts(mapping, "'data.mode_mapping=[\"2020_01: ct\"]'", "data.mode_mapping")
        pairs = [(pattern, LEFT_OUT if mode is None else mode) for pattern, mode in mapping.items()]
    else:
        pairs = [_pair(entry) for entry in mapping]
    for pattern, mode in pairs:
        if not (pattern and isinstance(mode, str) and mode):
            raise InputError(
                f"data.mode_mapping: {pattern!r} must have a modality, or none; got {mode!r}. "
                f"Write {HOW}."
            )
        yield pattern, mode


def _pair(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, str) or ":" not in entry:
        raise InputError(
            f"data.mode_mapping: an entry of a list is a text, PATTERN: MODALITY; got {entry!r}. "
            f"Write {HOW}."
        )
    pattern, _, mode = entry.rpartition(":")
    return pattern.strip(), mode.strip()
