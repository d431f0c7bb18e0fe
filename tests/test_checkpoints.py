import errno

import pytest
import torch

from neuro.checkpoints import WholeCheckpoints


class Full(torch.nn.Module):
    """Cannot be pickled, as on a full disk."""

    def __reduce__(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_whole(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"step": 1, "weights": torch.ones(3)}, path)
    with pytest.raises(OSError, match="No space left") as caught:
        WholeCheckpoints().save_checkpoint({"weights": torch.ones(9), "more": Full()}, path)
    assert caught.value.filename == str(path)  # so that the message names the right disk
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_replaces_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    for step in (1, 2):
        WholeCheckpoints().save_checkpoint({"step": step}, path)
    assert WholeCheckpoints().load_checkpoint(path, weights_only=True) == {"step": 2}


def test_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(checkpoint, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WholeCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
