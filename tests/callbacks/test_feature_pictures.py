"""Pictures of masks and features lie in the run folder and in TensorBoard, one per validation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuro.callbacks.feature_pictures import FeaturePictures
from neuro.errors import InputError


@pytest.fixture
def fit(make_heads, make_jepa, make_trainer, tmp_path):
    """Return a function that trains with pictures and gives back the run folder."""

    def fit(name="run", *, datamodule=None, system=None, every_n_validations=1, **settings):
        pictures = FeaturePictures(
            tmp_path / name,
            num_volumes=2,
            slice_pixels=48,
            every_n_validations=every_n_validations,
        )
        trainer = make_trainer(callbacks=[pictures], **settings)
        trainer.fit(system or make_jepa(), datamodule=datamodule or make_heads())
        return tmp_path / name

    return fit


def names_in(folder):
    return sorted(path.name for path in folder.glob("pictures/*"))


def test_there_is_a_picture_before_training_and_at_each_validation(fit):
    folder = fit()
    assert names_in(folder) == ["step-000000.png", "step-000002.png", "step-000004.png"]
    pictures = [np.asarray(Image.open(path)) for path in sorted(folder.glob("pictures/*"))]
    assert len({picture.shape for picture in pictures}) == 1
    masks, features = np.split(np.stack(pictures), 2, axis=2)
    assert (masks[0] == masks[-1]).all()  # of a validation, they stay
    assert (features[0] != features[-1]).any()


def test_it_may_wait_for_some_validations(fit):
    assert names_in(fit(every_n_validations=2)) == ["step-000000.png", "step-000004.png"]


def test_each_mask_has_its_slices(fit, make_heads):
    widths = []
    for number in (1, 2):
        folder = fit(f"run{number}", datamodule=make_heads(num_masks=number), max_steps=1)
        widths.append(Image.open(folder / "pictures/step-000000.png").width)
    assert widths[1] == widths[0] * 3 // 2


def test_tensorboard_has_the_same_pictures(fit, tmp_path):
    logger = TensorBoardLogger(tmp_path / "board", name="", version="")
    fit(logger=logger)
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [event.step for event in board.Images("features")] == [0, 2, 4]


def test_the_same_weights_give_the_same_picture(fit):
    first, second = (fit(name, max_steps=2) for name in ("one", "two"))
    for name in names_in(first):
        assert (first / "pictures" / name).read_bytes() == (second / "pictures" / name).read_bytes()


def test_pictures_change_nothing_in_training(fit, make_heads, make_jepa, make_trainer):
    watched = make_jepa()
    fit(system=watched, max_steps=3)
    alone = make_jepa()
    make_trainer(max_steps=3).fit(alone, datamodule=make_heads())
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_system_is_left_alone(make_trainer, tmp_path):
    make_trainer(callbacks=[FeaturePictures(tmp_path / "run")]).fit(BoringModel())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["num_volumes", "every_n_validations", "slice_pixels"])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        FeaturePictures("unused", **{name: 0})
