"""The values of secrets are in nothing that a run writes, and none is taken from a command line."""

from __future__ import annotations

import pytest

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_NotToBeSeenAnywhere",
    "LAB_PASSWORD": "correct-horse-battery",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG",
}


@pytest.mark.slow
def test_a_run_writes_no_secret(tmp_path, run_commands, places_of):
    from small_mil import SMALL, write_heads

    heads = write_heads(tmp_path / "heads", num_subjects=12)
    common = [*SMALL, f"data.root={heads}", f"paths.root={tmp_path}", "trainer.max_steps=1"]
    own = f"hydra.run.dir={tmp_path}/outputs/a"
    other = f"hydra.run.dir={tmp_path}/outputs/b"
    commands = [
        ["neuro.train", *common, own, "logger=wandb", "~callbacks.report"],
        # An error tells of what a config takes from the environment.
        ["neuro.train", *common, other, "system.encoder_from=${oc.env:HF_TOKEN}"],
        ["neuro.train", *common, f"+logger.wandb.api_key={SECRETS['WANDB_API_KEY']}"],
        ["neuro.train", *common, f"run.name={SECRETS['LAB_PASSWORD']}"],
    ]
    statuses, said = run_commands(tmp_path, commands, **SECRETS)
    assert statuses == [0, 2, 2, 2], said[-4000:]
    wanted = [*SECRETS.values()]
    assert places_of(wanted, [tmp_path / "outputs"]) == []
    assert [one for one in wanted if one in said] == []
    assert "<HF_TOKEN>" in said
