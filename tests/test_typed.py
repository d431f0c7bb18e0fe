"""Wrong types in a config are told before anything is built, by the keys that set them."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from work import num_calls

from neuro import command, typed
from neuro.errors import InputError


@pytest.fixture(scope="module")
def check():
    """Compose a config and check its types."""

    def call(*words):
        with initialize_config_dir(str(command.CONF), version_base="1.3"):
            cfg = compose("train", overrides=["paths.run_dir=x", *words])
        raw = OmegaConf.to_container(cfg, resolve=False)
        OmegaConf.resolve(cfg)
        typed.check(raw, OmegaConf.to_container(cfg), words=words)

    return call


WRONG = {
    "plan=maybe": "plan must be true or false",
    "seed=true": "seed must be a whole number",
    "ckpt_path=3": "ckpt_path must be a path or null",
    "data.max_failed=a": "data.max_failed must be a number",
    "data.num_workers=a": "data.num_workers must be a whole number",
    "data.weights={a: x}": "data.weights.a must be a number",
    "data.same_modalities=maybe": "data.same_modalities must be true or false",
    "data.max_studies=2.5": "data.max_studies must be a whole number",
    "data.fold=a": "data.fold must be a whole number or null",
    "data.root=null": "data.root must be a path",
    "data.datamodule.windows=3": "data.datamodule.windows must be the settings of Windows",
    "optim.lr=[1]": "optim.lr must be a number",
    "trainer.max_epochs=a": "trainer.max_epochs must be a whole number",
    "trainer.precision=bf17": "trainer.precision must be one of",
}


def test_all_wrong_values_are_told_at_once_by_the_keys_that_the_user_typed(check):  # D70
    with pytest.raises(InputError) as error:
        check(*WRONG)
    first, *lines = (line.strip() for line in str(error.value).splitlines())
    assert first == f"{len(WRONG)} values have a wrong type:"
    for says in WRONG.values():
        assert len([line for line in lines if line.startswith(says)]) == 1, says
    assert len(lines) == len(WRONG)


def test_one_wrong_value_is_one_line(check):
    with pytest.raises(InputError) as error:
        check("data.weights=[1,2]")
    assert str(error.value).startswith("data.weights must be a mapping")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.splits=null", "data.splits must be the settings of Splits; got null. Do not"),
        ("data.recipes=null", "data.recipes must be a mapping"),
        ("data.recipes.mri=null", "data.recipes.mri must be a mapping; got null. To leave it out"),
        ("data.recipes.mri=5", "data.recipes.mri must be a mapping; got 5. Set the keys below it"),
        ("data.datamodule.cohort=null", "data.datamodule.cohort must be the settings of Cohort"),
        ("run.name=2020_01", "run.name must be a text or null; got 202001."),
        ("+data.weights={2020_01: 0.5}", "data.weights takes names; got 202001"),
    ],
)
def test_what_would_fail_when_it_is_built_is_told_before(check, word, says):
    with pytest.raises(InputError) as error:
        check(word)
    assert str(error.value).startswith(says)


def test_a_cohort_that_is_switched_off_with_null_is_told_with_the_word_that_does_it(check):
    cohort = "_target_: neuro.data.cohort.ConversationCohort, root: a, conversations: b"
    whole = f"{{{cohort}, splits: '${{data.splits}}'}}"
    check("data=mixed", f"data.cohorts={{a: {whole}, hospital: {whole}}}")
    with pytest.raises(InputError, match=r"data\.cohorts\.hospital .* '~data\.cohorts\.hospital'"):
        check("data=mixed", f"data.cohorts={{a: {whole}, hospital: null}}")
    with pytest.raises(
        InputError, match=r"data\.cohorts\.a\.splits must be the settings of Splits"
    ):
        check("data=mixed", f"data.cohorts={{a: {{{cohort}, splits: null}}}}")


def test_the_name_of_a_run_is_text_and_its_cure_is_read_as_such(check):
    with pytest.raises(InputError) as error:
        check("run.name=2020_01")
    (word,) = shlex.split(str(error.value).partition("Write ")[2].removesuffix("."))
    assert word == 'run.name="2020_01"'
    check(word)


def test_what_a_constructor_takes_is_not_refused(check):
    check(
        "trainer.precision=32",
        "trainer.devices=[0]",
        "trainer.gradient_clip_val=null",
        "trainer.val_check_interval=0.5",
        "+trainer.max_time={hours: 1}",
        "optim.lr=1",
        "data.splits.val=0",
        "data.min_foreground=any",
        "data.label=[sex,age]",
        "data.weights={a: 1}",
        "+callbacks.checkpoint.save_last=link",
    )
    check("trainer.devices=auto", "data.label=sex", "data.min_foreground=0.1")


def test_a_target_that_cannot_be_found_is_left_to_the_one_who_builds_it():
    config = {"part": {"_target_": "nowhere.Thing", "size": "x"}}
    typed.check(config, config)


def test_only_what_will_be_built_is_imported():
    """The command that prepares scans waits for no trainer."""
    code = (
        "import sys\n"
        "from hydra import compose, initialize_config_dir\n"
        "from neuro import command, prepare\n"
        "with initialize_config_dir(str(command.CONF), version_base='1.3'):\n"
        "    cfg = compose('prepare', overrides=['paths.run_dir=x'])\n"
        "command.resolve(cfg, prepare.PARTS)\n"
        "assert 'lightning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_check_of_twice_as_many_settings_is_twice_the_work():
    splits = {"_target_": "neuro.data.splits.Splits", "val": "${val}", "test": 0.1}
    works = []
    for count in (20, 40, 80):
        raw = {"val": 0.2, "cohorts": {f"c{number}": splits for number in range(count)}}
        resolved = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
        typed.check(raw, resolved)  # imports
        works.append(num_calls(typed.check, raw, resolved))
    assert works[2] - works[1] <= 2.1 * (works[1] - works[0])
