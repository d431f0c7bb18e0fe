"""What each freezing policy reaches on the phantom, with how many parameters and how soon.

python benchmarks/policies.py [key=value ...] [--policies embeddings lora ...] [--json FILE]

``seconds_to_90`` is the time in training steps until 90 % of the validation questions are answered
exactly, which is asked every ten steps and not counted; NaN if that never came.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import tell

from neuro import command

EVERY = 10


class Stopwatch(L.Callback):
    """Times the steps, and asks all validation questions every ten of them."""

    def __init__(self, datamodule):
        self.datamodule = datamodule
        self.seconds, self.begun, self.seconds_to_90 = 0.0, 0.0, math.nan

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seconds += time.perf_counter() - self.begun
        if math.isnan(self.seconds_to_90) and trainer.global_step % EVERY == 0:
            pl_module.eval()
            answers = [
                one for batch in self.datamodule.val_dataloader() for one in pl_module.answer(batch)
            ]
            pl_module.train()
            if sum(one.is_exact for one in answers) >= 0.9 * len(answers):
                self.seconds_to_90 = self.seconds


def measure(root, policy, overrides):
    """Train and test with one policy."""
    given = [f"paths.root={root}", "paths.run_dir=unused", f"policy={policy}", *overrides]
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=given)
    command.resolve(cfg)
    L.seed_everything(cfg.seed, verbose=False)
    datamodule = instantiate(cfg.data.datamodule, _convert_="all")
    datamodule.prepare_data()
    system = instantiate(cfg.system, _convert_="all")
    system.prepare(datamodule)
    watch = Stopwatch(datamodule)
    trainer = instantiate(
        {**cfg.trainer, "plugins": None, "val_check_interval": None},
        limit_val_batches=0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(system, datamodule=datamodule)
    (found, *_) = trainer.test(system, datamodule=datamodule, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()} | found
    return {
        "exact_match": logged["test/exact_match"],
        "exact_match_shuffled": logged["test/exact_match_shuffled"],
        "trained_parameters": sum(one.numel() for one in system.parameters() if one.requires_grad),
        "seconds_to_90": watch.seconds_to_90,
        "seconds": watch.seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    policies = ["embeddings", "projector", "lora", "none"]
    parser.add_argument("--policies", nargs="+", default=policies)
    parser.add_argument("--root", help="where phantom and cache are kept; otherwise a new folder")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments, overrides = parser.parse_known_args()
    figures = {}
    with tempfile.TemporaryDirectory() as made:
        for policy in arguments.policies:
            for name, value in measure(arguments.root or made, policy, overrides).items():
                figures[f"{policy}/{name}"] = value
    tell(figures, arguments.json)


if __name__ == "__main__":
    main()
