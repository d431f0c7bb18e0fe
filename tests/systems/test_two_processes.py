"""Two processes with half of a batch each move as one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.optim.lr_scheduler import ConstantLR
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is also what the processes run

from small_llava import batch_of, qwen_tokenizer, study_of, volume_llava

from neuro.data.bold_run import BoldRun
from neuro.data.collate import Background, ConversationCollator
from neuro.data.fixed_grid import FixedGrid
from neuro.data.text import TextEncoder
from neuro.models.policy import Policy
from neuro.systems.llava_mri import LlavaMRI

ROOT = Path(__file__).parents[2]
STEPS = 2
SGD = partial(torch.optim.SGD, lr=0.1)
ADAMW = partial(torch.optim.AdamW, lr=1e-3)
CUBE = {"shape": (8, 8, 8), "spacing_mm": 24.0, "patch": (4, 4, 4)}
RECIPES = {
    "T1": FixedGrid(**CUBE, percentiles=(0.5, 99.5)),
    "dMRI": FixedGrid(**CUBE, window=(0.0, 1.0)),
    "rsfMRI": BoldRun(shape=(8, 8, 8, 4), patch=(4, 4, 4, 2), repetition_time_s=2.0),
}
# What each of the two processes sees.
HALVES = {
    "other_lengths": (
        [study_of("a", "T1", answer="left"), study_of("b", "T1", answer="no")],
        [study_of("c", "T1", answer="a much longer answer than the other half has")],
    ),
    "other_modalities": (
        [study_of("a", "T1", answer="left side"), study_of("b", "T1", "T1", answer="yes")],
        [study_of("c", "rsfMRI", answer="no")],
    ),
    "one_modality_on_one_side": (
        [study_of("a", "T1", "dMRI", answer="left")],
        [study_of("b", "T1", answer="none of it"), study_of("c", "T1", answer="no")],
    ),
}


def make_system(optimizer=SGD, policy=None):
    text = TextEncoder(
        qwen_tokenizer(), chat_format="chatml", image_token="<image>", max_length=512
    )
    policy = policy or Policy()
    ready = volume_llava("siglip", text, RECIPES, policy=policy)
    return LlavaMRI(
        ready.llava,
        lambda **_: ready,
        policy,
        text,
        optimizer=optimizer,
        schedule=lambda optimizer, num_steps: ConstantLR(optimizer, factor=1.0),
        weight_decay=0.0,
        max_new_tokens=2,
    )


class Halves(L.LightningDataModule):
    """Gives each rank its half, or the only one everything, again and again."""

    def __init__(self, name, system, steps):
        super().__init__()
        self.name = name
        self.steps = steps
        self.text = system.text

    def train_dataloader(self):
        halves = HALVES[self.name]
        studies = halves[0] + halves[1]
        if self.trainer.world_size == 2:
            studies = halves[self.trainer.global_rank]
        collate = ConversationCollator(self.text, Background(min_foreground=0.5))
        return DataLoader([batch_of(studies, RECIPES, collate)] * self.steps, batch_size=None)


class Gradients(Callback):
    """Keeps what the optimizer sees."""

    def __init__(self):
        self.found = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.named_parameters()
        self.found.append({name: one.grad.clone() for name, one in named if one.grad is not None})


def train(
    name: str, steps: int = STEPS, **settings
) -> tuple[list[dict[str, torch.Tensor]], LlavaMRI, L.Trainer]:
    """Train for some steps; return the gradients of each. Many steps are AdamW's."""
    seen = Gradients()
    system = make_system() if steps == STEPS else make_system(ADAMW)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[seen],
        **settings,
    )
    trainer.fit(system, datamodule=Halves(name, system, steps))
    return seen.found, system, trainer


def two_processes(name: str, steps: int, folder: Path) -> list[dict]:
    """Train on two ranks, and return what each of them ended with."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, name, str(steps), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def logged(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", HALVES)
def test_two_halves_give_the_gradients_of_the_whole(name, tmp_path):  # D65
    ranks = two_processes(name, STEPS, tmp_path)
    whole, system, ended = train(name, devices=1)
    assert len(whole) == STEPS
    for rank in ranks:  # as curves say it: what one rank alone has seen, too
        assert rank["logged"] == pytest.approx(logged(ended), rel=1e-3)
    for step, gradients in enumerate(whole):
        assert any(one.abs().max() > 1e-3 for one in gradients.values())
        for rank in ranks:
            # What nobody saw has no gradient, so that the optimizer leaves it alone. D58
            assert rank["gradients"][step].keys() == gradients.keys()
            for key, one in gradients.items():
                scale = float(one.abs().max())
                torch.testing.assert_close(
                    rank["gradients"][step][key], one, rtol=1e-3, atol=1e-4 * scale
                )
    for key, one in ranks[0]["weights"].items():
        assert torch.equal(one, ranks[1]["weights"][key])  # the ranks stay together
        torch.testing.assert_close(one, system.state_dict()[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_no_rank_sees_keeps_its_weights_over_a_hundred_steps(tmp_path):  # D58
    """One rank sees T1 only, the other rsfMRI only; nobody sees dMRI."""
    before = make_system().state_dict()
    ranks = two_processes("other_modalities", 100, tmp_path)
    _, system, _ = train("other_modalities", 100, devices=1)
    whole = system.state_dict()
    for key, one in ranks[0]["weights"].items():
        assert torch.equal(one, ranks[1]["weights"][key])
        is_seen = ".T1." in key or ".rsfMRI." in key
        assert torch.equal(one, before[key]) != is_seen, key
        assert torch.equal(whole[key], before[key]) != is_seen, key
        if is_seen:  # the same way gone, but for rounding
            gone = (whole[key] - before[key]).norm()
            assert (one - whole[key]).norm() < 0.05 * gone, key


if __name__ == "__main__":
    strategy = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    found, trained, ended = train(sys.argv[1], int(sys.argv[2]), devices=2, strategy=strategy)
    content = {"gradients": found[:STEPS], "weights": trained.state_dict()}
    content["logged"] = logged(ended)
    torch.save(content, Path(sys.argv[3]) / f"{ended.global_rank}.pt")
