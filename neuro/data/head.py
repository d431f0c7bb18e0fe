"""A head painted from ellipsoids in its own frame, seen through its scale and pose.

Axes are RAS in millimetres (x: left to right, y: back to front, z: bottom to top); left is
negative x. A shape is the depth of each point below its surface: the shallowest of several depths
is what the shapes have in common, and the painted edges are as soft as the voxels are large.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np
from jaxtyping import Float32, Int
from numpy import ndarray
from numpy.random import Generator

Shape = tuple[int, int, int]
Triple = Sequence[float | int] | ndarray
FIELD_OF_VIEW_MM = 192.0  # what the largest head needs in its worst pose

_LOOKS = {  # intensity of each tissue in T1, as FA and in BOLD
    "fat": (0.85, 0.00, 0.10),
    "muscle": (0.42, 0.00, 0.12),
    "bone": (0.10, 0.00, 0.03),
    "air": (0.02, 0.00, 0.02),
    "marrow": (0.62, 0.00, 0.08),
    "eye": (0.20, 0.00, 0.50),
    "csf": (0.17, 0.04, 1.00),
    "grey": (0.50, 0.13, 0.80),
    "nucleus": (0.58, 0.22, 0.70),
    "white": (0.82, 0.45, 0.60),
    "bundle": (0.86, 0.72, 0.60),
}
T1_LOOK, FA_LOOK, BOLD_LOOK = (
    dict(zip(_LOOKS, look, strict=True)) for look in zip(*_LOOKS.values(), strict=True)
)
BRAIN: dict[str, float] = dict.fromkeys(("csf", "grey", "nucleus", "white", "bundle"), 1.0)

# Ellipsoids as (tissue, centre, radii) in mm, in the order of painting; x is |x|, so each has a
# mirror image.
_FACE = (
    ("fat", (0, 30, -38), (50, 44, 42)),
    ("fat", (0, 70, -34), (10, 9, 15)),  # nose
    ("muscle", (0, 26, -38), (45, 42, 39)),
    ("fat", (0, -22, -60), (41, 40, 50)),  # neck
    ("muscle", (0, -22, -60), (36, 35, 46)),
    ("marrow", (0, -12, -74), (13, 12, 30)),  # spine
    ("air", (0, 14, -62), (7, 5, 22)),
    ("air", (5, 48, -38), (3, 20, 12)),
    ("air", (25, 46, -42), (8, 10, 9)),
    ("bone", (0, 42, -56), (28, 26, 4)),  # palate
    ("marrow", (34, 24, -64), (5, 26, 9)),  # jaw
)
_ORBITS = (("fat", (26, 48, -27), (15, 18, 12)), ("eye", (27, 54, -27), (10, 10, 10)))
_DEEP = (
    ("csf", (0, 6, -16), (15, 15, 9)),
    ("nucleus", (11, -12, 9), (9, 14, 9)),  # thalamus
    ("nucleus", (26, 6, 8), (6, 18, 11)),  # putamen
    ("nucleus", (14, 22, 16), (5, 10, 8)),  # caudate
    ("bundle", (19, -13, 2), (4, 7, 36)),  # corticospinal tract
)
_VENTRICLES = (
    ("csf", (8, 14, 20), (5, 19, 7)),
    ("csf", (12, -12, 24), (6, 22, 5)),
    ("csf", (21, -33, 13), (6, 15, 8)),
    ("csf", (34, -8, -10), (3, 14, 4)),
    ("csf", (0, -6, 6), (1.5, 13, 9)),
)
_BRAINSTEM = (
    ("csf", (0, -27, -25), (5, 5, 8)),
    ("white", (0, -13, -12), (10, 10, 12)),
    ("white", (0, -12, -25), (13, 12, 12)),  # pons
    ("white", (0, -17, -50), (7, 7, 26)),
)


class Scene:
    """A head as the scanner sees it: where each voxel lies in it, and what the voxel is made of.

    Args:
        sex: ``M`` or ``F``.
        age: Years, 20 to 80.
        body: Draws what is the same in all images of the subject.
        view: Draws the pose; it becomes ``rng``.
        shape: Voxels of the volume.
        spacing_mm: Edge of its cubic voxels.

    Attributes:
        lesion_mm: Where a lesion would be, in the right hemisphere.
        microlesion_mm: Where a microlesion would be; it is at the other end of the brain.
        rng: For whatever else is drawn for this image.
        voxels: Index, in the flattened volume, of the voxels that the head reaches.
        points: Where these voxels lie in the head's frame.
    """

    lesion_mm: Triple
    microlesion_mm: Triple
    rng: Generator
    voxels: Int[ndarray, " voxels"]
    points: Float32[ndarray, "3 voxels"]

    def __init__(
        self,
        sex: str,
        age: int,
        body: Generator,
        view: Generator,
        shape: Shape,
        spacing_mm: float,
    ) -> None:
        scale = 0.97 if sex == "M" else 0.97 / 1.15
        scale *= 1 + 0.025 * np.clip(body.normal(), -2.5, 2.5)
        aging = (age - 20) / 60 + 0.1 * float(np.clip(body.normal(), -2, 2))
        front = body.choice((-1, 1))
        self.lesion_mm = (28, 20 * front, 22) + body.uniform(-1, 1, 3) * (3, 8, 5)
        self.microlesion_mm = (28, -26 * front, 26) + body.uniform(-1, 1, 3) * (10, 10, 12)
        phases = body.uniform(0, 2 * np.pi, (6, 1)).astype(np.float32)
        self.rng = view
        turn = _rotation(view.uniform(-1, 1, 3) * np.radians((8, 5, 8)))
        shift_mm = view.uniform(-1, 1, (3, 1)).astype(np.float32) * 6
        points = (turn.T / scale).astype(np.float32) @ (_grid_mm(shape, spacing_mm) - shift_mm)
        self._edge_mm = float(spacing_mm / scale)  # of a voxel, in the head's frame
        self.voxels = np.flatnonzero(_depth_mm(points, (0, 0, -4), (80, 94, 90)) > -self._edge_mm)
        self.points = np.ascontiguousarray(points[:, self.voxels])
        self._folds = _folds(self.points, phases)
        layers = _layers(self.points, self._folds, aging)
        self._layers = [(tissue, self._share(depth_mm)) for tissue, depth_mm in layers]

    def paint(self, look: dict[str, float]) -> Float32[ndarray, " voxels"]:
        """Paint the layers in order, in the intensities of ``look``; a tissue without one is 0."""
        image = np.zeros(self.voxels.size, np.float32)
        for tissue, share in self._layers:
            image += share * (look.get(tissue, 0) - image)
        return image

    def blob(
        self, centre: Triple, side: str, radii: Triple, *, rough: bool = False
    ) -> Float32[ndarray, " voxels"]:
        """Return the share that an ellipsoid has of each voxel.

        Args:
            centre: In mm, in the right hemisphere.
            side: ``right``, ``left`` for the mirror image, or ``none`` for nothing.
            radii: In mm.
            rough: Whether its surface follows the folds of the cortex.
        """
        if side == "none":
            return np.zeros(self.voxels.size, np.float32)
        x, y, z = centre
        depth_mm = _depth_mm(self.points, (-x if side == "left" else x, y, z), radii)
        return self._share(depth_mm + self._folds if rough else depth_mm)

    def _share(self, depth_mm: Float32[ndarray, " voxels"]) -> Float32[ndarray, " voxels"]:
        return np.clip(depth_mm / self._edge_mm + 0.5, 0, 1)


def _layers(
    points: Float32[ndarray, "3 voxels"], folds: Float32[ndarray, " voxels"], aging: float
) -> list[tuple[str, Float32[ndarray, " voxels"]]]:
    """Return (tissue, depth below its surface in mm), to be painted one over the other."""
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])
    x, y, z = mirrored

    def ellipsoids(table: Sequence[tuple], growth: float = 1.0) -> list[tuple[str, ndarray]]:
        return [
            (tissue, _depth_mm(mirrored, centre, np.multiply(radii, growth)))
            for tissue, centre, radii in table
        ]

    egg = np.stack([x * (1 + 0.0012 * y), y, z])  # a head is narrower in front
    crown = _depth_mm(egg, (0, -4, 16), (70, 82, 62))
    scalp = np.maximum(crown, _depth_mm(egg, (0, -37, -8), (56, 45, 45)))
    floor = -30 + 16 * np.tanh((y - 14) / 12) + np.maximum(0, (14 - x) / 2) * (y > 0)
    cavity = _common(scalp - 12, z - floor)
    tentorium = _common(-5 + 0.25 * (y + 60) - 0.13 * x - z, -10 - y)  # positive below it
    cortex = _common(cavity - 2 - 1.5 * aging, -tentorium - 1)
    inner = _depth_mm(mirrored, (0, -4, 12), (60, 38, 24))  # the hemispheres are joined in here
    sulci = np.hypot(folds * 3.8, np.maximum(0, cortex - 13)) - 0.2 - 0.9 * aging
    fissure = np.hypot(x, np.maximum(0, inner)) - 0.8
    sylvian = np.hypot(z - 0.3 * y, np.maximum(0, np.maximum(36 - x, np.abs(y - 2) - 24))) - 0.8
    grey = _common(cortex, sulci, fissure, sylvian)
    callosum = _common(inner + 1, 6 - inner, 11 - x, z - 14)
    hind = _common(cavity, tentorium)
    cerebellum = _common(hind - 1.5, -18 - y, 46 - x)
    folia = _common(cerebellum - 5, 3 * np.cos(0.5 * (z + 0.5 * y)) + 0.25 * cerebellum)
    return [
        *ellipsoids(_FACE),
        ("fat", _common(scalp, z - floor + 12)),
        ("bone", _common(scalp - 5, z - floor + 6)),
        *ellipsoids(_ORBITS),
        ("csf", cavity),
        ("grey", grey),
        ("white", grey - 3.5),
        *ellipsoids(_DEEP),
        ("bundle", callosum),
        *ellipsoids(_VENTRICLES, 0.75 + 0.75 * aging),
        ("csf", hind),
        ("grey", cerebellum),
        ("white", folia),
        *ellipsoids(_BRAINSTEM),
    ]


def _folds(
    points: Float32[ndarray, "3 voxels"], phases: Float32[ndarray, "6 1"]
) -> Float32[ndarray, " voxels"]:
    """Return a warped gyroid, in [-1.5, 1.5]: its zero surface runs like sulci through a cortex."""
    angles = points * (2 * np.pi / 32) + phases[:3]
    angles += 0.7 * np.sin(points[[1, 2, 0]] * (2 * np.pi / 62) + phases[3:])
    return (np.sin(angles) * np.cos(angles[[1, 2, 0]])).sum(axis=0)


def _common(*depths_mm: Float32[ndarray, " voxels"]) -> Float32[ndarray, " voxels"]:
    """Return how deep points lie in all of several shapes at once."""
    return reduce(np.minimum, depths_mm)


def _depth_mm(
    points: Float32[ndarray, "3 voxels"], centre: Triple, radii: Triple
) -> Float32[ndarray, " voxels"]:
    """Return how deep points lie in an ellipsoid, to first order; negative outside."""
    radii_mm = np.asarray(radii, np.float32)[:, None]
    unit = (points - np.asarray(centre, np.float32)[:, None]) / radii_mm
    radius = np.sqrt((unit * unit).sum(axis=0))
    unit /= radii_mm
    return (1 - radius) * radius / (np.sqrt((unit * unit).sum(axis=0)) + 1e-4)


def _rotation(angles: ndarray) -> ndarray:
    """Return the rotation about x, then y, then z, from angles in radians."""
    (a, b, c), (p, q, r) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -p], [0, p, a]])
    about_y = np.array([[b, 0, q], [0, 1, 0], [-q, 0, b]])
    return np.array([[c, -r, 0], [r, c, 0], [0, 0, 1]]) @ about_y @ about_x


@lru_cache(maxsize=4)
def _grid_mm(shape: Shape, spacing_mm: float) -> Float32[ndarray, "3 voxels"]:
    """Return the RAS position of each voxel; 0 mm is the centre of the volume."""
    index = np.indices(shape, np.float32).reshape(3, -1)
    centre = (np.array(shape, np.float32)[:, None] - 1) / 2
    return (index - centre) * np.float32(spacing_mm)
