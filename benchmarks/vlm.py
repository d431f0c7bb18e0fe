"""What a step of system=llava_mri costs: python benchmarks/vlm.py [--threads N] [--json FILE]

The tiny model on the phantom's grids and on UMBRELLA's, then the real configs of two LLaVAs with
random weights, as deep as --memory-gib holds: with and without background, and against a plain loop
over transformers. --heads names a BIDS folder, to tell what share of real heads is kept. On CPU;
every ratio is of times taken in turns. One thread is the default, as others may use the cores.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from measure import matmul_rate, once, tell
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.initialization import no_init_weights

from neuro import command
from neuro.models.llava import DTYPES, as_outputs

GRIDS = {
    "phantom": ("data.num_subjects=60",),
    "umbrella": ("experiment=umbrella_joint", "data.num_subjects=12"),
    "real_heads": ("experiment=umbrella_t1", "data=bids", "data.questions=[age]"),
}
POLICIES = ("embeddings", "projector", "lora", "none")
# The public configs of the models that conf/model names; what is not here is the default.
REAL = {
    "05b": {
        "vision_config": SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
            vision_use_head=False,
        ),
        "text_config": Qwen2Config(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
            vocab_size=152000,
            tie_word_embeddings=True,
        ),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    },
    "7b": {
        "vision_config": CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        "text_config": LlamaConfig(vocab_size=32064, max_position_embeddings=4096),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    },
}
# What a frozen layer keeps of a token for the gradient: so many vectors of its width, and of its
# MLP's. Counted with hooks on saved tensors; the table tells the peak that came of it.
KEPT = {"vision_config": (6, 2), "text_config": (6, 4)}


def random_llava(*, name, depth, dtype, tokenizer, image_token):
    """Return a real config's model with so much of its layers, and weights that cost no time."""
    config = LlavaConfig(
        **deepcopy(REAL[name]), image_token_index=tokenizer.convert_tokens_to_ids(image_token)
    )
    for part in (config.vision_config, config.text_config):
        part.num_hidden_layers = max(2, round(depth * part.num_hidden_layers))
    with no_init_weights():
        llava = LlavaForConditionalGeneration._from_config(config, dtype=DTYPES[dtype])
    llava.tie_weights()
    noise = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).to(llava.dtype)
    with torch.no_grad():
        for one in llava.parameters():
            for piece in one.view(-1).split(len(noise)):
                piece.copy_(noise[: len(piece)] if one.dim() > 1 else torch.ones_like(piece))
    return llava.eval()


def build(root, grid, *overrides, real=None):
    """Return data module, system and config."""
    given = [f"paths.root={root}", "paths.run_dir=unused", "system.llava.steps=1"]
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=[*given, *GRIDS[grid], *overrides])
    if real is not None:
        cfg.system.llava = {
            "_target_": f"{__name__}.random_llava",
            **real,
            "tokenizer": "${system.text.tokenizer}",
            "image_token": "${system.text.image_token}",
        }
    command.resolve(cfg, parts=("data", "trainer"))
    torch.manual_seed(0)
    datamodule = instantiate(cfg.data.datamodule, _convert_="all")
    datamodule.prepare_data()
    return datamodule, instantiate(cfg.system, _convert_="all"), cfg


def studies(datamodule, modalities, count):
    """Return studies for a batch that show just these images; or, without, those of one batch."""
    own = datamodule.studies["train"]
    if modalities is None:
        return own.take(list(range(min(count, len(own)))))
    shown = [place for place, one in enumerate(own) if one.modalities == modalities]
    return own.take(shown[:count])


def filtered_and_whole(datamodule, chosen):
    """Return the same studies without and with their background."""
    filtered = datamodule.batch_of(chosen)
    background = datamodule.collate.background
    datamodule.collate.background = type(background)(min_foreground=0.0)
    whole = datamodule.batch_of(chosen)
    datamodule.collate.background = background
    return filtered, whole


def image_lengths(batch):
    return [n for one in batch.volumes.values() for n in one.bounds.diff().tolist()]


def linear_weights(part):
    return sum(one.weight.numel() for one in part.modules() if isinstance(one, nn.Linear))


