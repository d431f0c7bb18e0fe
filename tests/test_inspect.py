"""What the page shows is what training gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from small_llava import qwen_tokenizer, volume_llava

from neuro.command import CONF
from neuro.data.augment import IDENTITY, Augment, Draw
from neuro.data.bids import BidsFolder
from neuro.data.cohort import ConversationCohort
from neuro.data.collate import Background, ConversationCollator
from neuro.data.conversation import Image, write_conversations
from neuro.data.datamodule import StudyDataModule
from neuro.data.question import conversation_about
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.windows import Windows
from neuro.errors import InputError
from neuro.inspect import examples_of, in_words, inspect, spelled

ROOT = Path(__file__).parents[1]
NAMES = {"T1": "sex", "dMRI": "tract", "rsfMRI": "dropout"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("inspect")


@pytest.fixture
def config(root, monkeypatch):
    """Return a function that composes a config of a small phantom and an untaught tiny model."""
    # It takes over the screen, which belongs to pytest.
    monkeypatch.setattr("neuro.console.set_up_logging", lambda path: None)

    def config(*words):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(
                "inspect",
                [
                    f"paths.root={root}",
                    f"output={root / 'page.html'}",
                    "data.num_subjects=20",
                    "data.max_studies=6",
                    *words,
                ],
            )
        return cfg

    return config


class Seeing(torch.nn.Module):
    """What is asked of a system here: a model and what its ids are made by."""

    def __init__(self, llava, text):
        super().__init__()
        self.llava, self.text = llava, text


@pytest.fixture
def parts(phantom_root, question_book, recipes, texts, kind, root):
    """A data module and a system; studies show one image, or two that lie side by side."""
    folder = BidsFolder(phantom_root)
    images = {
        (scan.subject, scan.modality): Image(
            path=str(scan.path.relative_to(phantom_root)),
            modality=scan.modality,
            subject=scan.subject,
        )
        for scan in folder.scans
    }
    talks = [
        conversation_about(
            study_id=f"{subject}.{'-'.join(shown)}",
            name=NAMES[shown[-1]],
            ask=question_book[NAMES[shown[-1]]].ask,
            answer=question_book[NAMES[shown[-1]]].answer(row[NAMES[shown[-1]]], where=subject),
            images=[images[subject, one] for one in shown],
            split=row["split"],
        )
        for subject, row in sorted(folder.participants.items())
        for shown in (("T1",), ("dMRI",), ("rsfMRI",), ("dMRI", "T1"))
    ]
    write_conversations(root / "talks.json", talks)
    datamodule = StudyDataModule(
        cohort=ConversationCohort(
            phantom_root, root / "talks.json", SubjectSplits(val=0.1, test=0.1)
        ),
        recipes=recipes,
        cache_dir=root / "small_cache",
        collate=ConversationCollator(
            texts[kind], Background(min_foreground=0.05, patch_drop_rate=0.3)
        ),
        budget=BatchBudget(max_studies=6, max_tokens=10_000),
        augment=Augment(flip_left_right=1.0),
        windows=Windows(stride_between_seq=None),
        max_failed=0.0,
        num_workers=0,
        seed=3,
    )
    datamodule.prepare_data()
    return datamodule, Seeing(volume_llava(kind, texts[kind], recipes), texts[kind])


def test_an_example_is_a_row_of_a_batch_of_the_first_epoch(parts):
    datamodule, system = parts
    batches = list(datamodule.train_dataloader())
    examples = examples_of(datamodule, system, num=8)
    assert len(examples) == 8
    assert {one.task for one in examples} == {*NAMES.values()}
    assert max(len(one.images) for one in examples) == 2
    assert {one.batch for one in examples} == {1, 2}  # six studies each
    for one in examples:
        batch = batches[one.batch - 1]
        row = one.row - 1
        assert batch.study_ids[row] == one.study_id
        labels, ids = batch.labels[row], batch.input_ids[row]
        spoken = [part for part in one.parts if part.kind == "learned"]
        learned = [place for part in spoken for place in range(part.start, part.stop)]
        assert learned == torch.nonzero(labels != -100).flatten().tolist()
        assert one.count() == len(ids)
        assert one.count("padding") == int((batch.attention_mask[row] == 0).sum())
        assert one.count("image") == int((ids == system.text.image_id).sum())
        assert one.fits
        first = sum(batch.num_images_per_sample[:row])
        for image, (modality, place) in zip(one.images, batch.images[first:], strict=False):
            assert image.modality == modality
            assert image.num_kept == int(batch.volumes[modality].bounds.diff()[place])
            assert "flipped" in image.draw
        answer = "".join(token for part in spoken for token in part.tokens).strip()
        study = next(study for study in datamodule.studies["train"] if study.id == one.study_id)
        assert answer.startswith(study.conversation.turns[-1].text)
        assert one.raw.count("<image>") == len(one.images) == len(study.series)
        assert study.conversation.turns[0].text.strip() in one.raw


def test_a_study_is_shown_in_its_own_batch(parts):
    datamodule, system = parts
    batches = list(datamodule.train_dataloader())
    wanted = batches[-1].study_ids[-1]
    (one,) = examples_of(datamodule, system, num=4, study=wanted)
    assert (one.study_id, one.batch, one.row) == (wanted, len(batches), len(batches[-1]))


def test_a_study_that_is_not_trained_on_is_an_error(parts):
    datamodule, system = parts
    with pytest.raises(InputError, match="study=nobody is not in the train split"):
        examples_of(datamodule, system, num=4, study="nobody")


@pytest.mark.slow
def test_the_page_is_one_file_without_labels_that_only_metadata_hold(config, monkeypatch):
    plain = ConversationCollator.__call__

    def told(self, items):
        for item in items:
            item.study.conversation.metadata["secret"] = "tumour-7"
        return plain(self, items)

    monkeypatch.setattr(ConversationCollator, "__call__", told)
    html = inspect(config("num=2", "system.llava.steps=1")).read_text()
    assert html.count('<section class="example">') == 2
    assert len(html) < 500_000
    assert "://" not in html
    assert "tumour-7" not in html


def test_a_system_without_conversations_is_an_error(config):
    with pytest.raises(InputError, match="shown no conversations"):
        inspect(config("experiment=jepa_phantom"))


@pytest.mark.parametrize("num", ["0", "many", "1.5"])
def test_a_number_that_is_none_is_an_error(config, num):
    with pytest.raises(InputError, match=f"num={num} must be a whole number"):
        inspect(config(f"num={num}"))


def test_a_letter_of_several_bytes_is_whole_in_the_text_and_in_pieces_in_the_chips():
    tokenizer = qwen_tokenizer()
    ids = tokenizer.encode("ü a", add_special_tokens=False)
    chips = [spelled(tokenizer, one) for one in ids]
    assert chips[2:] == [" ", "a"]
    assert all(chip and "\ufffd" not in chip for chip in chips)


def test_what_was_drawn_is_told_in_words():
    assert in_words(IDENTITY) == ""
    draw = Draw(
        crop=((0, 3), (1, 4), (2, 4)),
        flips=(True, False, False),
        transpose=True,
        intensity=(1.2, 1.0, 0.0, 0.05),
    )
    assert in_words(draw) == (
        "cropped to tokens 0 to 2, 1 to 3, 2 to 3, flipped along depth, height and width "
        "exchanged, gamma 1.20, noise 0.05"
    )


def test_help_is_there_at_once_and_inspect_of_python_is_still_itself():
    code = "import inspect, neuro.inspect; assert inspect.signature(neuro.inspect.main)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "neuro.inspect", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "neuro.inspect shows what a model is trained on" in done.stdout
    assert "torch" not in {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
