"""Where links may lead: the one rule that keeps the scans of a cohort in its folder.

Git-annex and DataLad keep a scan as a link into ``.git`` of its data set, which is always allowed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from neuro.data.columns import first_row, mask_of
from neuro.data.frames import FIRST
from neuro.data.ids import Given, texts
from neuro.data.leaks import resolved
from neuro.data.manifest import Manifest
from neuro.errors import InputError

ONE_FILE = r"(?i)\.(nii|hdr|img)(\.gz)?$"
pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them


def rooted(
    manifest: Manifest, root: Path | str, linked_roots: Sequence[Given] | Given | None
) -> Manifest:
    """Return a manifest, all of whose files really are where they may be.

    Args:
        manifest: What a source found below its root.
        root: ``data.root``.
        linked_roots: ``data.linked_roots``: further folders that links may lead to, such as a store
            that several data sets share.

    Raises:
        InputError: A path is, or passes, a link that leads anywhere else.
    """
    files = manifest.series["files"].combine_chunks()
    scans = manifest.series["path"].combine_chunks()
    # Of a run that is a folder of frames, the first one stands for all.
    is_listed = pc.greater(pc.fill_null(pc.list_value_length(files), 0), 0)
    is_folder = pc.invert(pc.or_(is_listed, pc.match_substring_regex(scans, ONE_FILE)))
    first, sep = (pa.scalar(text, pa.large_string()) for text in (FIRST, os.sep))
    frames = pc.binary_join_element_wise(scans.filter(is_folder), first, sep)
    paths = pa.chunked_array([scans, files.flatten(), frames], pa.large_string())
    real = resolved(paths)
    allowed = pa.repeat(pa.scalar(False), len(real))
    for folder in _folders(root, texts(linked_roots, "data.linked_roots")):
        allowed = pc.or_(allowed, pc.starts_with(real, folder.rstrip(os.sep) + os.sep))
        allowed = pc.or_(allowed, pc.equal(real, folder))  # one folder of DICOM is all there is
    row = first_row(mask_of(pc.invert(allowed)))
    if row is not None:
        where = real[row].as_py()
        raise InputError(
            f"{paths[row].as_py()} is really {where}, and that is outside of data.root={root}. If "
            f"links of this data set may lead there, name the folder: "
            f"'data.linked_roots=[\"{os.path.dirname(where)}\"]'"
        )
    return manifest


def _folders(root: Path | str, linked_roots: Sequence[str]) -> list[str]:
    """Return the real folders that hold what may be read."""
    top = Path(os.path.realpath(root))
    dataset = next((one for one in (top, *top.parents) if (one / ".git").exists()), top)
    return [os.path.realpath(one) for one in (top, dataset / ".git", *linked_roots)]
