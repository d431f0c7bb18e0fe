"""Two processes that share the layers of a language model train as one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent))  # this file is also what the processes run
sys.path.insert(0, str(Path(__file__).parent / "systems"))

from test_two_processes import ADAMW, Halves, make_system
from torch.distributed.tensor import DTensor

from neuro.callbacks.step_guard import StepGuard
from neuro.models.policy import Policy
from neuro.sharded import Sharded

ROOT = Path(__file__).parents[1]
STEPS = 3
LAYERS = ("Qwen2DecoderLayer",)
NAMES = ("other_lengths", "other_modalities")


class Shares(Callback):
    """Counts the shares that the optimizer is given."""

    count = 0

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        given = [one for group in optimizer.param_groups for one in group["params"]]
        self.count = sum(isinstance(one, DTensor) for one in given)


def train(name, folder, *, ckpt_path=None, steps=STEPS, **settings):
    """Train for some steps, clipped; return their losses and norms, and how much was shared."""
    system = make_system(ADAMW, policy=Policy(language_model=True))
    guard, shares = StepGuard(folder, None, None), Shares()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=0.1,
        callbacks=[guard, shares],
        **settings,
    )
    trainer.fit(system, datamodule=Halves(name, system, steps), ckpt_path=ckpt_path)
    found = [list(one.last) for one in guard.courses.values()]
    return trainer, {"courses": found, "shares": shares.count, "rank": trainer.global_rank}


def two_processes(name, folder, *more):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, name, str(folder), *map(str, more)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shares_learn_what_the_whole_learns(name, tmp_path):
    ranks = two_processes(name, tmp_path)
    trainer, whole = train(name, tmp_path, devices=1)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    saved = torch.load(tmp_path / "shared.ckpt", weights_only=True)
    own = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == own["state_dict"].keys()
    for key, one in own["state_dict"].items():
        assert type(saved["state_dict"][key]) is torch.Tensor
        torch.testing.assert_close(saved["state_dict"][key], one, rtol=1e-3, atol=2e-4)
    for rank in ranks:
        assert rank["shares"] > 10
        torch.testing.assert_close(rank["courses"], whole["courses"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_two_have_learned_goes_on_with_one_and_the_other_way_round(tmp_path):
    name = "other_modalities"
    two_processes(name, tmp_path)
    trainer, _ = train(name, tmp_path, devices=1)
    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    shared = tmp_path / "shared.ckpt"
    _, one = train(name, tmp_path, ckpt_path=shared, steps=2 * STEPS, devices=1)
    gone_on = two_processes(name, tmp_path, tmp_path / "whole.ckpt", 2 * STEPS)
    assert len(one["courses"][0]) == 2 * STEPS
    torch.testing.assert_close(gone_on[0]["courses"], one["courses"], rtol=1e-2, atol=1e-3)


if __name__ == "__main__":
    given = sys.argv[1:]
    start = {"ckpt_path": given[2], "steps": int(given[3])} if len(given) > 2 else {}
    folder = Path(given[1])
    ended, content = train(given[0], folder, devices=2, strategy=Sharded(LAYERS), **start)
    ended.save_checkpoint(folder / "shared.ckpt")
    torch.save(content, folder / f"{ended.global_rank}.pt")
