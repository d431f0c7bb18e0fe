"""A small cohort of all modalities on disk, systems of width 32, and a silent trainer."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from small_llava import volume_llava

from neuro.data.augment import Augment
from neuro.data.bids import BidsFolder
from neuro.data.cohort import ConversationCohort
from neuro.data.collate import Background, ConversationCollator
from neuro.data.conversation import Image, write_conversations
from neuro.data.datamodule import StudyDataModule
from neuro.data.question import conversation_about
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.windows import Windows
from neuro.models.policy import Policy
from neuro.optim.schedules import warmup_cosine
from neuro.systems.llava_mri import LlavaMRI

NAMES = {"T1": "sex", "dMRI": "tract", "rsfMRI": "dropout"}


@pytest.fixture
def make_system(texts, recipes):
    """Return a function that builds a system; the same arguments give the same weights."""

    def build(
        kind="siglip",
        *,
        lr=5e-3,
        weight_decay=0.1,
        max_new_tokens=8,
        seed=0,
        llava=None,
        text=None,
        policy=Policy(),  # noqa: B008, it is frozen
    ):
        text = text or texts[kind]
        ready = llava or volume_llava(kind, text, recipes, seed=seed, policy=policy)
        return LlavaMRI(
            ready.llava,
            lambda **_: ready,
            policy,
            text,
            optimizer=partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.98)),
            schedule=partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
            weight_decay=weight_decay,
            max_new_tokens=max_new_tokens,
        )

    return build


@pytest.fixture
def system(make_system, kind):
    return make_system(kind)


@pytest.fixture(scope="session")
def studies_file(phantom_root, question_book, tmp_path_factory):
    """Return a function that writes conversations about the phantom: single images of some
    modalities, and pairs."""

    def write(modalities, pairs):
        folder = BidsFolder(phantom_root)
        images = {
            (scan.subject, scan.modality): Image(
                path=str(scan.path.relative_to(phantom_root)),
                modality=scan.modality,
                subject=scan.subject,
            )
            for scan in folder.scans
        }
        conversations = []
        for subject, row in sorted(folder.participants.items()):
            for shown in [(one,) for one in modalities] + list(pairs):
                name = NAMES[shown[-1]]
                question = question_book[name]
                conversations.append(
                    conversation_about(
                        study_id=f"{subject}.{'-'.join(shown)}",
                        name=name,
                        ask=question.ask,
                        answer=question.answer(row[name], where=subject),
                        images=[images[subject, one] for one in shown],
                        split=row["split"],
                    )
                )
        path = tmp_path_factory.mktemp("conversations") / "studies.json"
        write_conversations(path, conversations)
        return path

    return write


@pytest.fixture(scope="session")
def scan_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_datamodule(phantom_root, studies_file, scan_cache, recipes, texts):
    """Return a function that builds a data module over the phantom."""

    def build(
        kind="siglip",
        *,
        modalities=("T1", "dMRI", "rsfMRI"),
        pairs=(("dMRI", "T1"), ("T1", "rsfMRI")),
        max_studies=3,
        max_tokens=1000,
        flip=0.5,
    ):
        return StudyDataModule(
            cohort=ConversationCohort(
                phantom_root, studies_file(modalities, pairs), SubjectSplits(val=0.1, test=0.1)
            ),
            recipes=recipes,
            cache_dir=scan_cache,
            collate=ConversationCollator(texts[kind], Background(min_foreground=0.05)),
            budget=BatchBudget(max_studies=max_studies, max_tokens=max_tokens),
            augment=Augment(flip_left_right=flip, contrast=0.2 if flip else 0.0),
            windows=Windows(stride_between_seq=None),
            max_failed=0.0,
            num_workers=0,
            seed=3,
        )

    return build


class Watch(Callback):
    """Writes down what a run does, batch by batch."""

    def __init__(self):
        self.studies, self.losses, self.rates, self.voxels = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.studies.append(batch.study_ids)
        self.losses.append(float(outputs["loss"].detach()))
        self.voxels.append(
            tuple(
                (float(one.tokens.double().sum()), repr(one.intensity))
                for one in batch.volumes.values()
            )
        )

    @property
    def rows(self):
        """All of it, one row a batch."""
        return list(zip(self.studies, self.losses, self.rates, self.voxels, strict=True))


@pytest.fixture
def watch():
    return Watch


@pytest.fixture
def make_trainer(tmp_path):
    """Return a function that builds a trainer without files, bars and tables."""

    def build(**changes):
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": -1,
            "max_steps": 4,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "gradient_clip_val": 1.0,
            "default_root_dir": tmp_path,
        }
        return L.Trainer(**{**settings, **changes})

    return build


def trained_weights(system):
    """Return a copy of what is trained."""
    return {
        name: one.detach().clone() for name, one in system.named_parameters() if one.requires_grad
    }


@pytest.fixture
def weights_of():
    return trained_weights
