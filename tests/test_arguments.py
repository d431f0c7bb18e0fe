"""What Hydra cannot read or does not know is told with what to type instead."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args
from hydra.core.override_parser.overrides_parser import OverridesParser

from neuro.arguments import (
    PLACES,
    added_twice,
    ambiguous,
    given,
    no_name_of_an_option,
    no_option,
    recipe_of,
    split_places,
    unknown,
    unreadable,
    written,
)


def cured(message):
    """Return the word that a message says to write, as a shell would hand it on."""
    (word,) = shlex.split(message.partition("rite ")[2].rstrip("."))
    return word


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("data.root=/tmp/é", "/tmp/é"),
        ("data.root=/tmp/a (1)/b", "/tmp/a (1)/b"),
        ("data.root=/tmp/a=b", "/tmp/a=b"),
        ("data.root=~/x", "~/x"),
        ("data.root=it's", "it's"),
        ('data.root=a"b;', 'a"b;'),
        ("data.root=é\\", "é\\"),
        ("data.label=[Größe,a]", ["Größe", "a"]),
        ("data.mode_mapping={*[ab]*: ct}", {"*[ab]*": "ct"}),
        ('data.mode_mapping={"ct-*": ct}', {"ct-*": "ct"}),
    ],
)
def test_the_cure_of_a_word_can_be_read_and_means_what_was_typed(word, value):
    override = OverridesParser.create().parse_override(cured(unreadable([word])))
    assert override.key_or_group == word.partition("=")[0]
    assert override.value() == value


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["foo"], "'foo' is not of the form key=value"),
        (["data.root=/a", "b"], "write 'data.root=\"/a b\"'"),
        (["é=3"], "'é' is not a key"),
        (['data.root="a'], "cannot be read"),
        (["data.mode_mapping={é*: ct}"], "names of a mapping cannot be quoted"),
    ],
)
def test_a_word_without_a_cure_is_told_with_the_rule(words, says):
    assert says in unreadable(words)


@pytest.mark.parametrize(
    "word", ["data.root=/a b", "data.mode_mapping={*/ct-*: ct}", "data.root=", "~callbacks.probe"]
)
def test_what_hydra_reads_is_not_spoken_of(word):
    assert unreadable([word]) is None


def test_a_comma_is_a_text_or_a_list_or_several_runs():
    message = ambiguous(["seed=1", "data.questions=sex,age"])
    assert "'data.questions=\"sex,age\"'" in message
    assert "'data.questions=[sex,age]'" in message
    assert "-m" in message


@pytest.mark.parametrize(
    ("key", "words", "says"),
    [
        ("root", (), "Did you mean 'data.root'"),
        ("data.max_studis", (), "Did you mean 'data.max_studies'?"),
        ("lr", (), "Did you mean 'optim.lr'?"),
        ("data.split.val", (), "Did you mean 'data.splits.val'?"),
        ("system.encoder.depht", ("system=jepa", "encoder=custom"), "no config key"),
        ("system.encoder.head", ("system=jepa", "encoder=custom"), "'system.encoder.num_heads'"),
        ("data.manifest", (), "It is a key of data=manifest"),
        ("trainer.limit_train_batches", (), "with a plus: +trainer.limit_train_batches=..."),
        ("data.recipes", ("data.recipes={pet: 1}",), "'+data.recipes={pet: 1}'"),
        ("data.splits.train", (), "a key of splits@data.splits=listed: add that"),
        (
            "data.weights.oslo",
            ("data.weights.oslo=0.5",),
            "data.weights is null, and has no oslo. Write +data.weights.oslo=0.5",
        ),
    ],
)
def test_an_unknown_key_is_told_with_the_one_that_may_be_meant(key, words, says):
    assert says in unknown(key, words, "train")


def test_the_keys_of_the_command_itself_are_known():
    assert "Did you mean 'max_pictures'?" in unknown("max_picture", (), "prepare")


def test_a_group_without_such_an_option_names_those_it_has():
    message = no_option("system", "jeppa", ["jepa", "llava_mri"])
    assert (
        message == "there is no system=jeppa; there is jepa, llava_mri. Did you mean system=jepa?"
    )


def test_a_group_that_was_typed_with_its_place_is_cured_with_it():
    words = ["recipe@data.recipes.ct=clinical_ct", "recipe@data.recipes.T1=cubet1"]
    message = no_option("recipe", "cubet1", ["cube_fa", "cube_t1"], words)
    assert message.endswith("Did you mean recipe@data.recipes.T1=cube_t1?")


def test_a_number_for_a_group_names_its_options():
    message = no_name_of_an_option(["seed=1", "data.label=[a]", "data=5"])
    assert message.startswith("there is no data=5; there is bids, ")
    assert no_name_of_an_option(["data=bids", "seed=5"]) is None


def test_a_choice_is_changed_without_a_plus():
    message = added_twice("experiment", ["seed=1", "+experiment=both"])
    assert message.endswith("Write experiment=both to change it")
    assert added_twice("experiment", ["experiment=both"]) is None


def test_the_usual_recipe_of_a_modality_is_offered_where_it_takes_the_key():
    assert recipe_of("T1", "shape") == "recipe@data.recipes.T1=cube_t1"
    assert recipe_of("mri", "shape") is None
    assert recipe_of("pet", "shape") is None


def test_the_value_of_an_option_is_no_word(monkeypatch):
    line = "train.py --cfg job system=mil --config-dir mine -cn train seed=2 --help"
    monkeypatch.setattr("sys.argv", line.split())
    assert given() == ["system=mil", "seed=2"]


@pytest.mark.parametrize("name", [*PLACES, *PLACES.values()])
@pytest.mark.parametrize("form", ["{}=/a=b", "{} /a=b"])
@pytest.mark.parametrize("place", range(4))
def test_where_the_config_is_comes_first_as_hydra_wants_it(name, form, place, monkeypatch):
    others = ["-m", "system=mil", "seed=2"]
    words = [*others[:place], *form.format(name).split(), *others[place:]]
    places, left = split_places(words)
    assert (places, left) == ([f"{name}=/a=b"], others)
    read = vars(get_args([*places, *left]))
    assert "/a=b" in (read["config_dir"], read["config_name"], read["config_path"])
    assert (read["multirun"], read["overrides"]) == (True, others[1:])
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    assert given() == others[1:]


@pytest.mark.parametrize(
    ("signs", "length"), [("\"'\\,=([{#&~é :;$*?1e/.\n", 1), ("\"'\\a", 4), ("\\ ,[", 2)]
)
def test_every_text_can_be_written_as_a_value(signs, length):
    for parts in itertools.product(signs, repeat=length):
        text = "".join(parts)
        assert parsed(written(text)) == text
        assert parsed(written(f"/a{text}b")) == f"/a{text}b"


@pytest.mark.parametrize("text", ["", "null", "True", "1_0", "1e5", "a,b", "[a]", "{a: 1}"])
def test_a_text_that_reads_as_something_else_is_written_in_quotes(text):
    assert parsed(written(text)) == text


def parsed(value):
    override = OverridesParser.create().parse_override(f"key={value}")
    assert not override.is_sweep_override()
    return override.value()


def test_a_plain_path_is_written_as_it_is():
    assert written("/a/b-c_d.e/1+2.ckpt") == "/a/b-c_d.e/1+2.ckpt"


TELLS = "import json\nfrom neuro.arguments import program\nprint(json.dumps(program()))\n"
NODE = (
    "import sys\nfrom pathlib import Path\nfrom neuro.launchers import Command\n"
    "Command(sys.argv[1:], ['seed=1'], Path('none.log'))()\n"
)


@pytest.mark.parametrize("told", [["tells.py"], ["-m", "own.tells"]])
@pytest.mark.parametrize("before", [[], ["-m", "own.node"]], ids=["here", "on a node"])
def test_the_program_is_what_python_was_told_to_run(tmp_path, told, before):
    """On a node the main module is submitit's, until runpy puts the job in its place."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/node.py").write_text(NODE)
    for name in ("tells.py", "own/tells.py"):
        (tmp_path / name).write_text(TELLS)
    done = subprocess.run(
        [sys.executable, *before, *told],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == told