def operations(system, batch):
    """Return the least work of a step of policy=embeddings.

    Two operations for each weight of a layer and token that goes through it. In attention four for
    each channel and pair of tokens of a sequence, two for the score and two for the answer; half of
    the pairs where it is causal. The way back costs once more where only one gradient is wanted,
    that of the input of a frozen layer or of the weights of an embedder, and twice more in
    attention. The head sees supervised tokens alone. What nobody reads counts nothing: layers after
    the one that features are taken from, padding. Nor do norms, activations and softmax.
    """
    llava = system.llava.llava
    vision, text = llava.config.vision_config, llava.config.text_config
    images = image_lengths(batch)
    texts = batch.attention_mask.sum(dim=1).tolist()
    tower = llava.model.vision_tower.encoder.layers
    tower = tower[: len(tower) + 1 + llava.config.vision_feature_layer]
    work = 2 * linear_weights(nn.ModuleList([*tower, llava.model.multi_modal_projector]))
    work *= sum(images)
    work += 2 * linear_weights(llava.model.language_model) * sum(texts)
    work += 2 * llava.lm_head.weight.numel() * int(batch.num_supervised.sum())
    for modality, one in batch.volumes.items():
        embedder = system.llava.embeddings.embedders[modality]
        work += 2 * embedder.projection.weight.numel() * len(one.tokens)
    pairs = 4 * sum(n**2 for n in images) * vision.hidden_size * len(tower)
    pairs += 2 * sum(n**2 for n in texts) * text.hidden_size * text.num_hidden_layers
    return 2 * work + 3 * pairs


def optimizer_of(system):
    return system.optimizer(system.parameter_groups())


def train_step(system, optimizer, batch):
    """Forward, backward and the optimizer's step, without a loop around them."""
    optimizer.zero_grad(set_to_none=True)
    system.losses(batch)["loss"].backward()
    torch.nn.utils.clip_grad_norm_(trained(system), 1.0)
    optimizer.step()


def plain_step(system, optimizer, batch):
    """The same as anyone would write it with transformers, whose loss takes all positions."""
    optimizer.zero_grad(set_to_none=True)
    features = system.llava.image_features(batch.volumes, batch.images)
    loss = system.llava.llava(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        mm_encoder_outputs=as_outputs(features),
        use_cache=False,
    ).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained(system), 1.0)
    optimizer.step()


def trained(system):
    return [one for one in system.parameters() if one.requires_grad]


def resident_mb(which):
    """Return the memory of this process now (VmRSS), or at most since the peak was reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {which}")


def keep_freed_memory(keep):
    """Tell malloc to keep what is freed, as it does by itself; or to give it back at once.

    If it kept it, computing activations again would seem to save nothing; but to fetch memory anew
    for each tensor takes time.
    """
    ctypes.CDLL(None).mallopt(-3, 2**25 if keep else 2**20)  # M_MMAP_THRESHOLD
    if not keep:
        ctypes.CDLL(None).malloc_trim(0)


def in_turns(runs, turns):
    """Run each in turn, so often; return their times, and what each adds to memory at most.

    Memory is that of the first turn, whose times are not counted unless there is no other.
    """
    times, peaks = {name: [] for name in runs}, {}
    for turn in range(turns):
        for name, run in runs.items():
            keep_freed_memory(turn > 0)
            before = resident_mb("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            times[name].append(once(run))
            peaks.setdefault(name, resident_mb("VmHWM") - before)
    return {name: own[min(1, turns - 1) :] for name, own in times.items()}, peaks


def ratio(above, below):
    """Return the median ratio of times that were taken in the same turn."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def with_checkpointing(llava, run):
    """Return a run of a model whose activations are computed again for the gradient."""

    def wrapped():
        llava.llava.activation_checkpointing_enable()
        llava.train()
        run()
        llava.llava.activation_checkpointing_disable()
        llava.train()

    return wrapped


