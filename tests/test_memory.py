"""Memory that is not enough is one line, with what was being held and what to lower."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from neuro import command, memory
from neuro.errors import FailedRun, InputError

CFG = OmegaConf.create(
    {
        "data": {"max_tokens": 8192, "max_studies": 8},
        "system": {"checkpoint_activations": False},
    }
)
TOO_MUCH = 1 << 60


def real_errors():
    """Return what torch, numpy and Python really raise."""
    found = []
    for ask in (
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.empty(TOO_MUCH, np.uint8),
        lambda: bytearray(TOO_MUCH),
    ):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        found.append(caught.value)
    return [
        *found,
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore"),
    ]


@pytest.mark.parametrize("error", real_errors(), ids=["torch", "numpy", "python", "cuda"])
def test_each_kind_is_known(error):
    error.__notes__ = ["rank 1, step 3: training batch 3 with 2 studies (a, b)"]
    line = memory.explained([RuntimeError("outer"), error], CFG)
    assert line is not None
    assert "\n" not in line
    assert line.startswith(
        "out of memory at rank 1, step 3: training batch 3 with 2 studies (a, b) ("
    )
    assert line.endswith(
        "). Lower data.max_tokens (it is 8192) or data.max_studies (it is 8). "
        "system.checkpoint_activations=true needs less, and a third more time."
    )
    assert command.exit_status(error) == 1


def test_what_is_set_already_or_is_not_there_is_no_advice():
    cfg = OmegaConf.create({"system": {"encoder": {"checkpoint_activations": True}}})
    line = memory.explained([MemoryError()], cfg)
    assert line == (
        "out of memory (MemoryError). "
        "Use a machine with more memory, or run fewer processes on this one."
    )
    cfg.system.encoder.checkpoint_activations = False
    told = memory.explained([MemoryError()], cfg)
    assert told is not None
    assert "system.encoder.checkpoint_activations=true" in told


def test_what_a_reader_has_told_already_stays_as_it_is():
    error = InputError("a.nii.gz: read: it does not fit into memory.")
    error.__cause__ = MemoryError()
    assert memory.explained([error, error.__cause__], CFG) is None
    assert memory.explained([ValueError("else")], CFG) is None
    assert command.exit_status(error) == 2


def test_the_command_prints_it_without_a_traceback(caplog):
    with caplog.at_level(logging.ERROR, "neuro"):
        status = command._report(MemoryError("no room"), "train", CFG)
    assert status == 1
    assert caplog.messages == [f"error: {memory.explained([MemoryError('no room')], CFG)}"]


def test_a_failed_run_is_one_line_too():
    assert command.explain(FailedRun("step 3")) == "step 3"
    assert command.exit_status(FailedRun("step 3")) == 1
