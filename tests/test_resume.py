import logging
import zipfile

import pytest
import torch
from omegaconf import OmegaConf

from neuro.errors import InputError
from neuro.resume import checkpoint_to_go_on_from, damage, is_done, move_best, take_over_best


@pytest.fixture
def run(tmp_path):
    """Return a run folder, and a function that writes a checkpoint of it."""
    folder = tmp_path / "run"

    def keep(name, step=1, to=folder):
        path = to / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {"w": torch.rand(5000)}, "global_step": step}, path)
        return path

    return folder, keep


def test_a_run_that_has_not_begun_begins(run):
    assert checkpoint_to_go_on_from("auto", run[0]) is None
    assert checkpoint_to_go_on_from(None, run[0]) is None


def test_a_run_that_has_begun_goes_on_from_its_last_checkpoint(run):
    folder, keep = run
    keep("previous"), keep("best")
    last = keep("last")
    assert checkpoint_to_go_on_from("auto", folder) == last
    assert checkpoint_to_go_on_from("last", folder) == last


def test_best_is_the_best(run):
    folder, keep = run
    best, _ = keep("best"), keep("last")
    assert checkpoint_to_go_on_from("best", folder) == best


def test_a_run_that_has_gone_back_to_its_best_goes_on_from_there(run):
    """As a job that is put back into the queue, whose words stay ``ckpt_path=best``."""
    folder, keep = run
    keep("best"), keep("previous")
    last = folder / "checkpoints/last.ckpt"
    for went_back, expected in ((False, "best.ckpt"), (True, "last.ckpt")):
        state = {"LastCheckpoint": {"went_back": went_back}}
        torch.save({"state_dict": {"w": torch.ones(1)}, "callbacks": state}, last)
        assert checkpoint_to_go_on_from("best", folder).name == expected


def test_a_run_is_not_begun_where_there_is_one(run):
    folder, keep = run
    keep("last")
    with pytest.raises(InputError, match="holds a run already"):
        checkpoint_to_go_on_from(None, folder)


@pytest.mark.parametrize("asked", ["last", "best"])
def test_what_is_not_there_is_not_gone_on_from(run, asked):
    if asked == "best":
        run[1]("last")
    with pytest.raises(InputError, match=r"has no such checkpoint\. Set run\.name"):
        checkpoint_to_go_on_from(asked, run[0])


def test_a_job_that_comes_again_goes_on_from_its_own_and_not_from_where_it_once_began(
    run, tmp_path
):
    folder, keep = run
    other = keep("last", to=tmp_path / "other")
    assert checkpoint_to_go_on_from(str(other), folder) == other
    assert checkpoint_to_go_on_from(str(tmp_path / "other"), folder) == other
    own = keep("last")
    assert checkpoint_to_go_on_from(str(other), folder) == own


@pytest.mark.parametrize("where", ["nowhere.ckpt", "."])
def test_a_name_that_is_no_checkpoint_is_refused(run, tmp_path, where):
    with pytest.raises(InputError, match="ckpt_path="):
        checkpoint_to_go_on_from(str(tmp_path / where), run[0])


def test_a_step_that_went_wrong_is_shown_again_whatever_the_folder_holds(run, tmp_path):
    folder, keep = run
    bad = keep("bad_step", to=tmp_path / "other")
    for own in (None, "best", "previous", "last", "bad_step"):
        if own is not None:
            keep(own)
        assert checkpoint_to_go_on_from(str(bad), folder) == bad


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip(path, share):
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("how", [cut, flip])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(run, caplog, how, share):
    folder, keep = run
    previous, last = keep("previous"), keep("last")
    if how is flip:  # of the tensor's own bytes; some in between hold nothing
        with zipfile.ZipFile(last) as file:
            (weights,) = [one for one in file.infolist() if one.filename.endswith("data/0")]
        share = (weights.header_offset + 200 + share * 19_000) / last.stat().st_size
    how(last, share)
    with caplog.at_level(logging.WARNING):
        assert checkpoint_to_go_on_from("auto", folder) == previous
    assert f"{last} is damaged" in caplog.text


def test_nothing_is_begun_anew_in_silence_where_all_are_damaged(run):
    folder, keep = run
    for name in ("last", "previous", "best"):
        cut(keep(name), 0.5)
    with pytest.raises(InputError, match="so are those before it"):
        checkpoint_to_go_on_from("auto", folder)


def test_a_checkpoint_that_carries_code_is_damaged(tmp_path):
    torch.save({"state_dict": {}, "code": torch.nn.Linear(1, 1)}, tmp_path / "bad.ckpt")
    assert "more than tensors" in damage(tmp_path / "bad.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert damage(tmp_path / "list.ckpt") == "it holds no state"


def test_a_new_run_from_another_one_knows_its_best(run, tmp_path):
    folder, keep = run
    last, best = (keep(name, to=tmp_path / "other") for name in ("last", "best"))
    take_over_best(last, folder)
    own = folder / "checkpoints/best.ckpt"
    assert own.read_bytes() == best.read_bytes()
    state = {"dirpath": "/old", "best_model_path": "/old/best.ckpt", "best_model_score": 0.5}
    checkpoint = {"callbacks": {"ModelCheckpoint{...}": state, "Health": {"dirpath": "/old"}}}
    move_best(checkpoint, folder)
    assert state["best_model_path"] == str(own.resolve())
    assert state["best_k_models"] == {str(own.resolve()): 0.5}
    assert checkpoint["callbacks"]["Health"] == {"dirpath": "/old"}
    other = {**state, "dirpath": "/old", "best_model_path": "/old/best.ckpt"}
    checkpoint = {"callbacks": {"ModelCheckpoint{...}": other}}
    move_best(checkpoint, tmp_path / "without a best")
    assert (other["best_model_path"], other["best_model_score"]) == ("", None)
    own.write_bytes(b"its own")
    take_over_best(last, folder)
    assert own.read_bytes() == b"its own"


def test_a_run_is_done_when_its_figures_are_there_and_its_config_is_this(tmp_path):
    cfg = OmegaConf.create({"a": {"b": 1}, "ckpt_path": "auto", "run": {"name": None}})
    assert not is_done(tmp_path, cfg)
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    assert not is_done(tmp_path, cfg)
    (tmp_path / "metrics.json").write_text("{}")
    assert is_done(tmp_path, cfg)
    cfg.ckpt_path, cfg.run.name = "last", "x"  # how it is gone on with
    assert is_done(tmp_path, cfg)
    cfg.paths = {"run_dir": "/elsewhere/x"}
    cfg.there = "/elsewhere/x/report.html"
    plain = OmegaConf.to_container(cfg)
    plain["paths"]["run_dir"], plain["there"] = "/here/y", "/here/y/report.html"
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(plain))
    assert is_done(tmp_path, cfg)  # its folder was moved
    cfg.a.b = 2
    with pytest.raises(InputError, match=r"finished run of another config \(a\.b: 1 -> 2\)"):
        is_done(tmp_path, cfg)
