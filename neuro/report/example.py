"""Training examples as a page: what is seen, what is read and what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import torch
from jaxtyping import Bool, Int, Num
from jinja2 import Environment, PackageLoader
from PIL import Image
from torch import Tensor

from neuro.data.text import IGNORE
from neuro.report.mosaic import data_uri, mosaic

READ, LEARNED, IMAGE, PADDING = "read", "learned", "image", "padding"
DIMMED = 0.35  # how bright what is not kept is drawn


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image of an example.

    Attributes:
        modality: Its modality.
        name: What it is called in its study.
        grid: Its tokens along each axis.
        num_kept: How many of them enter the model.
        num_slots: Image ids that stand for it in the text.
        num_features: What the model makes of it.
        draw: What was drawn for it, in words.
        picture: Its slices.
    """

    modality: str
    name: str
    grid: tuple[int, ...]
    num_kept: int
    num_slots: int
    num_features: int
    draw: str
    picture: Image.Image

    @property
    def fits(self) -> bool:
        """Whether each feature has its slot."""
        return self.num_slots == self.num_features


@dataclass(frozen=True, kw_only=True)
class Part:
    """Positions of a text that follow one another and are treated alike.

    Attributes:
        kind: ``read``, ``learned``, ``image`` or ``padding``.
        start: The first position.
        stop: The one after the last.
        tokens: The text of each token; of an image or padding there is none.
        image: The number of the image, from 1.
    """

    kind: str
    start: int
    stop: int
    tokens: tuple[str, ...] = ()
    image: int = 0


@dataclass(frozen=True, kw_only=True)
class Example:
    """A study as it stands in a training batch.

    Attributes:
        study_id: The study.
        task: The name of its question.
        kind: ``single``, ``multimodal`` or ``comparison``.
        batch: Number of its batch in the first epoch, from 1.
        row: Its row there, from 1.
        num_rows: How many rows the batch has.
        images: Its images, in the order of their slots.
        parts: Its text, from the first position to the last.
        raw: Its text as the chat format writes it, an image as one sign.
        max_length: The longest text that is allowed.
    """

    study_id: str
    task: str
    kind: str
    batch: int
    row: int
    num_rows: int
    images: tuple[ShownImage, ...]
    parts: tuple[Part, ...]
    raw: str
    max_length: int

    def count(self, *kinds: str) -> int:
        """Return how many positions there are of some kinds; of all where none is named."""
        return sum(part.stop - part.start for part in self.parts if not kinds or part.kind in kinds)

    @property
    def fits(self) -> bool:
        """Whether each feature of each image has its slot."""
        return all(image.fits for image in self.images)


def slots_of(is_image: Bool[Tensor, " length"], num_features: Sequence[int]) -> list[int]:
    """Return how many image ids stand for each image.

    Images may follow one another without a word between them. They share their ids as they have
    features; what is too much or too little is told of the last one.

    Args:
        is_image: Which positions hold an image id.
        num_features: What the model makes of each image, in textual order.
    """
    runs = [sum(1 for _ in own) for image, own in groupby(is_image.tolist()) if image]
    slots, place = [0] * len(num_features), 0
    for run in runs:
        while run and place < len(slots):
            own = min(run, num_features[place])
            slots[place] = own
            run, place = run - own, place + 1
        slots[place - 1] += run  # what no image of this run has a feature for
    return slots


def parts_of(
    input_ids: Int[Tensor, " length"],
    attention_mask: Int[Tensor, " length"],
    labels: Int[Tensor, " length"],
    slots: Sequence[int],
    *,
    image_id: int,
    spell: Callable[[int], str],
) -> tuple[Part, ...]:
    """Return a row of a batch as parts that are treated alike.

    Args:
        input_ids: Its tokens.
        attention_mask: 0 where there is padding.
        labels: -100 where nothing is learned.
        slots: Image ids of each image.
        image_id: What stands for a visual token.
        spell: Returns the text of a token.
    """
    bounds = torch.tensor([0, *accumulate(slots)])
    image = torch.bucketize((input_ids == image_id).cumsum(0), bounds) * (input_ids == image_id)
    kinds = [
        PADDING if not seen else IMAGE if one == image_id else READ if label == IGNORE else LEARNED
        for one, seen, label in zip(
            input_ids.tolist(), attention_mask.tolist(), labels.tolist(), strict=True
        )
    ]
    parts, start = [], 0
    for (kind, number), own in groupby(zip(kinds, image.tolist(), strict=True)):
        stop = start + sum(1 for _ in own)
        has_words = kind in (READ, LEARNED)
        tokens = tuple(map(spell, input_ids[start:stop].tolist())) if has_words else ()
        parts.append(Part(kind=kind, start=start, stop=stop, tokens=tokens, image=number))
        start = stop
    return tuple(parts)