def step_figures(label, datamodule, system, chosen, *, turns, dtype="float32"):
    """With and without background, and with activations computed again."""
    filtered, whole = filtered_and_whole(datamodule, chosen)
    optimizer = optimizer_of(system.train())
    square = torch.randn(1536, 1536).to(DTYPES[dtype])
    runs = {
        "": lambda: train_step(system, optimizer, filtered),
        "_whole": lambda: train_step(system, optimizer, whole),
        "_product": lambda: square @ square,
    }
    runs["_checkpointed"] = with_checkpointing(system.llava, runs[""])
    runs[""]()  # the optimizer's state is there before memory is looked at
    times, peaks = in_turns(runs, turns)
    figures = {"studies": float(len(filtered))}
    for name, batch in (("", filtered), ("_whole", whole)):
        step_s, tokens = statistics.median(times[name]), float(batch.attention_mask.sum())
        figures[f"image_tokens{name}"] = float(sum(image_lengths(batch)))
        figures[f"all_tokens{name}"] = tokens
        figures[f"step_s{name}"] = step_s
        figures[f"tokens_per_s{name}"] = tokens / step_s
        share = ratio(times["_product"], times[name]) / (2 * len(square) ** 3)
        figures[f"rate_share{name}"] = operations(system, batch) * share
        figures[f"peak_mb{name}"] = peaks[name]
    figures["filter_speedup"] = ratio(times["_whole"], times[""])
    figures["filter_memory"] = peaks["_whole"] / peaks[""]
    figures["checkpointing_time"] = ratio(times["_checkpointed"], times[""])
    figures["checkpointing_memory"] = peaks["_checkpointed"] / peaks[""]
    bytes_each = [one.numel() * one.element_size() for one in system.parameters()]
    figures["weights_mb"] = sum(bytes_each) / 2**20
    return {f"{label}/{name}": value for name, value in figures.items()}


class Turns(L.Callback):
    """After each step of the trainer, takes one step of other loops; notes the time of each."""

    def __init__(self, others):
        self.others = others
        self.times = {"ours": [], **{name: [] for name in others}}

    def on_train_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.times["ours"].append(time.perf_counter() - self.start)
        for name, run in self.others.items():
            self.times[name].append(once(run))
        self.start = time.perf_counter()


