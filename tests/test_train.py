"""The main command, from the command line to the run folder, and the mistakes of its users."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from neuro import command
from neuro.train import _run

SMALL = (
    "data.num_subjects=20",
    "data.max_studies=8",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "system.max_new_tokens=4",
)
TINY = (
    "system.llava.dim=32",
    "system.llava.num_layers=2",
    "system.llava.num_heads=2",
    "system.llava.steps=2",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture
def neuro(root, monkeypatch, capfd):
    """Run the command in this process; return its exit status and what it printed."""

    def call(*overrides):
        pretrained = any(one.startswith("model=llava") for one in overrides)
        arguments = [f"paths.root={root}", *(() if pretrained else TINY), *overrides]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        GlobalHydra.instance().clear()
        status = command.run("train", _run)
        out, err = capfd.readouterr()
        return status, out + err

    # Until a run sets up its log, pytest's own handler would keep messages from the screen.
    screen, logger = logging.StreamHandler(), logging.getLogger("neuro")
    if not logger.handlers:
        logger.addHandler(screen)
    yield call
    logger.removeHandler(screen)


@pytest.fixture(scope="module")
def bids(phantom_root, tmp_path_factory):
    """A copy of the phantom that a test may damage."""

    def copy():
        folder = tmp_path_factory.mktemp("bids") / "copy"
        shutil.copytree(phantom_root, folder)
        return folder

    return copy


def test_a_run_leaves_everything_that_it_promises(neuro, root):
    status, printed = neuro(*SMALL, "run.name=first")
    assert status == 0, printed
    run = root / "outputs/llava_mri/first"
    for name in [
        "config.yaml",
        "command.sh",
        "environment.json",
        "train.log",
        "metrics.csv",
        "metrics.json",
        "report.html",
        "parameters.json",
        "checkpoints/last.ckpt",
        "checkpoints/best.ckpt",
        "predictions/test.csv",
        "samples/test.jsonl",
        "samples/test_shuffled.jsonl",
    ]:
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events*"))
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("exact_match", "balanced_accuracy", "exact_match_shuffled"):
        assert 0 <= metrics[f"test/{name}"] <= 1
    assert {"train/loss", "train/supervised_tokens", "val/loss", "val/loss_T1"} <= set(metrics)
    log = (run / "train.log").read_text()
    assert "step 4 of 4" in log
    assert "\x1b" not in log  # no colours in a file
    assert "all" in printed
    assert "trainable" in printed
    assert "://" not in (run / "report.html").read_text()
    OmegaConf.load(run / "config.yaml")


def test_resuming_ends_where_an_unbroken_run_ends(neuro, root):
    for name, steps in (("whole", 6), ("part", 3)):
        status, printed = neuro(
            *SMALL,
            f"run.name={name}",
            f"trainer.max_steps={steps}",
            "trainer.val_check_interval=3",
            "optim.schedule.final_fraction=1.0",
            "optim.schedule.warmup_fraction=0.0",
        )
        assert status == 0, printed
    part = root / "outputs/llava_mri/part/checkpoints/last.ckpt"
    status, printed = neuro(
        *SMALL,
        "run.name=rest",
        f"ckpt_path={part}",
        "trainer.max_steps=6",
        "trainer.val_check_interval=3",
        "optim.schedule.final_fraction=1.0",
        "optim.schedule.warmup_fraction=0.0",
    )
    assert status == 0, printed
    assert (root / "outputs/llava_mri/rest/config.yaml").is_file()
    weights = [
        torch.load(root / f"outputs/llava_mri/{name}/checkpoints/last.ckpt")["state_dict"]
        for name in ("whole", "rest")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_folder_is_not_written_over(neuro, root):
    assert neuro(*SMALL, "run.name=once")[0] == 0
    before = (root / "outputs/llava_mri/once/metrics.json").read_bytes()
    for words, says in (
        (["seed=2"], "seed: 1 -> 2). Set run.name to another name"),
        (["ckpt_path=null"], "holds a run already"),
        (["ckpt_path=last", "seed=2"], "another seed"),
    ):
        status, printed = neuro(*SMALL, "run.name=once", *words)
        assert status == 2
        assert says in printed
    # A plan for a run that is there changes nothing of it.
    assert neuro(*SMALL, "run.name=once", "plan=true", "seed=3")[0] == 0
    status, printed = neuro(*SMALL, "run.name=once")
    assert status == 0
    assert "once is done: its figures are in metrics.json" in printed
    assert (root / "outputs/llava_mri/once/metrics.json").read_bytes() == before


def test_steps_after_the_last_validation_are_saved(neuro, root):
    status, printed = neuro(*SMALL, "run.name=odd", "trainer.max_steps=5")
    assert status == 0, printed
    last = torch.load(root / "outputs/llava_mri/odd/checkpoints/last.ckpt")
    assert last["global_step"] == 5


def test_a_plan_stops_before_training(neuro, root):
    status, printed = neuro(*SMALL, "run.name=plan", "plan=true")
    assert status == 0, printed
    assert "studies" in printed
    assert not (root / "outputs/llava_mri/plan/checkpoints").exists()


def test_bids_questions_become_studies(neuro, phantom_root):
    status, printed = neuro(
        "data=bids",
        f"data.root={phantom_root}",
        "data.questions=[sex]",
        "run.name=bids",
        "plan=true",
    )
    assert status == 0, printed


def damaged(bids, how):
    root = bids()
    scan = root / "sub-0003/anat/sub-0003_T1w.nii.gz"
    content = scan.read_bytes()
    if how == "missing":
        scan.unlink()
        scan.symlink_to("nowhere.nii.gz")
    elif how == "empty":
        scan.write_bytes(b"")
    elif how == "cut off":
        scan.write_bytes(content[: len(content) // 2])
    elif how == "no image":
        scan.write_bytes(gzip.compress(b"this is not a scan"))
    return root


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("missing", "no such file"),
        ("empty", "0 bytes"),
        ("cut off", "cannot be read"),
        ("no image", "cannot be read"),
    ],
)
def test_a_bad_scan_is_one_line_with_its_path(neuro, bids, how, says):
    root = damaged(bids, how)
    status, printed = neuro(
        "data=bids",
        f"data.root={root}",
        "data.questions=[sex]",
        "run.name=bad",
        "plan=true",
        "data.max_failed=0.0",
    )
    assert status == 2
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "sub-0003_T1w.nii.gz" in line]
    assert says in line


def test_a_tolerated_bad_scan_is_left_out_and_listed(neuro, bids, root):
    status, printed = neuro(
        "data=bids",
        f"data.root={damaged(bids, 'empty')}",
        "data.questions=[sex]",
        "run.name=left",
        "plan=true",
        "data.max_failed=0.2",
    )
    assert status == 0, printed
    assert "sub-0003" in (root / "cache/failures.tsv").read_text()


def test_by_default_one_scan_in_twenty_may_be_bad_and_two_may_not(neuro, bids):
    root = damaged(bids, "empty")
    words = ["data=bids", f"data.root={root}", "data.questions=[sex]", "plan=true"]
    status, printed = neuro(*words, "run.name=one")
    assert status == 0, printed
    assert printed.count("left out: ") == 1
    (root / "sub-0008/anat/sub-0008_T1w.nii.gz").write_bytes(b"")
    status, printed = neuro(*words, "run.name=two")
    assert status == 1
    assert "2 of 20 scans cannot be used; data.max_failed=0.05 allows 1" in printed


def test_more_bad_scans_than_tolerated_is_a_failed_run(neuro, bids):
    status, printed = neuro(
        "data=bids",
        f"data.root={damaged(bids, 'empty')}",
        "data.questions=[sex]",
        "run.name=many",
        "plan=true",
        "data.max_failed=0.01",
    )
    assert status == 1
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sytem=jepa"], "did you mean 'system'"),
        (["root=/x"], "did you mean 'data.root'"),
        (["data=nope"], "there is bids, conversations"),
        (["data.root=/a (1)/é"], "write 'data.root=\"/a (1)/é\"'"),
        (["data.same_modalities=maybe"], "data.same_modalities must be true or false"),
        (["data.max_studis=3"], "did you mean 'data.max_studies'"),
        (["system=jeppa"], "llava_mri"),
        (["data=bids", "data.questions=[sex]"], "data.root"),
        (["data=bids", "data.root=/nowhere", "data.questions=[sex]"], "not a folder"),
        (["data=bids", "data.root=PHANTOM", "data.questions=[handedness]"], "no column"),
        (["data=bids", "data.root=PHANTOM", "data.questions=[split]"], "no template"),
        (["data.recipes.T1.patch=[10,10,10]"], "multiple of the patch"),
        (["data.recipes.T1.percentiles=null"], "percentiles or window"),
        (["data.max_length=40"], "data.max_length"),
        (["data.max_tokens=10"], "data.max_tokens"),
        (["data.min_foreground=2.0"], "data.min_foreground"),
        (["data.max_failed=-1.0"], "data.max_failed"),
        (["data.datamodule.colour=red"], "colour"),
        (["ckpt_path=/nowhere/last.ckpt"], "ckpt_path"),
        (["ckpt_path=PHANTOM/participants.tsv"], "not a checkpoint"),
        (["data.questions=[]"], "has no conversation"),
        (["data.questions=sex"], "data.questions must be a list"),
        (["data.split.val=0.4"], "no config key 'data.split.val'"),
        (["data.splits.val=0.9", "data.splits.test=0.2"], "data.splits.val"),
        (["data.fold=5"], "data.fold=5 must be one of 0 to 4"),
        (["data.patch_drop_rate=1.0"], "data.patch_drop_rate"),
        (["data.min_foreground=most"], "any, majority, all"),
        (["data.window_probabilities.brain=-1.0"], "window_probabilities"),
        (["data.weights={phantom: 2.0}"], "data.weights names phantom"),
        (["data.stride_within_seq=0"], "data.stride_within_seq"),
        (["data.stride_within_seq=9"], "data.stride_within_seq=9 spans"),
        (["data.augment.gamma=-1.0"], "data.augment.gamma"),
        (["seed=-1"], "seed must be"),
        (["seed=abc"], "seed must be"),
        (["run.name=../elsewhere"], "plain name"),
        (["trainer.precision=bf17"], "precision"),
        (["trainer.max_steps=abc"], "trainer.max_steps must be a whole number"),
        (["trainer.max_steps=0"], "trainer.max_steps=0 trains nothing"),
        (["trainer.max_steps=-1"], "train for ever"),
        (["optim.lr=fast"], "optim.lr must be a number"),
        (["system.max_new_tokens=1"], "system.max_new_tokens"),
        (["paths.cache_dir=PHANTOM/participants.tsv"], "participants.tsv"),
        (["model=llava_15_7b", "system.text.tokenizer.name=/nowhere"], "cannot be loaded"),
    ],
)
def test_a_mistake_is_one_line_with_its_cure(neuro, phantom_root, overrides, says):
    given = [one.replace("PHANTOM", str(phantom_root)) for one in overrides]
    tiny = [] if "model=llava_15_7b" in given else SMALL
    if any(one.startswith("data=bids") for one in given):
        tiny = [one for one in SMALL if "num_subjects" not in one]
    status, printed = neuro(*tiny, "run.name=mistake", *given)
    assert status == 2, printed
    assert "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert says.lower() in line.lower()


def test_an_unknown_modality_is_named(neuro, phantom_root, tmp_path):
    record = {
        "task_id": "a",
        "subject_ids": ["1"],
        "images": [{"path": "x.nii.gz", "token": "<image>", "modality": "PET"}],
        "conversations": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "this"}]},
        ],
    }
    file = tmp_path / "talk.json"
    file.write_text(json.dumps([record]))
    status, printed = neuro(
        "data=conversations",
        f"data.root={phantom_root}",
        f"data.conversations={file}",
        "run.name=pet",
    )
    assert status == 2
    assert "Traceback" not in printed
    assert "PET" in printed
    assert "rsfmri" in printed


def test_help_answers_without_loading_torch():
    code = "import sys, neuro.train; assert not {'torch', 'lightning', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Every key is read by something, and a key that nothing reads is refused (D68, D69).


def every(group):
    folder = command.CONF / group.split("@")[0]
    return sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "base")


@pytest.mark.parametrize("name", every("encoder"))
def test_every_encoder_composes(name):
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=["system=jepa", f"encoder={name}", "paths.run_dir=x"])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={name}"
        for group in (
            "system",
            "model",
            "system=mil pool",
            "system=mil tuning",
            "experiment",
            "data",
            "splits@data.splits",
            "recipe@data.recipes.mri",
            "collate",
            "optim",
            "trainer",
            "callbacks",
            "logger",
        )
        for name in every(group.split()[-1])
    ],
)
def test_every_config_composes(override):
    root = ["data.root=x", "data.questions=[sex]"]
    needed = {
        "data=phantom": root,
        "data=phantom_fine": root,
        "data=bids": root,
        "data=studies": root,
        "experiment=jepa_bids_t1": root,
        "experiment=llava_mri_ds002748": root,
        "experiment=jepa_vitb_clinical": root,
        "experiment=llava_mri_jepa_eye": [*root, "system.vision.init_from=x"],
        "experiment=mil_phantom_frozen": [*root, "system.encoder_from=x"],
        "experiment=mil_bids_t1": [*root, "data.label=sex"],
        "experiment=mil_ct_multilabel": [
            *root,
            "data.label=[a,b]",
            "data.labels.file=x",
            "system.encoder_from=x",
        ],
        "data=conversations": [*root, "data.conversations=x"],
        "data=manifest": [*root, "data.manifest=x"],
        "data=mixed": ["data.cohorts={a: {_target_: some.Cohort}}"],
        "splits@data.splits=listed": ["data.splits={train: [], val: [], test: []}"],
    }
    given = needed.get(override, [])
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*override.split(), *given, "paths.run_dir=x"])
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    command.resolve(cfg)  # no value is of a type that its constructor does not take


def test_every_knob_of_the_data_is_read_by_the_wiring():
    sources = "".join(path.read_text() for path in command.CONF.rglob("*.yaml"))
    for path in (command.CONF / "data").glob("*.yaml"):
        for key in OmegaConf.load(path):
            if key not in ("defaults", "datamodule"):
                assert f"${{data.{key}}}" in sources, f"{path.name}: nothing reads data.{key}"


@pytest.mark.slow
def test_two_devices_train_and_test_without_being_told_how(root):
    """Modalities that a batch does not show have no gradient there, and DDP must be told."""
    words = [f"paths.root={root}", *SMALL, *TINY, "data.max_studies=3", "run.name=two"]
    command_line = [sys.executable, "-m", "neuro.train", *words, "trainer.devices=2"]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((root / "outputs/llava_mri/two/metrics.json").read_text())
    assert {"train/loss", "val/loss", "test/exact_match"} <= metrics.keys()