def picture_of(
    voxels: Num[Tensor, "depth height width *time"],
    coords: Int[Tensor, "kept axes"],
    grid: Sequence[int],
    affine: Num[Tensor, "4 4"],
) -> Image.Image:
    """Return slices of an image in which the kept tokens are outlined and the others are dim.

    Args:
        voxels: The image as it is cut into tokens; of a run, its mean over time is drawn.
        coords: Where the kept tokens are, in patches; of a run, at any time.
        grid: Its tokens along each axis.
        affine: Voxel index to RAS millimetres.
    """
    kept = torch.zeros(tuple(grid[:3]), dtype=torch.bool)
    kept[tuple(coords[:, :3].long().T)] = True
    shown = voxels.float().mean(dim=-1) if voxels.ndim == 4 else voxels.float()
    whole = kept
    for axis, (size, tokens) in enumerate(zip(shown.shape, grid[:3], strict=True)):
        whole = whole.repeat_interleave(size // tokens, dim=axis)
    low = shown.min()
    shown = low + (shown - low) * torch.where(whole, 1.0, DIMMED)
    return mosaic(shown, affine=affine, outline=kept, slice_pixels=220)


def write_examples(
    path: Path, examples: Sequence[Example], *, title: str, facts: Sequence[tuple[str, str]]
) -> None:
    """Write the page.

    Args:
        path: Where to.
        examples: What it shows.
        title: Its heading.
        facts: What stands below the heading, by name.
    """
    environment = Environment(
        loader=PackageLoader("neuro", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("example.html.jinja")
    page = template.render(
        title=title,
        facts=facts,
        examples=[_rendered(one) for one in examples],
        all_fit=all(one.fits for one in examples),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _rendered(example: Example) -> dict[str, object]:
    """Return what the template says of an example."""
    length = example.count()
    images = example.images
    return {
        "one": example,
        "length": length - example.count(PADDING),
        "padded_length": length,
        "num_learned": example.count(LEARNED),
        "num_text": example.count(READ, LEARNED),
        "num_slots": example.count(IMAGE),
        "num_padding": example.count(PADDING),
        "bar": [
            {
                "kind": part.kind,
                "image": part.image,
                "percent": 100 * (part.stop - part.start) / length,
                "title": _title(part),
            }
            for part in example.parts
        ],
        "images": [
            {
                "one": image,
                "number": number,
                "num_tokens": math.prod(image.grid),
                "percent": 100 * image.num_kept / math.prod(image.grid),
                "picture": data_uri(image.picture, webp_quality=82),
                "where": next(
                    (_where(part) for part in example.parts if part.image == number), "nowhere"
                ),
            }
            for number, image in enumerate(images, 1)
        ],
        "lines": [_line(part, images) for part in example.parts],
    }


def _title(part: Part) -> str:
    what = f"image {part.image}" if part.kind == IMAGE else part.kind
    return f"{what}, {_where(part)}"


def _where(part: Part) -> str:
    last = part.stop - 1
    return str(last) if part.start == last else f"{part.start} to {last}"


def _line(part: Part, images: Sequence[ShownImage]) -> dict[str, object]:
    count = part.stop - part.start
    return {
        "kind": part.kind,
        "where": _where(part),
        "count": count,
        "chips": [
            {"text": visible(text), "ends_line": text.endswith("\n"), "place": part.start + place}
            for place, text in enumerate(part.tokens)
        ],
        "image": part.image,
        "modality": images[part.image - 1].modality if part.image else "",
    }


def visible(text: str) -> str:
    """Return the text of a token with its spaces and line ends as signs."""
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"
