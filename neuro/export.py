"""A command: what a run of system=llava_mri learned, for others to load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neuro import command
from neuro.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration

    from neuro.data.contract import Contract
    from neuro.data.text import TextEncoder
    from neuro.models.llava import VolumeLlava

log = logging.getLogger("neuro.export")  # not __name__, which is __main__ under -m

KINDS = ("embedders", "model")
PARTS = ("llava", "vision", "policy", "text")
PACKAGES = ("neuro", "torch", "transformers")


def export(ckpt_path: Path, output: Path, what: str, cache_dir: Path) -> None:
    """Write what a checkpoint learned into a new folder, whole or not at all.

    Args:
        ckpt_path: A checkpoint of ``system=llava_mri``, or its run folder.
        output: The folder.
        what: ``embedders`` or ``model``.
        cache_dir: Where the tiny model is, unless it is still where the run had it.

    Raises:
        InputError: It is no such checkpoint, or the folder holds something.
    """
    from neuro.restore import checkpoint_of

    held, contract = checkpoint_of(ckpt_path, "llava_mri", needs=PARTS)
    with new_folder(output) as folder:
        if what == "model":
            _write_model(folder, held, str(ckpt_path), cache_dir)
        _write_embedders(folder, held, contract)
        for path in folder.iterdir():  # safetensors lets nobody else read
            path.chmod(folder.stat().st_mode & 0o666)
        written = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
    for name, size in written:
        log.info("%-28s %9.2f MB", name, size / 1e6)
    log.info("%s is in %s", what, output)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write to, beside ``path``; at the end it becomes ``path``.

    Raises:
        InputError: Something is there already, or the disk is full.
    """
    from safetensors import SafetensorError

    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"output={path} is there and not empty. Name a folder that is not there.")
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise InputError(
                f"cannot write to {path}: {error}. Free space, or set output to another folder."
            ) from error
        raise


def rebuilt(
    held: Mapping[str, Any], llava: LlavaForConditionalGeneration, where: str
) -> VolumeLlava:
    """Return a base model as a checkpoint trained it.

    Args:
        held: A checkpoint of ``system=llava_mri``.
        llava: The model that its training began with; it is changed.
        where: The checkpoint, for messages.

    Raises:
        InputError: The weights do not fit the parts.
    """
    from hydra.utils import instantiate

    from neuro.restore import building

    parts = held["parts"]
    # The encoder is in the checkpoint; the run that it came from may be gone.
    nowhere = {"init_from": None} if "init_from" in parts["vision"] else {}
    with building(where):
        vision = instantiate({**parts["vision"], **nowhere}, _convert_="all")
        model = vision(llava=llava, policy=instantiate(parts["policy"], _convert_="all"))
    state = {name.removeprefix("llava."): one for name, one in held["state_dict"].items()}
    differing = sorted(model.kept_names() ^ state.keys())
    if differing:
        raise InputError(
            f"{where}: its weights do not fit its parts; {len(differing)} differ, for example "
            f"{differing[0]}. Use the version that it was trained with."
        )
    with building(where):
        model.load_state_dict(state, strict=False)
    return model.eval()


def _write_model(folder: Path, held: Mapping[str, Any], where: str, cache_dir: Path) -> None:
    """Write the base with what was trained of it, as transformers loads it, and its tokenizer."""
    from hydra.utils import instantiate
    from transformers.utils.logging import disable_progress_bar

    from neuro.models.tuning import merge_adapters

    disable_progress_bar()
    part = dict(held["parts"]["llava"])
    if "cache_dir" in part and not Path(part["cache_dir"]).is_dir():
        part["cache_dir"] = str(cache_dir)
    llava: LlavaForConditionalGeneration = instantiate(part, _convert_="all")
    text: TextEncoder = instantiate(held["parts"]["text"], _convert_="all")
    put_back = _look_of_base(llava)
    rebuilt(held, llava, where)
    put_back()
    merge_adapters(llava)
    llava.save_pretrained(folder)
    # Of its own a tokenizer does not know what stands for an image.
    text.tokenizer.chat_template = text.template.replace("image_token", repr(text.image_token))
    text.tokenizer.save_pretrained(folder)


def _look_of_base(llava: LlavaForConditionalGeneration) -> Callable[[], None]:
    """Return what gives a model back the parts that looked at pictures before ours did."""
    model, config = llava.model, llava.config
    tower, projector = model.vision_tower, model.multi_modal_projector
    embeddings, strategy = tower.embeddings, config.vision_feature_select_strategy

    def put_back() -> None:
        model.vision_tower, model.multi_modal_projector = tower, projector
        tower.embeddings = embeddings
        config.vision_feature_select_strategy = strategy

    return put_back


def _write_embedders(folder: Path, held: Mapping[str, Any], contract: Contract) -> None:
    """Write what sees, of the modalities that were trained on, and what its images must be."""
    from safetensors.torch import save_file

    from neuro.models.eye import eye_of, modality_of
    from neuro.models.volume_embed import GAIN
    from neuro.models.weights import EMBEDDERS, TOLD

    vision = held["parts"]["vision"]
    eye = eye_of(held["state_dict"])
    if "encoder" in vision:
        own = {name: one for name, one in eye.items() if name.startswith("connector.")}
        tensors = {**_encoder(vision, eye), **own}
        about = {name: vision[name] for name in ("encoder", "connector")}
    else:
        tensors = {n: one for n, one in eye.items() if modality_of(n) in contract.recipes}
        dim = next(one for n, one in tensors.items() if n.endswith("projection.weight")).shape[0]
        gain = GAIN if vision["positions"] == "axes" else 1
        about = {"positions": vision["positions"], "gain": gain, "dim": dim}
    told = {
        "vision": vision["_target_"],
        "modalities": {
            name: {"shape": recipe.shape, "patch": recipe.patch}
            for name, recipe in contract.recipes.items()
        },
        **about,
        "contract": contract.plain(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    tensors = {name: one.contiguous() for name, one in tensors.items()}
    save_file(tensors, folder / EMBEDDERS, metadata={TOLD: json.dumps(told)})
    (folder / EMBEDDERS).with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n")


def _encoder(vision: Mapping[str, Any], eye: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an encoder, what its adapters learned added."""
    from hydra.utils import instantiate

    from neuro.models.tuning import merge_adapters

    encoder = instantiate(vision["encoder"], _convert_="all")
    instantiate(vision["tuning"], _convert_="all").apply(encoder)
    own = {n.removeprefix("encoder."): one for n, one in eye.items() if n.startswith("encoder.")}
    encoder.load_state_dict(own)
    merge_adapters(encoder)
    return {f"encoder.{name}": one for name, one in encoder.state_dict().items()}


def _run(cfg: DictConfig) -> None:
    from neuro.console import set_up_logging
    from neuro.models.weights import weights_file

    start = time.monotonic()
    command.resolve(cfg)
    if cfg.what not in KINDS:
        raise InputError(f"what must be one of {', '.join(KINDS)}; got {cfg.what!r}.")
    set_up_logging(None)
    file = weights_file(str(cfg.ckpt_path))
    run = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    output = Path(str(cfg.output)) if cfg.output is not None else run / "export" / cfg.what
    export(file, output.absolute(), cfg.what, Path(cfg.paths.cache_dir))
    log.info("done in %.0f s", time.monotonic() - start)


def main() -> None:
    """Run the command.

    It leaves with 0 when done, 2 when the input is wrong, 1 when it failed.
    """
    sys.exit(command.run("export", _run))


if __name__ == "__main__":
    main()
