"""Augmentation: draw the parameters first, then apply them; only the draw is random.

Space is changed here, on the voxels of one series, where reading less of a cached scan pays off.
Intensities are only drawn here: ``neuro.models.normalize`` changes them on the device.

A caller seeds one generator from (seed, epoch, study, series). Each function takes the same number
of random numbers from it whatever its options are, so that an option that is switched on changes
nothing but what it is about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from neuro.errors import InputError

CROP_TRIES = 5
Extent = tuple[int, int]

_SHARES = (  # arguments in [0, 1]
    "crop_probability",
    "min_crop_foreground",
    "flip_left_right",
    "flip_front_back",
    "flip_up_down",
    "transpose_probability",
    "contrast",
    "brightness",
)
_AMOUNTS = ("gamma", "noise")  # arguments that are finite and not negative


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is done to one series. The default changes nothing.

    Attributes:
        crop: First token and the one after the last along depth, height and width; None for the
            whole volume.
        flips: Whether the tensor's depth, height and width are turned round, after the crop.
        transpose: Whether height and width are exchanged, after the flips.
        intensity: Gamma, gain and offset for intensities in [0, 1], and the standard deviation of
            the noise that is added once they are standardized.
        seed: Of the noise; 0 where there is none.
    """

    crop: tuple[Extent, Extent, Extent] | None = None
    flips: tuple[bool, bool, bool] = (False, False, False)
    transpose: bool = False
    intensity: tuple[float, float, float, float] = (1.0, 1.0, 0.0, 0.0)
    seed: int = 0

    def apply(
        self,
        voxels: Shaped[Tensor, "depth height width *time"],
        shares: UInt8[Tensor, "grid_depth grid_height grid_width *grid_time"],
        patch: Sequence[int],
    ) -> tuple[
        Shaped[Tensor, "new_depth new_height new_width *time"],
        UInt8[Tensor, "new_grid_depth new_grid_height new_grid_width *grid_time"],
    ]:
        """Crop, flip and transpose the voxels and the foreground shares of their tokens.

        Whole tokens are moved, so that shares stay exact; what is in a token is mirrored too. The
        grid may change: coordinates belong to the content if they are computed from the new one,
        and count from the corner of a crop. Only a flip copies; the rest are views.
        """
        if self.crop is not None:
            shares = shares[tuple(slice(start, stop) for start, stop in self.crop)]
            extents = zip(self.crop, patch[:3], strict=True)
            voxels = voxels[
                tuple(slice(start * edge, stop * edge) for (start, stop), edge in extents)
            ]
        turned = [axis for axis, flip in enumerate(self.flips) if flip]
        if turned:
            voxels, shares = voxels.flip(turned), shares.flip(turned)
        if self.transpose:
            voxels, shares = voxels.transpose(1, 2), shares.transpose(1, 2)
        return voxels, shares


