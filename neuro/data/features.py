"""What a frozen encoder makes of each study, kept on disk so that it is computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuro.data.batch import StudyBatch
from neuro.data.lock import locked
from neuro.data.whole_file import make_folder, whole

FEATURES = "features"  # the kind of a volume whose tokens are features already


class FeatureFolder:
    """A file for each study: the features of its tokens, without those of background.

    Half precision: a study takes as many bytes as its features have numbers, times two.

    Args:
        root: The folder of the cache.
        stamp: Names the encoder, down to its weights, and what it is shown; another stamp, another
            folder.
    """

    def __init__(self, root: Path, stamp: str) -> None:
        self.folder = Path(root) / f"features-{hashlib.sha256(stamp.encode()).hexdigest()[:12]}"

    def holds(self, study: str, images: str) -> bool:
        """Return whether there are features of a study, of exactly these images.

        Args:
            study: Its id.
            images: Names what its images are, down to their voxels.
        """
        try:
            with safe_open(self._path(study), framework="pt") as file:
                return file.metadata().get("images") == images
        except (OSError, SafetensorError):
            return False

    def write(self, batch: StudyBatch, features: Tensor, images: Mapping[str, str]) -> None:
        """Keep the features of a batch of whole studies, each in one move.

        Args:
            batch: The studies.
            features: Of each of their tokens.
            images: Names what the images of each study are.
        """
        make_folder(self.folder)
        volumes, owned = batch.volumes, batch.study_bounds.tolist()
        names = list(batch.series_names)
        for place, study in enumerate(batch.study_ids):
            first, last = owned[place], owned[place + 1]
            bounds = volumes.bounds[first : last + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            tensors = {
                "features": features[start:stop].half().cpu().contiguous(),
                "coords": volumes.coords[start:stop].short().cpu().contiguous(),
                "bounds": (bounds - start).cpu(),
                "sizes": volumes.sizes[first:last].cpu().contiguous(),
            }
            metadata = {"images": images[study], "names": json.dumps(names[first:last])}
            path = self._path(study)
            with locked(self.folder, path.name), whole(path) as temporary:
                save_file(tensors, temporary, metadata)

    def read(
        self, study: str, index: int
    ) -> tuple[Float[Tensor, "tokens dim"], Int[Tensor, "tokens axes"], tuple[int, ...], str]:
        """Return the features of a study's volume, their coordinates, its grid and its name."""
        with safe_open(self._path(study), framework="pt") as file:
            start, stop = file.get_tensor("bounds")[index : index + 2].tolist()
            features = file.get_slice("features")[start:stop]
            coords = file.get_slice("coords")[start:stop].int()
            size = tuple(file.get_tensor("sizes")[index].tolist())
            return features, coords, size, json.loads(file.metadata()["names"])[index]

    def _path(self, study: str) -> Path:
        return self.folder / f"{hashlib.sha256(study.encode()).hexdigest()[:24]}.safetensors"


def weights_stamp(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """Return a name for exactly these tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        raw = tensor.detach().cpu().contiguous()
        digest.update(raw.view(torch.uint8).numpy().tobytes() if raw.ndim else str(raw).encode())
    return digest.hexdigest()
