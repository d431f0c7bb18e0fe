"""A few questions are asked while a model learns, and it learns as if they had not been."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from neuro.callbacks.answer_samples import AnswerSamples, spread
from neuro.data.answers import Answer
from neuro.data.augment import Augment
from neuro.data.bids_cohort import BidsCohort
from neuro.data.collate import Background, ConversationCollator
from neuro.data.datamodule import StudyDataModule
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.windows import Windows
from neuro.errors import InputError
from neuro.optim.schedules import warmup_cosine
from neuro.systems.base import System

TASKS = ("sex", "tract", "dropout")
SETTINGS = {"max_steps": 6, "limit_val_batches": 0, "val_check_interval": None}


def seed(number):
    torch.manual_seed(number)
    np.random.seed(number)


class Parrot(System):
    """Learns something that chance has a say in; says a word with a sign that tables dislike."""

    def __init__(self):
        super().__init__(
            partial(torch.optim.AdamW, lr=1e-2),
            partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
            weight_decay=0.0,
        )
        self.learned = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.frozen = nn.Dropout(0.5)
        self.frozen.requires_grad_(False)
        self.asked, self.modes = [], []
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self

    def on_train_start(self):
        super().on_train_start()
        seed(0)  # here: what is imported for the first time may draw too

    def losses(self, batch):
        self.modes.append([one.training for one in self.modules()])
        tokens = batch.input_ids[:, -4:].float() / 100
        # Not those of Python, of which the shape checks of tests draw themselves.
        chance = torch.rand(()) + float(np.random.rand())
        return {"loss": (self.learned(self.frozen(tokens)) * chance).square().mean()}

    def answer(self, batch):
        assert not any(one.training for one in self.modules())
        assert not torch.is_grad_enabled()
        self.learned(batch.input_ids[:, -4:].float())  # in training it would move the statistics
        self.asked.append(batch.study_ids)
        return [
            Answer(
                study_id=name,
                subject="",
                task=task,
                task_type="single",
                modalities=shown,
                prompt=f"How\nis {name}?",
                target="Left.",
                said=f"left | {torch.rand(())} {np.random.rand()}" if number else "left",
            )
            for number, (name, task, shown) in enumerate(
                zip(batch.study_ids, batch.tasks, batch.modalities, strict=True)
            )
        ]


class Tables(Logger):
    """A logger that takes tables."""

    name, version = "tables", 0

    def __init__(self):
        super().__init__()
        self.told = []

    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.told.append((key, columns, data, step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@pytest.fixture(scope="module")
def scan_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def asked(phantom_root, question_book, recipes, text, scan_cache):
    """Single images of the phantom, with a question about each."""
    return StudyDataModule(
        cohort=BidsCohort(
            phantom_root, list(TASKS), question_book, SubjectSplits(val=0.3, test=0.1)
        ),
        recipes=recipes,
        cache_dir=scan_cache,
        collate=ConversationCollator(text, Background(min_foreground=0.05)),
        budget=BatchBudget(max_studies=4, max_tokens=1000),
        augment=Augment(flip_left_right=0.5),
        windows=Windows(stride_between_seq=None),
        max_failed=0.0,
        num_workers=0,
        seed=3,
    )


@pytest.fixture
def fit(asked, make_trainer, tmp_path):
    """Return a function that trains with samples and gives back the system and the lines."""

    def fit(*, every=2, ckpt_path=None, **settings):
        seed(0)
        system = Parrot()
        samples = AnswerSamples(tmp_path, every_n_steps=every)
        settings = {**SETTINGS, **settings}
        make_trainer(callbacks=[samples], **settings).fit(
            system, datamodule=asked, ckpt_path=ckpt_path
        )
        return system, lines_of(tmp_path)

    return fit


def lines_of(folder):
    path = folder / "samples" / "train.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_same_studies_are_asked_about_at_every_so_many_steps(fit, asked):
    system, lines = fit()
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4 + [6] * 4
    assert len(set(system.asked)) == 1
    assert {*system.asked[0]} <= {*asked.studies["val"].ids}
    assert [line["is_exact"] for line in lines] == [True, False, False, False] * 3
    names = {"step", "study_id", "task", "prompt", "target", "said", "is_exact"}
    assert names <= set(lines[0])


def test_training_goes_on_as_if_nothing_had_been_asked(fit, make_trainer, asked):
    watched, lines = fit(every=1)
    left = torch.rand(()), np.random.rand()
    seed(0)
    alone = Parrot()
    make_trainer(**SETTINGS).fit(alone, datamodule=asked)
    assert len(lines) == 24
    for (name, one), other in zip(
        watched.state_dict().items(), alone.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert watched.modes == alone.modes
    assert left == (torch.rand(()), np.random.rand())


def test_steps_are_counted_not_batches(fit):
    _, lines = fit(max_steps=4, accumulate_grad_batches=3)
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4


def test_a_resumed_run_asks_each_time_once(fit, tmp_path, make_trainer):
    saved = tmp_path / "at4.ckpt"

    class Save(AnswerSamples):
        def on_train_batch_end(self, trainer, *rest):
            super().on_train_batch_end(trainer, *rest)
            if trainer.global_step == 4 and not saved.exists():
                trainer.save_checkpoint(saved)

    whole, lines = fit()
    with (tmp_path / "samples" / "train.jsonl").open("a") as file:
        file.write('{"step": 6, "stu')  # killed while it wrote
    first = Parrot()
    make_trainer(
        callbacks=[Save(tmp_path / "other", every_n_steps=2)], **{**SETTINGS, "max_steps": 5}
    ).fit(first, datamodule=whole.trainer.datamodule)
    _, again = fit(ckpt_path=saved)
    assert [line["step"] for line in again] == [line["step"] for line in lines]


def test_studies_are_spread_over_tasks_and_modalities(asked):
    asked.prepare_data()
    studies = asked.studies["val"]
    for number in (1, 2, 3, 5):
        chosen = [studies[place] for place in spread(studies, number)]
        assert len({study.id for study in chosen}) == number
        counts = [sum(study.conversation.task == task for study in chosen) for task in TASKS]
        assert max(counts) - min(counts) <= 1
    assert len(spread(studies, 1000)) == len(studies)


def test_who_is_chosen_does_not_depend_on_the_order_of_the_studies(asked):
    asked.prepare_data()
    studies = asked.studies["val"]
    turned = studies.take(list(range(len(studies)))[::-1])
    first = {studies.ids[place] for place in spread(studies, 4)}
    assert first == {turned.ids[place] for place in spread(turned, 4)}


def test_loggers_get_what_they_can_take(fit, tmp_path):
    board = TensorBoardLogger(tmp_path / "board", name="", version="")
    tables = Tables()
    _, lines = fit(logger=[board, tables, CSVLogger(tmp_path / "csv")], max_steps=4)
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    texts = events.Tensors("samples/text_summary")
    assert [event.step for event in texts] == [2, 4]
    shown = texts[0].tensor_proto.string_val[0].decode().splitlines()
    assert len(shown) == 2 + 4
    assert all(row.replace("\\|", "").count("|") == 7 for row in shown)
    assert lines[0]["study_id"] in shown[2]
    assert [step for *_, step in tables.told] == [2, 4]
    key, columns, data, _ = tables.told[1]
    assert key == "samples"
    assert [dict(zip(columns, row, strict=True)) for row in data] == [
        {name: line[name] for name in columns} for line in lines[4:]
    ]


def test_only_the_first_rank_asks(fit, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.is_global_zero", False)
    system, lines = fit()
    assert not system.asked
    assert not lines


def test_a_system_that_answers_nothing_is_left_alone(make_trainer, tmp_path):
    samples = AnswerSamples(tmp_path, every_n_steps=1)
    make_trainer(callbacks=[samples], max_steps=2, val_check_interval=None).fit(BoringModel())
    assert not lines_of(tmp_path)


@pytest.mark.parametrize("name", ["every_n_steps", "num_studies"])
def test_a_number_below_one_is_an_error(name, tmp_path):
    with pytest.raises(InputError, match=rf"callbacks\.samples\.{name} must be at least 1; got 0"):
        AnswerSamples(tmp_path, **{name: 0})
