"""A vision-language model for brain MRI: conversations about volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from typing_extensions import override

from neuro.data.answers import CLASSES, Answer, AnswerBook, label_of, unique
from neuro.data.batch import VolumeTokens
from neuro.data.collate import ConversationCollator
from neuro.data.conversation import Conversation, Turn
from neuro.data.conversation_batch import ConversationBatch
from neuro.data.datamodule import StudyDataModule
from neuro.data.dataset import CONTROLS
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError
from neuro.models.eye import begin_with
from neuro.models.likelihood import log_likelihoods
from neuro.models.llava import VolumeLlava
from neuro.models.policy import Policy
from neuro.optim.groups import layerwise_groups
from neuro.systems.answer_figures import figures_of
from neuro.systems.base import (
    OptimizerFactory,
    ScheduleFactory,
    System,
    gathered,
    mean_over_ranks,
    on_many_ranks,
)

Vision = Callable[..., VolumeLlava]
SAMPLE = 64  # studies that an eye gets used to before it is trained
# What each test loader shows: the study's own images, then those of the controls.
SHOWN = ("", *(f"_{control}" for control in CONTROLS))


class LlavaMRI(System[ConversationBatch]):
    """Learns to answer questions about brain images; by default only patch embedders are trained.

    LLaVA (arXiv:2304.08485): the negative log-likelihood of what the assistant says, given images
    and questions. One forward pass serves a batch of mixed modalities and mixed numbers of images.

    Args:
        llava: A model of transformers.
        vision: How it looks at volumes; takes ``llava``, ``policy`` and
            ``checkpoint_activations``.
        policy: What is trained besides what it sees with.
        text: What made the batch's ids; it turns answers back into words.
        optimizer: Takes parameter groups.
        schedule: Takes the optimizer and ``num_steps``.
        weight_decay: For the weights of layers.
        max_new_tokens: Longest answer.
        score_likelihood: Whether a test also asks, where questions have classes, which answer is
            the most probable, beside the one that is generated.
        drop_background: Whether patches without head stay out of the tower and of the text; what
            counts as such is ``data.min_foreground``.
        checkpoint_activations: Less memory, about a third more time.

    Raises:
        InputError: Model and tokenizer disagree on the image token, or on how many there are.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        vision: Vision,
        policy: Policy,
        text: TextEncoder,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        weight_decay: float,
        max_new_tokens: int,
        score_likelihood: bool = True,
        drop_background: bool = True,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        self.llava = vision(
            llava=llava, policy=policy, checkpoint_activations=checkpoint_activations
        )
        if text.image_id != self.llava.image_id:
            raise InputError(
                f"the tokenizer's image token {text.image_token!r} has id {text.image_id}, the "
                f"model's has {self.llava.image_id}; take the tokenizer that belongs to the model."
            )
        table = llava.get_input_embeddings().weight
        assert isinstance(table, Tensor)
        rows, num_tokens = len(table), max(text.tokenizer.get_vocab().values()) + 1
        if num_tokens > rows:  # fewer are fine: tables are padded, and never cut
            raise InputError(
                f"the tokenizer has {num_tokens} tokens, the model's table {rows} rows; "
                f"take the tokenizer that belongs to the model."
            )
        self.text = text
        self.max_new_tokens = max_new_tokens
        self.score_likelihood = score_likelihood
        self.drop_background = drop_background
        self.answers: dict[str, list[Answer]] = {}
        self.figures: list[tuple[str, str, float, float, float]] = []
        self.book = AnswerBook({})
        self.validation_sums: dict[str, Tensor] = {}  # loss and tokens; of all, and of each group

    @override
    def losses(self, batch: ConversationBatch) -> dict[str, Tensor]:
        losses, study = self._token_losses(batch)
        # Supervised tokens per rank: then gradients average to those of one large batch.
        count = mean_over_ranks(losses.new_tensor(float(len(losses))))
        by_study = _by_study(batch, losses.detach(), study)
        sums = _over_ranks({"": by_study.sum(dim=1), **_group_sums(batch, by_study)})
        _, supervised_tokens = sums.pop("")
        named = {
            "loss": losses.sum() / count,
            "terms": count,
            "supervised_tokens": supervised_tokens,
        }
        return named | {f"loss_{name}": total / number for name, (total, number) in sums.items()}

    @override
    def parameter_table(self) -> list[tuple[str, int, int]]:
        return self.llava.parameter_table()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        return layerwise_groups(self.llava.paces(), self.weight_decay)

    def gradient_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return what is trained of each modality's embedder and of each other part."""
        trained = {
            name.removeprefix("eye "): [one for one in own if one.requires_grad]
            for name, own in self.llava.parts().items()
        }
        return {name: own for name, own in trained.items() if own}

    @torch.no_grad()
    def answer(self, batch: ConversationBatch, *, by_likelihood: bool = False) -> list[Answer]:
        """Generate the last answer of each study, with the earlier ones as they should be.

        Args:
            batch: Studies with right answers.
            by_likelihood: Also tell which of the answers to its question that training knows is the
                most probable.
        """
        prompts, shown = self._asked(batch)
        said = self.llava.generate(
            prompts,
            [one for own in shown for one in own],
            max_new_tokens=self.max_new_tokens,
            pad_id=self.text.pad_id,
            end_ids=[self.text.end_id],
        )
        likeliest = [""] * len(prompts)
        if by_likelihood:
            likeliest = self._likeliest(batch.tasks, prompts, shown)
        answers = []
        for row, ids in enumerate(said):
            target = batch.labels[row, len(prompts[row]) :]
            answers.append(
                Answer(
                    study_id=batch.study_ids[row],
                    subject=batch.subjects[row][-1],
                    task=batch.tasks[row],
                    task_type=batch.task_types[row],
                    modalities=batch.modalities[row],
                    prompt=self.text.decode(prompts[row]),
                    target=self.text.decode(target[target != IGNORE]),
                    said=self.text.decode(torch.tensor(ids, dtype=torch.long)),
                    label=label_of(batch.metadata[row]),
                    likeliest=likeliest[row],
                )
            )
        return answers

    @override
    def prepare(self, datamodule: StudyDataModule) -> None:
        super().prepare(datamodule)
        assert self.contract is not None, "set right above"
        self.llava.check_grids(self.contract.recipes)
        assert isinstance(datamodule.collate, ConversationCollator), "no other makes such batches"
        slots = datamodule.collate.slots_per_image
        if slots != self.llava.slots_per_image:
            raise InputError(
                f"an image becomes {self.llava.slots_per_image or 'one feature a token'}, and the "
                f"text holds {slots or 'one place a token'} for it. "
                f"Leave data.datamodule.collate.slots_per_image as connector= sets it."
            )
        if datamodule.collate.background.drop != self.drop_background:
            raise InputError(
                f"system.drop_background is {self.drop_background}, the collator's background.drop "
                f"is not. Leave data.datamodule.collate.background as it is."
            )

    @override
    def init_from(self, source: Path) -> None:
        begin_with(self.llava, source)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.llava.check_trainable()
        self._check_precision()
        if isinstance(self.trainer.datamodule, StudyDataModule):  # pyright: ignore[reportAttributeAccessIssue]
            self._check_studies()  # before the hours of training that lead to the test
        with self.trainer.precision_plugin.forward_context():
            self.llava.get_used_to(self._sample())

    @override
    def on_validation_epoch_start(self) -> None:
        self.validation_sums = {}

    @override
    def validation_step(self, batch: ConversationBatch, batch_idx: int) -> None:
        losses, study = self._token_losses(batch)
        by_study = _by_study(batch, losses, study)
        for name, own in {"": by_study.sum(dim=1), **_group_sums(batch, by_study)}.items():
            self.validation_sums[name] = self.validation_sums.get(name, 0.0) + own

    @override
    def on_validation_epoch_end(self) -> None:
        for name, (total, count) in sorted(_over_ranks(self.validation_sums).items()):
            self.log(f"val/loss{name and '_'}{name}", total / count, prog_bar=not name)

    @override
    def on_test_start(self) -> None:
        self._check_studies()

    @override
    def on_test_epoch_start(self) -> None:
        self.answers = {shown: [] for shown in SHOWN}
        self.figures = []
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.book = AnswerBook.of(datamodule.studies["train"].conversations)

    @override
    def test_step(self, batch: ConversationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.answers[SHOWN[dataloader_idx]] += self.answer(
            batch, by_likelihood=self.score_likelihood
        )

    @override
    def on_test_epoch_end(self) -> None:
        """Log every figure beside those of the controls; studies of one subject go together."""
        self.answers = {shown: unique(gathered(own)) for shown, own in self.answers.items()}
        figures = figures_of(self.answers, self.book)
        self.figures = [one.row for one in figures]
        for one in figures:
            self.log_dict({f"test/{name}": value for name, value in one.logged.items()})

    def _sample(self) -> Iterator[VolumeTokens]:
        """Yield images of some training studies, the same on every rank."""
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        studies = datamodule.studies["train"]
        step = -(-len(studies) // SAMPLE)
        for batch in datamodule.plain_loader(studies.take(range(0, len(studies), step))):
            yield batch.to(self.device).volumes

    @override
    def _kept_names(self) -> set[str]:
        return {f"llava.{name}" for name in self.llava.kept_names()}

    def _check_precision(self) -> None:
        """Check that what is trained is in float32, and fits what is frozen in 16 bits."""
        dtypes = {one.dtype for one in self.parameters() if one.requires_grad}
        frozen = {one.dtype for one in self.parameters()} - {torch.float32}
        precision = self.trainer.precision
        if dtypes != {torch.float32}:
            raise InputError(
                f"trainer.precision={precision} trains in 16 bits, in which small steps are lost. "
                f"Take trainer.precision=bf16-mixed."
            )
        policy = self.llava.policy
        if frozen and (policy.projector or policy.vision_tower) and "mixed" not in str(precision):
            raise InputError(
                f"system.policy trains tower or projector in float32, the rest is in 16 bits, and "
                f"trainer.precision={precision} does not mix them. Take "
                f"trainer.precision=bf16-mixed, or system.llava.dtype=float32."
            )

    def _check_studies(self) -> None:
        """Check that no right answer of the test is cut short."""
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        told = {}
        for study in datamodule.studies["test"]:
            assert study.conversation is not None, "the collator has checked that there is one"
            told[study.conversation.turns[-1].text] = study.id
        needed = {text: self.text.num_tokens(text) + 1 for text in told}
        longest = max(needed, key=needed.__getitem__)
        if needed[longest] > self.max_new_tokens:
            raise InputError(
                f"the answer of study {told[longest]!r} has {needed[longest]} tokens with its end, "
                f"the most of all test studies; system.max_new_tokens is {self.max_new_tokens}. "
                f"Set it to {needed[longest]}."
            )

    def _asked(self, batch: ConversationBatch) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return each study up to its last answer: its ids, and the features of its images."""
        seen = batch.model_inputs()
        features = self.llava.image_features(seen.volumes, seen.images)
        prompts, shown, first = [], [], 0
        for row, count in enumerate(batch.num_images_per_sample):
            prompt = seen.input_ids[row, : last_turn(seen.labels[row])]
            own = features[first : first + count]
            prompts.append(prompt)
            shown.append(own[: _num_images(prompt == self.text.image_id, own)])
            first += count
        return prompts, shown

    def _likeliest(
        self, tasks: Sequence[str], prompts: Sequence[Tensor], shown: Sequence[Sequence[Tensor]]
    ) -> list[str]:
        """Return the most probable answer to each question; empty where it has no classes."""
        rows = [row for row, task in enumerate(tasks) if self.book[task].kind == CLASSES]
        texts = {task: sorted(self.book[task].spellings.values()) for task in {*tasks}}
        found = [""] * len(tasks)
        if not rows:
            return found
        ids = {
            task: [self._spoken(text).to(self.device) for text in own]
            for task, own in texts.items()
        }
        scores = log_likelihoods(
            self.llava,
            [prompts[row] for row in rows],
            [one for row in rows for one in shown[row]],
            [ids[tasks[row]] for row in rows],
            pad_id=self.text.pad_id,
        )
        for row, own in zip(rows, scores, strict=True):
            found[row] = texts[tasks[row]][int(own.argmax())]
        return found

    def _spoken(self, answer: str) -> Tensor:
        """Return the ids of an answer as the assistant says it, with the end of its turn."""
        turns = (Turn("user", ("a",)), Turn("assistant", (answer,)))
        encoded = self.text(Conversation(id="answer", task="", turns=turns, images=()), [])
        return encoded.labels[encoded.labels != IGNORE]

    def _token_losses(self, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
        seen = batch.model_inputs()
        features = self.llava.image_features(seen.volumes, seen.images)
        return self.llava.token_losses(seen.input_ids, seen.attention_mask, seen.labels, features)


def _by_study(batch: ConversationBatch, losses: Tensor, study: Tensor) -> Tensor:
    """Return the summed loss and the supervised tokens of each study: (2, studies)."""
    sums = losses.new_zeros(2, batch.num_studies)
    return sums.index_add_(1, study, torch.stack([losses, torch.ones_like(losses)]))


def _group_sums(batch: ConversationBatch, by_study: Tensor) -> dict[str, Tensor]:
    """Return summed loss and tokens of the studies that show a modality, and of those of a task."""
    members: dict[str, list[int]] = {}
    for row, (shown, task) in enumerate(zip(batch.modalities, batch.tasks, strict=True)):
        for name in (*sorted(set(shown)), *([f"task_{task}"] if task else [])):
            members.setdefault(name, []).append(row)
    return {name: by_study[:, own].sum(dim=1) for name, own in members.items()}


def _over_ranks(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return sums of each group over all ranks; a rank may not have seen every group."""
    if not on_many_ranks():
        return sums
    pairs = torch.stack([*sums.values()]).tolist() if sums else []  # one wait for the device
    found: dict[str, Tensor] = {}
    for name, pair in gathered([*zip(sums, pairs, strict=True)]):
        found[name] = found.get(name, 0.0) + torch.tensor(pair)
    return found


def last_turn(targets: Tensor) -> int:
    """Return where the last thing that the assistant says begins."""
    spoken = targets != IGNORE
    begins = spoken & ~torch.cat([spoken.new_zeros(1), spoken[:-1]])
    return int(torch.nonzero(begins).max())


def _num_images(is_image: Tensor, features: Sequence[Tensor]) -> int:
    """Return how many of a study's images stand in a prompt."""
    left, count = int(is_image.sum()), 0
    while left > 0:
        left -= len(features[count])
        count += 1
    assert left == 0, "a prompt ends inside an image"
    return count
