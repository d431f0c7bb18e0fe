"""Two processes with half of a batch each learn, and tell, what one does with the whole batch."""

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

from small_mil import build, write_heads

ROOT = Path(__file__).parents[2]
STEPS = 8
FOLD = ("data.splits.folds=5", "data.fold=0", "data.splits.val=0.25")  # 24, 8 and 8 heads
KINDS = {
    "rmse": ("tuning=full", "data.label=[x,y]", "data.labels.task=regression", "system.loss=rmse"),
    "bce": ("tuning=full", "data.label=[a,b]", "system.balance=1.0"),
    "features on disk": ("data.label=[a,b]", "optim.lr=1e-2"),
}


class Written(Callback):
    """Keeps what was seen and what it cost."""

    def __init__(self):
        self.rows, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        known = int(batch.labels.isfinite().sum())
        self.rows.append((list(batch.study_ids), float(outputs["loss"].detach()), known))

    def on_validation_end(self, trainer, pl_module):
        shown = {name: float(one) for name, one in trainer.callback_metrics.items()}
        self.val.append({name: one for name, one in shown.items() if name.startswith("val/")})


def train(root, kind, **settings):
    """Train for some steps of six studies on as many processes as are asked for, then test."""
    written = Written()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        val_check_interval=2,
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
    datamodule, system = build(*given(root, kind), f"data.max_studies={6 // trainer.world_size}")
    trainer.fit(system, datamodule=datamodule)
    weights = {name: one.clone() for name, one in system.state_dict().items()}
    trainer.test(system, datamodule=datamodule, verbose=False)
    told = system.predictions
    found = {"rows": written.rows, "val": written.val, "weights": weights}
    shown = {name: float(one) for name, one in trainer.callback_metrics.items()}
    return {**found, "studies": list(told.studies), "told": told.outputs, "test": shown}, trainer


def given(root, kind):
    root = Path(root)
    table = f"data.labels.file={root}/labels.csv"
    return (root / "heads", root, *FOLD, *KINDS[kind], table)


def write_labels(root):
    """Write labels of which a quarter is unknown, most of them those of a few studies."""
    rows = ["participant_id,a,b,x,y"]
    for number in range(1, 41):
        a, b = int(number % 3 == 0), "" if number % 2 else int(number % 4 == 0)
        y = "" if number % 5 else 100 * number
        rows.append(f"sub-{number:04},{a},{b},{number / 7},{y}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(kind, tmp_path):  # S85, S87
    root = tmp_path / "root"
    write_heads(root / "heads")
    write_labels(root)
    build(*given(root, kind))  # prepares the scans
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(root), kind, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole, _ = train(root, kind, devices=1)
    assert len(whole["rows"]) == STEPS
    unlike = 0
    for one, first, second in zip(whole["rows"], *(rank["rows"] for rank in ranks), strict=True):
        assert one[0] == first[0] + second[0]
        assert one[2] == first[2] + second[2]
        unlike += first[2] != second[2]  # or a mean of means would do
        assert (first[1] + second[1]) / 2 == pytest.approx(one[1], abs=1e-4)
    assert unlike > 2
    for rank in ranks:
        assert len(rank["val"]) == len(whole["val"]) > 0
        for own, other in zip(rank["val"], whole["val"], strict=True):
            assert own == pytest.approx(other, abs=2e-4)
        assert rank["studies"] == whole["studies"]  # each once
        assert len(set(rank["studies"])) == 8
        torch.testing.assert_close(rank["told"], whole["told"], rtol=1e-3, atol=1e-3)
        assert rank["test"] == pytest.approx(whole["test"], abs=5e-3)
    for name, one in whole["weights"].items():
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name])
        torch.testing.assert_close(ranks[0]["weights"][name], one, rtol=0, atol=2e-4)


if __name__ == "__main__":
    found, ended = train(
        sys.argv[1], sys.argv[2], devices=2, strategy=DDPStrategy(process_group_backend="gloo")
    )
    torch.save(found, Path(sys.argv[3]) / f"{ended.global_rank}.pt")
