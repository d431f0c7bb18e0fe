"""What a checkpoint holds is built, or told in one line why it is not."""

from __future__ import annotations

import pytest
import torch

from neuro.errors import InputError
from neuro.restore import SMALL, building, check_sizes, going_on


def held(**parts):
    return {"state_dict": {"a": torch.ones(3, 2000)}, "parts": parts}


@pytest.mark.parametrize(
    "error", [TypeError("not\nso"), KeyError("a"), RuntimeError("no"), MemoryError()]
)
def test_whatever_building_raises_is_one_line_that_names_the_checkpoint(error):
    with (
        pytest.raises(InputError, match=r"ckpt_path=a\.ckpt does not say") as told,
        building("a.ckpt"),
    ):
        raise error
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("error", [InputError("mine"), FileNotFoundError(2, "gone", "x")])
def test_what_is_told_already_stays_as_it_is(error):
    with pytest.raises(type(error)) as told, building("a.ckpt"):
        raise error
    assert told.value is error


def test_a_model_is_no_larger_than_its_weights():
    check_sizes(held(encoder={"dim": 2000, "layers": [SMALL], "rate": 1e9, "flag": True}), "a.ckpt")
    for parts in ({"dim": 2001}, {"dims": [[10**9]]}, {"a": {"b": 10**5000}}):
        with pytest.raises(InputError, match=r"a\.ckpt says that its model has sizes"):
            check_sizes(held(encoder=parts), "a.ckpt")


def test_a_size_that_a_storage_does_not_hold_is_no_witness():
    lie = {"state_dict": {"a": torch.ones(1).expand(10**9)}, "parts": {"encoder": {"dim": 10**6}}}
    with pytest.raises(InputError, match="sizes"):
        check_sizes(lie, "a.ckpt")


def test_a_state_that_an_optimizer_cannot_take_is_of_the_checkpoint():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with (
        pytest.raises(InputError, match=r"a\.ckpt cannot be gone on from.*KeyError"),
        going_on("a.ckpt"),
    ):
        optimizer.load_state_dict({"param_groups": [{}]})


def test_other_errors_are_not_blamed_on_the_checkpoint():
    for path in (None, "a.ckpt"):
        with pytest.raises(KeyError), going_on(path):
            raise KeyError("a fault of ours")


def test_without_a_checkpoint_nothing_is_blamed_on_it():
    with pytest.raises(KeyError), going_on(None):
        torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).load_state_dict(
            {"param_groups": [{}]}
        )
