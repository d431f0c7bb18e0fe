"""Two processes with half of a batch each learn what one process learns from the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

sys.path.insert(0, str(Path(__file__).parents[1]))  # this file is also what the processes run

from small_jepa import build

ROOT = Path(__file__).parents[2]
STEPS = 10
SAME = ("data.num_subjects=80", "data.patch_drop_rate=0.1", "data.augment.flip_left_right=0.5")


class Written(Callback):
    """Keeps what was seen and what it cost."""

    def __init__(self):
        self.rows, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(
            {
                "studies": list(batch.study_ids),
                "loss": float(outputs["loss"].detach()),
                "targets": [len(view.target) for view in batch.views],
                "seen": batch.volumes.coords[batch.views[0].context].sum(dim=0).tolist(),
            }
        )

    def on_validation_end(self, trainer, pl_module):
        self.val.append(float(trainer.callback_metrics["val/loss"]))


def train(root, reduction, **settings):
    """Train for ten steps of four studies, on as many processes as are asked for."""
    written = Written()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        val_check_interval=5,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        callbacks=[written],
        **settings,
    )
    share = 4 // trainer.world_size
    datamodule, system = build(
        root, *SAME, f"data.max_studies={share}", f"system.reduction={reduction}"
    )
    trainer.fit(system, datamodule=datamodule)
    return {"rows": written.rows, "val": written.val, "weights": system.state_dict()}, trainer


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["token", "volume"])
def test_two_processes_learn_what_one_learns(reduction, tmp_path):  # S26, S27
    root = tmp_path / "root"
    build(root, *SAME)[0].prepare_data()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(root), reduction, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole, _ = train(root, reduction, devices=1)
    assert len(whole["rows"]) == STEPS
    for one, first, second in zip(whole["rows"], *(rank["rows"] for rank in ranks), strict=True):
        assert one["studies"] == first["studies"] + second["studies"]
        assert one["targets"] == [
            sum(parts) for parts in zip(first["targets"], second["targets"], strict=True)
        ]
        assert one["seen"] == [
            sum(parts) for parts in zip(first["seen"], second["seen"], strict=True)
        ]
        assert first["targets"] != second["targets"]  # or a mean of means would do
        # What a rank logs is its share of the loss, so that their mean is the loss.
        assert (first["loss"] + second["loss"]) / 2 == pytest.approx(one["loss"], abs=1e-5)
    assert len(whole["val"]) == 2
    for rank in ranks:
        assert rank["val"] == pytest.approx(whole["val"], abs=1e-5)
    for name, one in whole["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(ranks[0]["weights"][name], one, rtol=0, atol=1e-4)


if __name__ == "__main__":
    found, ended = train(
        sys.argv[1], sys.argv[2], devices=2, strategy=DDPStrategy(process_group_backend="gloo")
    )
    torch.save(found, Path(sys.argv[3]) / f"{ended.global_rank}.pt")
