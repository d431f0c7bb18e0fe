"""Writes which studies each rank was shown; named in the config of a run by its tests."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class SeenStudies(Callback):
    """Keeps the studies of every batch of training, validation and test, with their place."""

    def __init__(self, run_dir):
        self.run_dir = Path(run_dir)
        self.seen = {"train": [], "val": [], "test": []}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen["train"].append((trainer.current_epoch, batch_idx, batch.study_ids))

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.seen["val"].append((trainer.global_step, batch_idx, batch.study_ids))

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.seen["test"].append((dataloader_idx, batch_idx, batch.study_ids))

    def on_test_end(self, trainer, pl_module):
        (self.run_dir / f"seen-{trainer.global_rank}.json").write_text(json.dumps(self.seen))
