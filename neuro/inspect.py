"""The command that shows the very examples that a config would train on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from neuro.data.augment import Draw
    from neuro.data.conversation_batch import ConversationBatch
    from neuro.data.datamodule import StudyDataModule
    from neuro.data.dataset import SeriesTokens
    from neuro.data.manifest import Series
    from neuro.report.example import Example, Part
    from neuro.systems.llava_mri import LlavaMRI

    Shown = tuple[SeriesTokens, Series]

# What is built of a config here; the rest of it is not looked at.
PARTS = ("data.datamodule", "system")

log = logging.getLogger("neuro.inspect")  # not __name__, which is __main__ under -m


def inspect(cfg: DictConfig) -> Path:
    """Write the page and return where it is.

    Raises:
        InputError: The config or the data is wrong, or an image has other slots than features;
            then the page shows which one.
    """
    # Imported here, so that --help answers at once.
    import lightning as L
    from hydra.utils import instantiate

    from neuro.console import set_up_logging
    from neuro.report.example import write_examples

    if type(cfg.num) is not int or cfg.num < 1:
        raise InputError(f"num={cfg.num} must be a whole number, 1 or more, like num=4.")
    path = Path(cfg.output)
    set_up_logging(Path(cfg.paths.output_dir) / "inspect" / "inspect.log")
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule: StudyDataModule = instantiate(cfg.data.datamodule, _convert_="all")
    _check_collator(datamodule, cfg.system._target_)
    datamodule.prepare_data()
    system: LlavaMRI = instantiate(cfg.system, _convert_="all")
    system.prepare(datamodule)
    examples = examples_of(datamodule, system, num=cfg.num, study=cfg.study)
    about = [
        ("model", type(system.llava).__name__),
        ("vocabulary", f"{len(system.text.tokenizer):,} tokens"),
        ("train split", f"{len(datamodule.studies['train']):,} studies"),
        ("batches", "those of the first epoch, on one process"),
    ]
    write_examples(path, examples, title="What the model is trained on", facts=about)
    log.info("%d examples are in %s", len(examples), path)
    wrong = [one.study_id for one in examples if not one.fits]
    if wrong:
        raise InputError(
            f"study {wrong[0]!r} has other numbers of slots than of features; see {path}. "
            f"Leave data.datamodule.collate as the system sets it."
        )
    return path


def examples_of(
    datamodule: StudyDataModule, system: LlavaMRI, *, num: int, study: str | None = None
) -> list[Example]:
    """Return examples of the first batches of the first epoch, as training gets them.

    Args:
        datamodule: With its scans prepared.
        system: The model that is shown them.
        num: How many, spread over tasks and modalities.
        study: The one study to show instead.

    Raises:
        InputError: That study is not trained on.
    """
    from neuro.data.spread import spread

    found: list[tuple[int, int, ConversationBatch, Sequence[Shown]]] = []
    for number, batch, shown in _batches(datamodule, study):
        found += [(number, row, batch, shown) for row in range(batch.num_studies)]
        if len(found) >= num or study is not None:
            break
    if study is None:
        members = {item.study.id: item.study for *_, shown in found for item, _ in shown}
        studies = [members[batch.study_ids[row]] for _, row, batch, _ in found]
        found = [found[place] for place in sorted(spread(studies, num))]
    else:
        found = [one for one in found if one[2].study_ids[one[1]] == study][:1]
    return [_example(datamodule, system, *one) for one in found]


def _batches(
    datamodule: StudyDataModule, study: str | None
) -> Iterator[tuple[int, ConversationBatch, Sequence[Shown]]]:
    """Yield the number of each batch of the first epoch, the batch, and what it is made of.

    Args:
        datamodule: With its scans prepared.
        study: The one study whose batch is meant; None for all batches.

    Raises:
        InputError: The study is not trained on.
    """
    loader = datamodule.train_dataloader()
    batches, dataset = loader.batches, loader.batches.dataset
    wanted = None
    if study is not None:
        ids = dataset.studies.ids
        if study not in ids:
            raise InputError(
                f"study={study} is not in the train split, whose studies are called like "
                f"{ids[0]!r}. Give one of them."
            )
        wanted = dataset.rows_of(ids.index(study))
    for number, keys in enumerate(batches, 1):
        if wanted is None or any(row in wanted for row, _ in keys):
            items = [dataset[key] for key in keys]
            series = [dataset.studies.row(int(dataset.series_rows[row])) for row, _ in keys]
            batch = cast("ConversationBatch", loader.collate_fn(items))
            yield number, batch, list(zip(items, series, strict=True))
            if wanted is not None:
                return
    if wanted is not None:
        raise InputError(
            f"study={study} is not shown in the first epoch. Raise data.weights of its cohort."
        )


def _example(
    datamodule: StudyDataModule,
    system: LlavaMRI,
    number: int,
    row: int,
    batch: ConversationBatch,
    shown: Sequence[Shown],
) -> Example:
    import torch

    from neuro.data.tokens import untokenize
    from neuro.report.example import Example, ShownImage, parts_of, picture_of, slots_of

    own = batch[row]
    seen = own.model_inputs()
    with torch.no_grad():
        features = system.eval().llava.image_features(seen.volumes, seen.images)
    ids = batch.input_ids[row]
    slots = slots_of(ids == system.text.image_id, [len(one) for one in features])
    parts = parts_of(
        ids,
        batch.attention_mask[row],
        batch.labels[row],
        slots,
        image_id=system.text.image_id,
        spell=lambda one: spelled(system.text.tokenizer, one),
    )
    images = []
    mine = [one for one in shown if one[0].study.id == batch.study_ids[row]]
    for (item, series), (modality, place), own_slots, own_features in zip(
        mine, own.images, slots, features, strict=True
    ):
        volumes = own.volumes[modality]
        coords = volumes.coords[slice(*volumes.bounds[place : place + 2].tolist())]
        patch = datamodule.cache.recipes[item.modality].patch
        voxels = untokenize(item.tokens, item.size, patch)
        images.append(
            ShownImage(
                modality=modality,
                name=item.name,
                grid=item.size,
                num_kept=len(coords),
                num_slots=own_slots,
                num_features=len(own_features),
                draw=in_words(item.draw),
                picture=picture_of(voxels, coords, item.size, datamodule.cache.affine(series)),
            )
        )
    return Example(
        study_id=batch.study_ids[row],
        task=batch.tasks[row],
        kind=batch.task_types[row],
        batch=number,
        row=row + 1,
        num_rows=batch.num_studies,
        images=tuple(images),
        parts=parts,
        raw=_whole(system.text.tokenizer, ids, parts),
        max_length=system.text.max_length,
    )


def spelled(tokenizer: PreTrainedTokenizerBase, one: int) -> str:
    """Return the text of a token as it stands in a text, with its leading space."""
    sign = str(tokenizer.convert_ids_to_tokens(one))
    text = str(tokenizer.decode([one], clean_up_tokenization_spaces=False))
    if "\ufffd" in text:  # one byte of a letter that has several
        return sign
    # Where a word begins is in its sign; alone it is decoded as the first of a text.
    return f" {text}" if sign.startswith("▁") and not text.startswith(" ") else text


def _whole(tokenizer: PreTrainedTokenizerBase, ids: Tensor, parts: Sequence[Part]) -> str:
    """Return a row as one text, without padding and with one sign for each image."""
    places = []
    for part in parts:
        if part.kind != "padding":
            places += range(part.start, part.start + 1 if part.image else part.stop)
    return str(tokenizer.decode(ids[places], clean_up_tokenization_spaces=False))


def in_words(draw: Draw) -> str:
    """Return what augmentation has done to an image; empty where it did nothing."""
    said = []
    if draw.crop is not None:
        extents = (f"{start} to {stop - 1}" for start, stop in draw.crop)
        said.append(f"cropped to tokens {', '.join(extents)}")
    axes = ("depth", "height", "width")
    flipped = [name for name, one in zip(axes, draw.flips, strict=True) if one]
    if flipped:
        said.append(f"flipped along {' and '.join(flipped)}")
    if draw.transpose:
        said.append("height and width exchanged")
    names, nothing = ("gamma", "gain", "offset", "noise"), (1.0, 1.0, 0.0, 0.0)
    said += [
        f"{name} {value:.2f}"
        for name, value, neutral in zip(names, draw.intensity, nothing, strict=True)
        if value != neutral
    ]
    return ", ".join(said)


def _check_collator(datamodule: StudyDataModule, system: str) -> None:
    from neuro.data.collate import ConversationCollator

    if not isinstance(datamodule.collate, ConversationCollator):
        raise InputError(
            f"system={system.rpartition('.')[2]} is shown no conversations, and those are what is "
            f"looked at here. Take system=llava_mri."
        )


def _run(cfg: DictConfig) -> None:
    command.resolve(cfg, PARTS)
    inspect(cfg)


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 2 when the input is wrong.
    """
    sys.exit(command.run("inspect", _run))


if __name__ == "__main__":
    main()
