"""A vision-language model for brain MRI: conversations about volumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor
from typing_extensions import override

from neuro.data.answers import Answer, score, unique
from neuro.data.batch import ConversationBatch
from neuro.data.datamodule import StudyDataModule
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError
from neuro.models.llava import VolumeLlava
from neuro.systems.base import OptimizerFactory, ScheduleFactory, System, gathered, mean_over_ranks

CONTROLS = (
    "",
    "_shuffled",
)  # what each test loader shows: the study's own images, another subject's


class LlavaMRI(System[ConversationBatch]):
    """Learns to answer questions about brain images, with only the patch embedders trained.

    LLaVA (arXiv:2304.08485): the negative log-likelihood of what the assistant says, given images
        and questions. One
    forward pass serves a batch of mixed modalities and mixed numbers of images.

    Args:
        llava: The model.
        text: What made the batch's ids; it turns answers back into words.
        optimizer: Takes parameter groups.
        schedule: Takes the optimizer and ``num_steps``.
        weight_decay: For the weights of layers.
        max_new_tokens: Longest answer.

    Raises:
        InputError: Model and tokenizer disagree on the image token.
    """

    def __init__(
        self,
        llava: VolumeLlava,
        text: TextEncoder,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        weight_decay: float,
        max_new_tokens: int,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if text.image_id != llava.image_id:
            raise InputError(
                f"the tokenizer's image token {text.image_token!r} has id {text.image_id}, "
                f"the model's has {llava.image_id}; take the tokenizer that belongs to the model."
            )
        self.llava = llava
        self.text = text
        self.max_new_tokens = max_new_tokens
        self.modalities = tuple(llava.embeddings.embedders)
        self.answers: dict[str, list[Answer]] = {}
        sums = torch.zeros(1 + len(self.modalities), 2, dtype=torch.float32)
        # Columns: loss and tokens. Rows: all, then by modality.
        self.register_buffer("validation_sums", sums, persistent=False)
        self.validation_sums: Tensor

    @override
    def losses(self, batch: ConversationBatch) -> dict[str, Tensor]:
        losses, study = self._token_losses(batch)
        # Supervised tokens per rank: then gradients average to those of one large batch.
        count = mean_over_ranks(losses.new_tensor(float(len(losses))))
        named = {
            "loss": losses.sum() / count,
            "supervised_tokens": losses.new_tensor(float(len(losses))),
        }
        for modality in self.modalities:
            own = self._shows(batch, modality)[study]
            if own.any():
                named[f"loss_{modality}"] = losses[own].mean().detach()
        return named

    @override
    def parameter_table(self) -> list[tuple[str, int, int]]:
        return self.llava.parameter_table()

    @torch.no_grad()
    def answer(self, batch: ConversationBatch) -> list[Answer]:
        """Generate the last answer of each study, with the earlier ones as they should be."""
        features = self.llava.image_features(batch.volumes, batch.images)
        prompts, shown, answers = [], [], []
        first = 0
        for row, count in enumerate(batch.num_images):
            start = last_turn(batch.targets[row])
            prompt = batch.input_ids[row, :start]
            own = features[first : first + count]
            prompts.append(prompt)
            shown += own[: _num_images(prompt == self.text.image_id, own)]
            first += count
        said = self.llava.generate(
            prompts,
            shown,
            max_new_tokens=self.max_new_tokens,
            pad_id=self.text.pad_id,
            end_ids=[self.text.end_id],
        )
        for row, ids in enumerate(said):
            target = batch.targets[row, len(prompts[row]) :]
            answers.append(
                Answer(
                    study_id=batch.study_ids[row],
                    task=batch.tasks[row],
                    modalities=batch.modalities[row],
                    prompt=self.text.decode(prompts[row][prompts[row] != self.text.image_id]),
                    target=self.text.decode(target[target != IGNORE]),
                    said=self.text.decode(torch.tensor(ids, dtype=torch.long)),
                )
            )
        return answers

    @override
    def prepare(self, datamodule: StudyDataModule) -> None:
        super().prepare(datamodule)
        self._check_studies(datamodule)

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.llava.check_trainable()

    @override
    def on_validation_epoch_start(self) -> None:
        self.validation_sums.zero_()

    @override
    def validation_step(self, batch: ConversationBatch, batch_idx: int) -> None:
        losses, study = self._token_losses(batch)
        owners = [torch.ones_like(study, dtype=torch.bool)]
        owners += [self._shows(batch, modality)[study] for modality in self.modalities]
        for row, own in enumerate(owners):
            self.validation_sums[row, 0] += losses[own].sum()
            self.validation_sums[row, 1] += own.sum()

    @override
    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self.validation_sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        for name, (total, count) in zip(
            ("", *(f"_{one}" for one in self.modalities)), sums.tolist(), strict=True
        ):
            if count:  # the same on every rank by now
                self.log(f"val/loss{name}", total / count, prog_bar=not name)

    @override
    def on_test_epoch_start(self) -> None:
        self.answers = {control: [] for control in CONTROLS}

    @override
    def test_step(self, batch: ConversationBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.answers[CONTROLS[dataloader_idx]] += self.answer(batch)

    @override
    def on_test_epoch_end(self) -> None:
        for control, own in self.answers.items():
            self.answers[control] = unique(gathered(own))
            if self.answers[control]:
                scores = score(self.answers[control])
                self.log_dict({f"test/{name}{control}": value for name, value in scores.items()})

    def _check_studies(self, datamodule: StudyDataModule) -> None:
        """Check that each image has an embedder, and that a right answer is not cut short."""
        for studies in datamodule.studies.values():
            unknown = set(studies.series["modality"].unique().to_pylist()) - {*self.modalities}
            if unknown:
                raise InputError(
                    f"images are of modality {', '.join(sorted(unknown))}; llava_mri has embedders "
                    f"for {', '.join(self.modalities)}, whose recipes have a fixed shape. Set "
                    f"data.mode_mapping, or give the modality a recipe with a fixed shape."
                )
        for study in datamodule.studies["test"]:
            assert study.conversation is not None, "the collator has checked that there is one"
            needed = self.text.num_tokens(study.conversation.turns[-1].text) + 1
            if needed > self.max_new_tokens:
                raise InputError(
                    f"the answer of study {study.id!r} has {needed} tokens with its end; "
                    f"system.max_new_tokens is {self.max_new_tokens}. Raise it."
                )

    def _token_losses(self, batch: ConversationBatch) -> tuple[Tensor, Tensor]:
        features = self.llava.image_features(batch.volumes, batch.images)
        return self.llava.token_losses(
            batch.input_ids, batch.attention_mask, batch.targets, features
        )

    def _shows(self, batch: ConversationBatch, modality: str) -> Tensor:
        """Return for each study whether it shows a modality."""
        return torch.tensor(
            [modality in own for own in batch.modalities], device=batch.targets.device
        )


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