def loop_figures(label, datamodule, system, cfg, chosen, *, steps):
    """The trainer's loop over that of transformers, and over no loop at all."""
    batch = datamodule.batch_of(chosen)
    plain, bare = optimizer_of(system), optimizer_of(system)
    turns = Turns(
        {
            "plain": lambda: plain_step(system, plain, batch),
            "bare": lambda: train_step(system, bare, batch),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = instantiate(
            cfg.trainer,
            accelerator="cpu",
            max_steps=steps + 1,
            callbacks=[turns],
            logger=L.pytorch.loggers.TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        loader = DataLoader(range(steps + 1), batch_size=None, collate_fn=lambda _: batch)
        trainer.fit(system, train_dataloaders=loader)
    times = {name: own[1:] for name, own in turns.times.items()}
    return {
        f"{label}/loop_ratio": ratio(times["ours"], times["plain"]),
        f"{label}/loop_over_no_loop": ratio(times["ours"], times["bare"]),
    }


def tiny(root, grid, chosen, count, turns):
    """The tiny model: steps, and the loop around them."""
    datamodule, system, cfg = build(root, grid)
    own = studies(datamodule, chosen, count)
    label = f"tiny_{grid}" if chosen is not None else f"tiny_{grid}_mixed"
    figures = step_figures(label, datamodule, system, own, turns=turns)
    if chosen is None:
        figures |= padding_figures(label, system, datamodule.batch_of(own), turns=turns)
    return figures | loop_figures(label, datamodule, system, cfg, own, steps=turns)


def padding_figures(label, system, batch, *, turns):
    """What it costs that the tower pads images of a batch to the longest: none alone is padded."""
    lengths = image_lengths(batch)
    alone = []
    for modality, one in batch.volumes.items():
        for place in range(len(one.bounds) - 1):
            alone.append(({modality: one.take([place])}, [(modality, 0)]))

    def look(shown):
        system.zero_grad(set_to_none=True)
        features = [one for given in shown for one in system.llava.image_features(*given)]
        torch.cat(features).float().sum().backward()

    runs = {
        "together": lambda: look([(batch.volumes, batch.images)]),
        "alone": lambda: look(alone),
    }
    times, _ = in_turns(runs, turns)
    return {
        f"{label}/real_share_of_padded_tower": statistics.mean(lengths) / max(lengths),
        f"{label}/padded_tower_over_alone": ratio(times["together"], times["alone"]),
    }


def policies(root):
    """What is trained: parameters, step time and memory, the optimizer's own included."""
    built = {one: build(root, "phantom", f"policy={one}")[:2] for one in POLICIES}
    batch = built["embeddings"][0].batch_of(studies(built["embeddings"][0], None, 32))

    def run_of(system):
        optimizer = optimizer_of(system.train())
        return lambda: train_step(system, optimizer, batch)

    times, peaks = in_turns({one: run_of(system) for one, (_, system) in built.items()}, 8)
    figures = {}
    for name, (_, system) in built.items():
        figures[f"policy_{name}/step_s"] = statistics.median(times[name])
        figures[f"policy_{name}/peak_mb"] = peaks[name]
        figures[f"policy_{name}/trained"] = float(sum(one.numel() for one in trained(system)))
    return figures


def fitting_depth(model, dtype, tokens, memory_gib):
    """Return how much of a model's layers fits, for a sequence of so many tokens."""
    config, bytes_each = LlavaConfig(**REAL[model]), DTYPES[dtype].itemsize
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    layers = nn.ModuleList([llava.model.vision_tower.encoder, llava.model.language_model.layers])
    in_layers = sum(one.numel() for one in layers.parameters())
    rest = sum(one.numel() for one in llava.parameters()) - in_layers
    for name, (wide, mlp) in KEPT.items():
        part = getattr(config, name)
        kept = wide * part.hidden_size + mlp * part.intermediate_size
        in_layers += tokens * kept * part.num_hidden_layers
    left = memory_gib * 2**30 / bytes_each - rest
    return min(1.0, left / in_layers)


def real(root, name, memory_gib, turns, loop_steps):
    """A real config: a conversation about a T1 of 1728 tokens; in bfloat16 where that is faster."""
    rates = {one: matmul_rate(dtype=DTYPES[one]) for one in ("float32", "bfloat16")}
    dtype = max(rates, key=rates.__getitem__)
    depth = fitting_depth(name, dtype, 1900, memory_gib)
    settings = {"name": name, "depth": depth, "dtype": dtype}
    datamodule, system, cfg = build(root, "umbrella", real=settings)
    own = studies(datamodule, ("T1",), 1)
    config, full = system.llava.llava.config, REAL[name]
    figures = {"is_bfloat16": float(dtype == "bfloat16"), "matmul_gflop_per_s": rates[dtype] / 1e9}
    for part in ("vision", "text"):
        one = f"{part}_config"
        figures[f"{part}_layers"] = float(getattr(config, one).num_hidden_layers)
        figures[f"{part}_layers_of"] = float(full[one].num_hidden_layers)
    figures = {f"{name}/{key}": value for key, value in figures.items()}
    figures |= step_figures(name, datamodule, system, own, turns=turns, dtype=dtype)
    if loop_steps:
        figures |= loop_figures(name, datamodule, system, cfg, own, steps=loop_steps)
    return figures


def heads(root, folder):
    """What share of the tokens of real heads is kept."""
    datamodule, _, _ = build(root, "real_heads", f"data.root={folder}")
    batches = [filtered_and_whole(datamodule, own) for own in datamodule.studies.values()]
    kept, whole = (
        sum(sum(image_lengths(one)) for one in own) for own in zip(*batches, strict=True)
    )
    return {"real_heads/tokens_kept": kept / whole}


def apart(function, *arguments, threads):
    """Run in a process of its own, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function, *arguments).result()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-gib", type=float, default=4.0, help="for the real models")
    parser.add_argument("--heads", type=Path, help="a BIDS folder of real heads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    jobs = [
        (tiny, "phantom", None, 32, 12),
        (tiny, "umbrella", ("T1",), 4, 4),
        (tiny, "umbrella", None, 4, 4),
        (policies,),
        (real, "05b", arguments.memory_gib, 2, 1),
        (real, "7b", arguments.memory_gib, 2, 0),
    ]
    if arguments.heads:
        jobs.append((heads, arguments.heads))
    figures = {"matmul_gflop_per_s": matmul_rate() / 1e9}
    with tempfile.TemporaryDirectory() as root:
        for function, *given in jobs:
            figures |= apart(function, root, *given, threads=arguments.threads)
    tell(figures, arguments.json)


if __name__ == "__main__":
    main()
