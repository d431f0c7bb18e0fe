"""A volume as a picture: the three middle slices as a radiologist expects, but left on the left."""

from __future__ import annotations

import base64
import io

import torch
from jaxtyping import Num, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

BACKGROUND = (12, 14, 18)
LETTERS = (148, 163, 184)


def mosaic(
    voxels: Num[Tensor, "depth height width *time"], *, slice_pixels: int = 128
) -> Image.Image:
    """Return axial, coronal and sagittal middle slices side by side.

    The front is at the top of the axial slice, and the left of the head on the left of the
    picture (neurological convention, marked). A run is shown as its mean over time.

    Args:
        voxels: A volume in RAS.
        slice_pixels: Edge of one slice in the picture.
    """
    gray = _gray(voxels.float().mean(dim=-1) if voxels.ndim == 4 else voxels.float())
    depth, height, width = (size // 2 for size in gray.shape)
    slices = (gray[:, :, width], gray[:, height, :], gray[depth, :, :])
    picture = Image.new("RGB", (3 * slice_pixels, slice_pixels), BACKGROUND)
    for place, one in enumerate(slices):
        # The first axis runs to the right of the picture, the second upwards.
        pixels = Image.fromarray(one.T.flip(0).contiguous().numpy(), mode="L")
        scaled = pixels.resize((slice_pixels, slice_pixels), Image.Resampling.BICUBIC)
        picture.paste(scaled.convert("RGB"), (place * slice_pixels, 0))
    draw = ImageDraw.Draw(picture)
    for place, (left, right) in enumerate((("L", "R"), ("L", "R"), ("P", "A"))):
        draw.text((place * slice_pixels + 4, slice_pixels - 14), left, fill=LETTERS)
        draw.text(((place + 1) * slice_pixels - 10, slice_pixels - 14), right, fill=LETTERS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """Return a picture as text that a page can hold."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _gray(
    volume: Num[Tensor, "depth height width"],
) -> UInt8[Tensor, "depth height width"]:
    """Stretch a volume from black to white, leaving out the brightest 0.5 %."""
    low, high = volume.min(), torch.quantile(volume.flatten()[: 2**24], 0.995)
    return ((volume - low) / (high - low).clamp(min=1e-8) * 255).clamp(0, 255).to(torch.uint8)
