"""Which recipe a series gets: one syntax in YAML and on a command line, and no pattern in vain."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from neuro.command import CONF
from neuro.data.bids_cohort import BidsCohort
from neuro.data.modes import HOW, Modes, unknown_modality
from neuro.data.question import QuestionBook
from neuro.data.splits import SubjectSplits
from neuro.data.study_folders import StudyFolders
from neuro.data.table_cohort import TableCohort
from neuro.errors import InputError


def typed(*words, data="studies"):
    """Return the mapping of a config that such words make, as a shell hands them over."""
    words = shlex.split(" ".join(words))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={data}", *words])
    return Modes(mapping=cfg.data.mode_mapping, default=cfg.data.default_mode)


@pytest.mark.parametrize("data", ["studies", "manifest"])
@pytest.mark.parametrize(
    "word",
    [
        "'data.mode_mapping={*/loc*: none, ct-*: ct}'",
        "'+data.mode_mapping={*/loc*: none, ct-*: ct}'",
        '\'data.mode_mapping=["*/loc*: none", "ct-*: ct"]\'',
    ],
)
def test_a_mapping_is_typed_as_one_or_as_a_list_with_or_without_a_plus(word, data):
    modes = typed(word, data=data)
    assert [modes.of("ct-1", one, "") for one in ("localizer", "T1")] == ["none", "ct"]
    assert modes.of("b", "T1", "MR") == "mri"


def test_nothing_is_mapped_by_default():
    assert typed().mapped("a", "b") is None


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("*/[ab]-*", "a-1"),
        ("*/[!a]x", "bx"),
        ("*/T1 (2)*", "T1 (2) mprage"),
        ("*/Schädel*", "Schädel"),
        ("*/a:b", "a:b"),
        ("*/a=b,c", "a=b,c"),
        ("2020_01", "T1"),
        ("*/{x}", "{x}"),
    ],
)
def test_a_list_carries_whatever_a_pattern_holds(pattern, name):
    modes = typed(f"'data.mode_mapping=[\"{pattern}: ct\"]'")
    assert modes.of("2020_01", name, "") == "ct"
    assert modes.of("2020_02", "other", "") is None


def test_what_the_errors_show_can_be_typed():
    words = re.findall(r"'data\.mode_mapping=.*?'", HOW)
    assert len(words) == 2
    assert typed(words[0]).of("a", "localizer 1", "") == "none"
    assert typed(words[1]).of("a", "b-1", "") == "ct"
    for study in ("s", "a[1]", "2020_01", "Müller, K."):
        failure = unknown_modality(Path("x"), study, "T1", "")
        (word,) = re.findall(r"'data\.mode_mapping=.*?'", failure.cure)
        assert typed(word).of(study, "T1", "") == "mri"
        (word,) = re.findall(r"data\.default_mode=\w+", failure.cure)
        assert typed(word).of(study, "T1", "") == "mri"
        failure = unknown_modality(Path("x"), study, "T1", "PT")
        (word,) = re.findall(r"'data\.mode_mapping=.*?'", failure.cure)
        assert typed(word).of(study, "T1", "PT") == "none"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ("ct", r"takes patterns with a modality each; got 'ct'\. Write 'data\.mode_mapping=\{"),
        (["ct"], "an entry of a list is a text, PATTERN: MODALITY; got 'ct'"),
        ([{"a": "ct"}], "an entry of a list is a text, PATTERN: MODALITY; got {'a': 'ct'}"),
        (["a: "], "'a' must have a modality, or none; got ''"),
        ({"a": 3}, "'a' must have a modality, or none; got 3"),
        ({202001: "ct"}, r"""got 202001.*'data\.mode_mapping=\["2020_01: ct"\]'"""),
    ],
)
def test_a_mapping_that_is_none_is_told_with_what_to_type(mapping, message):
    with pytest.raises(InputError, match=message) as caught:
        Modes(mapping=mapping)
    assert "\n" not in str(caught.value)


def test_the_first_pattern_that_fits_decides_then_the_files_then_the_default():
    modes = Modes(mapping={"a": "T1", "*/x": None}, default="ct")
    assert modes.of("a", "x", "MR") == "T1"
    assert modes.of("b", "x", "MR") == "none"
    assert modes.of("b", "y", "MR") == "mri"
    assert modes.of("b", "y", "PT") is None
    assert modes.of("b", "y", "") == "ct"


def test_a_pattern_that_decides_about_no_series_is_named(said):
    modes = Modes(mapping={"a/*": "ct", "a/x": "mri", "b/*": "ct"})
    modes.of("a", "x", "")
    modes.warn_of_unused("a")
    assert "'a/x', 'b/*' fits no series, or another pattern before it" in said.text
    assert "for example the study 'a'" in said.text
    said.clear()
    used = Modes(mapping={"a/*": "ct"})
    used.of("a", "x", "")
    used.warn_of_unused("a")
    assert not said.text


def test_a_mapping_that_is_none_is_told_with_how_to_write_one():
    with pytest.raises(InputError, match=r"data\.mode_mapping takes patterns.*; got 5\. Write"):
        Modes(mapping=5)


def test_what_leaves_everything_out_is_named(tmp_path):
    def save(path):
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)

    splits, modes = SubjectSplits(val=0.2, test=0.2), Modes(mapping={"*": "none"})
    save(tmp_path / "bids" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    bids = BidsCohort(tmp_path / "bids", [], QuestionBook({}), splits, modalities=["T2"])
    with pytest.raises(InputError, match=r"data\.modalities=\['T2'\] leaves .* has T1\. Take"):
        bids.manifest()
    save(tmp_path / "root" / "a" / "t1.nii.gz")
    with pytest.raises(InputError, match=r"data\.mode_mapping leaves out all 1 series"):
        StudyFolders(tmp_path / "root", modes, splits).manifest()
    table = tmp_path / "scans.csv"
    table.write_text("path\na/t1.nii.gz\n")
    with pytest.raises(InputError, match=r"data\.mode_mapping leaves out all 1 series"):
        TableCohort(table, tmp_path / "root", modes, splits).manifest()
