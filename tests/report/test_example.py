"""Each position of a training example is shown as what it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from neuro.report.example import (
    Example,
    Part,
    ShownImage,
    parts_of,
    picture_of,
    slots_of,
    visible,
    write_examples,
)

I = 9  # noqa: E741, the image id
IDS = [1, I, I, I, I, 2, 3, I, I, 4, 5, 6, 0, 0]
MASK = [1] * 12 + [0] * 2
LABELS = [-100] * 9 + [4, 5] + [-100] * 3


def parts(slots=(1, 3, 2), ids=IDS, mask=MASK, labels=LABELS):
    rows = (torch.tensor(one) for one in (ids, mask, labels))
    return parts_of(*rows, list(slots), image_id=I, spell=lambda one: f"w{one}")


def test_every_position_is_in_one_part_and_the_loss_is_where_the_labels_are():
    found = parts()
    assert [(one.kind, one.start, one.stop) for one in found] == [
        ("read", 0, 1),
        ("image", 1, 2),
        ("image", 2, 5),
        ("read", 5, 7),
        ("image", 7, 9),
        ("learned", 9, 11),
        ("read", 11, 12),
        ("padding", 12, 14),
    ]
    assert [one.image for one in found if one.kind == "image"] == [1, 2, 3]
    assert found[5].tokens == ("w4", "w5")
    assert all(not one.tokens for one in found if one.kind in ("image", "padding"))


def test_padding_is_what_the_mask_says_whatever_its_id():
    found = parts(ids=[*IDS[:-2], 6, 6])
    assert found[-1] == Part(kind="padding", start=12, stop=14)


@pytest.mark.parametrize(
    ("features", "slots"),
    [
        ([1, 3, 2], [1, 3, 2]),
        ([4, 2], [4, 2]),
        ([1, 2, 2], [1, 2, 3]),  # one id too many
        ([2, 3, 2], [2, 2, 2]),  # one too few
        ([4, 3], [4, 2]),
        ([4, 1], [4, 2]),
        ([4, 2, 7], [4, 2, 0]),
    ],
)
def test_images_own_the_ids_that_they_have_features_for(features, slots):
    assert slots_of(torch.tensor(IDS) == I, features) == slots


def picture(keep=((0, 0, 0),), time=None):
    voxels = torch.full((8, 8, 8), 100.0)
    coords = torch.tensor([(*one, 0) if time else one for one in keep])
    grid = (2, 2, 2, time) if time else (2, 2, 2)
    if time:
        voxels = voxels.unsqueeze(-1).expand(8, 8, 8, 4)
    voxels = voxels.clone()
    voxels[0] = 0.0  # something is dark
    return np.asarray(picture_of(voxels, coords, grid, torch.eye(4)))


def test_what_is_not_kept_is_dim():
    everywhere = [(i, j, k) for i in range(2) for j in range(2) for k in range(2)]
    whole, corner = picture(everywhere), picture([(1, 0, 0)])
    assert (whole > 200).mean() > 0.7
    assert 0.1 < (corner > 200).mean() < 0.4
    assert ((corner > 60) & (corner < 110)).any()


def test_a_run_is_shown_as_its_mean_and_a_token_at_any_time_is_kept():
    assert (picture([(1, 0, 0)], time=2) == picture([(1, 0, 0)])).all()


def example(num_features=6, **changes):
    image = ShownImage(
        modality="T1",
        name="<b>head</b>",
        grid=(2, 3, 4),
        num_kept=6,
        num_slots=6,
        num_features=num_features,
        draw="gamma 1.20",
        picture=Image.new("RGB", (12, 4)),
    )
    fields = {
        "study_id": "a&b",
        "task": "sex",
        "kind": "single",
        "batch": 1,
        "row": 2,
        "num_rows": 3,
        "images": (image,),
        "parts": (
            Part(kind="read", start=0, stop=2, tokens=("<s>", " a\n")),
            Part(kind="image", start=2, stop=8, image=1),
            Part(kind="learned", start=8, stop=10, tokens=(" left", "</s>")),
            Part(kind="padding", start=10, stop=14),
        ),
        "raw": "<s> a\n<image> left</s>",
        "max_length": 2048,
    }
    return Example(**{**fields, **changes})


def page(tmp_path, *examples):
    path = tmp_path / "new" / "page.html"
    write_examples(path, examples, title="Examples", facts=[("model", "tiny")])
    return path.read_text()


def test_the_page_tells_what_is_learned_and_escapes_what_is_said(tmp_path):
    html = page(tmp_path, example())
    for text in (
        "a&amp;b",
        "batch 1, row 2 of 3",
        "2 \u00d7 3 \u00d7 4",
        "<b>2</b> learned",
        "<b>4</b> of padding to 14",
        "2 to 7",
        "&lt;b&gt;head&lt;/b&gt;",
        "gamma 1.20",
        "&lt;s&gt; a\n&lt;image&gt; left&lt;/s&gt;",
        'title="position 8">·left</span>',
        "padding \u00d7 4",
        "✓ every feature has its slot",
    ):
        assert text in html, text
    assert "://" not in html
    assert "<b>head</b>" not in html


def test_features_without_a_slot_are_marked(tmp_path):
    html = page(tmp_path, example(num_features=7))
    assert "✗ slots and features disagree" in html
    assert not example(num_features=7).fits


def test_positions_are_counted_by_kind():
    one = example()
    assert (one.count(), one.count("learned"), one.count("read", "learned")) == (14, 2, 4)


def test_spaces_and_line_ends_are_seen():
    assert [visible(one) for one in (" a b", "\n", "")] == ["·a·b", "↵", "∅"]