IDENTITY = Draw()  # for evaluation


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What may be done to a series in training. Everything is off by default.

    Flips are named by anatomy, since the axis that runs from left to right depends on how a scan
    was sliced.

    Args:
        crop_probability: How often a block of whole tokens is taken instead of the volume.
        max_crop: Tokens that a crop has at most along depth, height and width; its extents are
            uniform from 1 up to these or to the volume's own, its position is uniform.
        min_crop_foreground: Share of a crop's tokens that must be foreground, one token at least.
            After five tries the volume stays whole.
        flip_left_right: How often left and right are exchanged. Leave it 0 where an answer or a
            label names a side.
        flip_front_back: How often front and back are exchanged.
        flip_up_down: How often head and neck are exchanged.
        transpose_probability: How often the two axes within a slice are exchanged, where the
            patch has the same edge along both. This shows the head turned and mirrored, so it is
            not for answers that name a side either, nor for embedders with one position per
            place of a grid whose sides differ.
        gamma: Intensities in [0, 1] are raised to a power from 1 / (1 + gamma) to 1 + gamma, as
            often above 1 as below.
        contrast: They are multiplied by 1 plus or minus up to this.
        brightness: Plus or minus up to this is added.
        noise: Gaussian noise with a standard deviation of up to this is added to standardized
            intensities.

    Raises:
        InputError: An argument is out of range: probabilities, shares, ``contrast`` and
            ``brightness`` lie in [0, 1], ``gamma`` and ``noise`` are finite and not negative.
    """

    crop_probability: float = 0.0
    max_crop: Sequence[int] = (20, 20, 20)
    min_crop_foreground: float = 0.1
    flip_left_right: float = 0.0
    flip_front_back: float = 0.0
    flip_up_down: float = 0.0
    transpose_probability: float = 0.0
    gamma: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_crop", tuple(self.max_crop))
        for name in (*_SHARES, *_AMOUNTS):
            value, is_share = getattr(self, name), name in _SHARES
            if not (0 <= value <= 1 if is_share else 0 <= value < math.inf):
                rule = "lie in [0, 1]" if is_share else "be finite and not negative"
                raise InputError(f"data.augment.{name} must {rule}; got {value}. 0 is off.")
        if len(self.max_crop) != 3 or min(self.max_crop) < 1:
            raise InputError(
                f"data.augment.max_crop takes three numbers of tokens, 1 or more, for depth, "
                f"height and width; got {list(self.max_crop)}. Large numbers set no limit."
            )

    def draw(
        self,
        generator: torch.Generator,
        *,
        shares: UInt8[Tensor, "depth height width *time"],
        axes: Sequence[int],
        patch: Sequence[int],
        min_foreground: float,
    ) -> Draw:
        """Draw what is done to one series.

        Takes 39 uniform numbers and one integer from the generator, whatever is switched on and
        however many tries a crop takes.

        Args:
            generator: Seeded for this epoch and series.
            shares: Foreground in each token, on the series' grid; 255 is all of it.
            axes: The tensor's axis that runs from left to right, the one from back to front and the
                one from bottom to top.
            patch: Voxels along each axis of a token.
            min_foreground: Share of foreground, in [0, 1], that makes a token foreground: the one
                by which the collator keeps tokens. A token without any never is.
        """
        tries = torch.rand(CROP_TRIES, 6, generator=generator, dtype=torch.float64).tolist()
        crop, right, front, top, transpose, gamma, gain, offset, noise = torch.rand(
            9, generator=generator, dtype=torch.float64
        ).tolist()
        seed = int(torch.randint(1 << 62, (), generator=generator))
        foreground = shares >= max(1, min_foreground * 255)
        flips = {
            axes[0]: right < self.flip_left_right,
            axes[1]: front < self.flip_front_back,
            axes[2]: top < self.flip_up_down,
        }
        noise_std = noise * self.noise
        return Draw(
            crop=self._crop(tries, foreground) if crop < self.crop_probability else None,
            flips=(flips[0], flips[1], flips[2]),
            transpose=transpose < self.transpose_probability and patch[1] == patch[2],
            intensity=(
                (1 + self.gamma) ** _swing(gamma),
                1 + self.contrast * _swing(gain),
                self.brightness * _swing(offset),
                noise_std,
            ),
            seed=seed if noise_std > 0 else 0,
        )

    def _crop(
        self,
        tries: Sequence[Sequence[float]],
        foreground: Bool[Tensor, "depth height width *time"],
    ) -> tuple[Extent, Extent, Extent] | None:
        """Return the first block with enough foreground; None if no try has it."""
        for numbers in tries:
            depth, height, width = map(
                _extent, numbers[:3], numbers[3:], foreground.shape, self.max_crop
            )
            block = foreground[slice(*depth), slice(*height), slice(*width)]
            if int(block.sum()) >= max(1, self.min_crop_foreground * block.numel()):
                return depth, height, width
        return None


def _extent(length: float, place: float, size: int, largest: int) -> Extent:
    """Turn two numbers in [0, 1) into a stretch of 1 to ``largest`` of ``size`` tokens."""
    extent = 1 + int(length * min(largest, size))
    start = int(place * (size - extent + 1))
    return start, start + extent


def _swing(number: float) -> float:
    """Turn a number in [0, 1) into one in [-1, 1)."""
    return 2 * number - 1


def check_window_probabilities(probabilities: Mapping[str, float]) -> None:
    """Check, once, what ``draw_window`` will be given.

    Raises:
        InputError: A number is negative or not finite, or no window can be drawn.
    """
    if not all(0 <= number < math.inf for number in probabilities.values()) or not any(
        probabilities.values()
    ):
        raise InputError(
            f"window_probabilities takes a number that is finite and not negative for each CT "
            f"window, one of them above 0; got {_spelled(probabilities)}. "
            f"For example {{brain: 0.7, blood: 0.15, bone: 0.15}}."
        )


def draw_window(
    generator: torch.Generator, names: Sequence[str], probabilities: Mapping[str, float]
) -> str:
    """Draw the CT window that training shows of a series; takes one number from the generator.

    Args:
        generator: Seeded for this epoch and series.
        names: The windows that the series has.
        probabilities: How often each window is shown, in proportion to the others that exist; a
            window without a number is not. ``check_window_probabilities`` has passed them.

    Raises:
        InputError: None of the windows has a probability.
    """
    number = float(torch.rand((), generator=generator, dtype=torch.float64))
    bounds = list(accumulate(probabilities.get(name, 0.0) for name in names))
    if not any(bounds):
        raise InputError(
            f"a series has the windows {', '.join(names)}, and none of them can be drawn: "
            f"window_probabilities is {_spelled(probabilities)}. Give one of them a number above 0."
        )
    return next(
        name for name, bound in zip(names, bounds, strict=True) if number * bounds[-1] < bound
    )


def _spelled(probabilities: Mapping[str, float]) -> str:
    return "{" + ", ".join(f"{name}: {number}" for name, number in probabilities.items()) + "}"
