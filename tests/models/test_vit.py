"""A volume's features depend on its tokens and their places, and on nothing else."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neuro.errors import InputError
from neuro.models.attention import find_segments
from neuro.models.vit import VisionTransformer

LENGTHS = (5, 17, 1, 9)
NEAR = {"atol": 1e-5, "rtol": 0}


def small(**changes):
    torch.manual_seed(0)
    settings = {"dim": 48, "num_layers": 3, "num_heads": 3, "patch_voxels": 8, "position_dim": 12}
    encoder = VisionTransformer(**{**settings, **changes})
    with torch.no_grad():
        for one in encoder.parameters():  # biases and norms too, or they would be no test
            one.add_(0.1 * torch.randn_like(one))
    return encoder


def pack(lengths=LENGTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), 8, generator=generator)
    coords = torch.randint(0, 14, (sum(lengths), 3), generator=generator)
    return tokens, coords, torch.tensor([0, *lengths]).cumsum(0)


def test_packed_equals_one_by_one():
    encoder, (tokens, coords, bounds) = small(), pack()
    alone = [
        encoder(part, places, torch.tensor([0, len(part)]))
        for part, places in zip(tokens.split(LENGTHS), coords.split(LENGTHS), strict=True)
    ]
    torch.testing.assert_close(encoder(tokens, coords, bounds), torch.cat(alone), **NEAR)


def test_the_order_of_volumes_does_not_matter():
    encoder, (tokens, coords, bounds) = small(), pack()
    order = [2, 0, 3, 1]
    shuffled = encoder(
        torch.cat([tokens.split(LENGTHS)[one] for one in order]),
        torch.cat([coords.split(LENGTHS)[one] for one in order]),
        torch.tensor([0, *(LENGTHS[one] for one in order)]).cumsum(0),
    )
    features = encoder(tokens, coords, bounds).split(LENGTHS)
    torch.testing.assert_close(shuffled, torch.cat([features[one] for one in order]), **NEAR)


def test_the_order_of_tokens_does_not_matter_but_their_places_do():
    encoder, (tokens, coords, bounds) = small(), pack((20,))
    features, order = encoder(tokens, coords, bounds), torch.randperm(20)
    torch.testing.assert_close(encoder(tokens[order], coords[order], bounds), features[order])
    moved = encoder(tokens, coords[order], bounds)
    assert ((moved - features).abs().amax(dim=1) > 1e-3).all()


def test_a_volume_does_not_see_another():
    encoder, (tokens, coords, bounds) = small(), pack()
    tokens.requires_grad_()
    encoder(tokens, coords, bounds)[5:22].square().sum().backward()
    touched = tokens.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [5 <= row < 22 for row in range(32)]


def test_the_input_is_not_changed_and_twice_is_the_same():  # S69, S79
    encoder, (tokens, coords, bounds) = small(), pack()
    before = tokens.clone()
    first = encoder(tokens, coords, bounds)
    assert torch.equal(encoder(tokens, coords, bounds), first)
    assert torch.equal(tokens, before)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", 5.5), ("small", 21.7), ("base", 85.8), ("large", 303.3), ("huge", 630.9)],
)
def test_presets_are_as_large_as_they_should_be(name, millions):
    with torch.device("meta"):
        encoder = VisionTransformer.preset(name)
    assert sum(one.numel() for one in encoder.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.06
    )
    assert encoder.norm.normalized_shape == (encoder.dim,)
    assert encoder.token_embed["proj"].in_features == 1024


def test_a_preset_can_be_changed_and_must_exist():
    with torch.device("meta"):
        assert len(VisionTransformer.preset("base", num_layers=2).blocks) == 2
    with pytest.raises(InputError, match="no encoder preset 'giant'; known are tiny, small"):
        VisionTransformer.preset("giant")


@pytest.mark.parametrize("changes", [{"num_heads": 5}, {"drop_path": 1.0}, {"position_dim": 48}])
def test_widths_that_do_not_fit_are_an_error(changes):
    with pytest.raises(InputError, match=r"; got "):
        small(**changes)


def test_under_autocast_weights_and_features_are_float32():  # S23, S68
    encoder, batch = small(), pack()
    kinds = []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, given: kinds.append(given[0].dtype))
        block.mlp.fc2.register_forward_hook(lambda _, __, given: kinds.append(given.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(*batch)
    assert kinds == [torch.float32, torch.bfloat16] * 3  # the sum is kept in float32
    assert half.dtype == torch.float32
    assert {one.dtype for one in encoder.parameters()} == {torch.float32}
    torch.testing.assert_close(half, encoder(*batch), atol=0.1, rtol=0)
    half.square().sum().backward()
    assert {one.grad.dtype for one in encoder.parameters()} == {torch.float32}


def kept_bytes(encoder, batch):
    """How much the gradient keeps in memory, its own inputs aside."""
    kept: dict[int, int] = {}

    def keep(one):
        kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        encoder(*batch).sum().backward()
    return sum(kept.values()) - sum(one.nbytes for one in encoder.parameters())


def test_checkpointing_gives_the_same_for_less_memory():  # S81
    plain, batch = small(num_layers=6), pack((60, 40))
    saving = copy.deepcopy(plain)
    saving.checkpoint_activations = True
    assert kept_bytes(saving, batch) < 0.5 * kept_bytes(plain, batch)
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_teacher_does_not_compute_anything_again():  # S24, S81
    encoder, calls = small(checkpoint_activations=True), []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert not encoder(*pack()).requires_grad
    assert len(calls) == 3
    encoder(*pack()).sum().backward()
    assert len(calls) == 3 + 2 * 3


def test_whole_volumes_skip_a_branch_while_training_only():
    encoder, (tokens, coords, bounds) = small(drop_path=0.5), pack((6,) * 200)
    segments = find_segments(bounds)
    scales = torch.stack(encoder._kept(segments, 1200)).unflatten(2, (200, 6))
    assert (scales == scales[..., :1]).all()  # all tokens of a volume go together
    assert (scales[:, 0] != scales[:, 1])[1:].any()  # the two branches do not
    for layer, share in zip(scales, (0.0, 0.25, 0.5), strict=True):
        assert ((layer == 0) | ((layer - 1 / (1 - share)).abs() < 1e-6)).all()
        assert (layer == 0).float().mean().item() == pytest.approx(share, abs=0.1)
    block, features = encoder.blocks[2], torch.randn(1200, 48)
    skipped = scales[2].amax(dim=(0, 2)) == 0
    changed = block(features, segments, scales[2].flatten(1)) != features
    assert torch.equal(changed.unflatten(0, (200, 6)).any(dim=2).all(dim=1), ~skipped)
    assert not torch.equal(encoder(tokens, coords, bounds), encoder(tokens, coords, bounds))
    encoder.eval()
    assert encoder._kept(segments, 1200) == [None] * 3
    assert torch.equal(encoder(tokens, coords, bounds), encoder(tokens, coords, bounds))


def test_layers_begin_small_and_the_deeper_the_smaller():
    torch.manual_seed(0)
    encoder = VisionTransformer(192, 4, 3, patch_voxels=64)
    for index, block in enumerate(encoder.blocks):
        for layer in (block.mixer.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(
                0.02 / (2 * (index + 1)) ** 0.5, rel=0.05
            )
        assert block.mixer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mixer.proj.bias is None
        assert not block.mixer.qkv.bias.any()
        assert block.norm1.eps == 1e-6


def test_nothing_waits_for_the_device():  # S56, S80
    """On meta tensors there are no numbers to wait for."""
    encoder = small().to("meta")
    tokens, coords, bounds = (one.to("meta") for one in pack())
    assert encoder(tokens, coords, bounds, LENGTHS).shape == (32, 48)


COMPILES = """
import copy, sys, torch
sys.path.insert(0, sys.argv[1])
from test_vit import NEAR, pack, small

plain, compiled = small(drop_path=0.4), small(drop_path=0.4, compile=True)
batches = [pack(lengths) for lengths in ((5, 9, 20), (7,), (11, 12, 13, 30), (9,) * 6)]
for index, batch in enumerate(batches):
    # Another number of volumes or tokens is no news, nor is another layer.
    with torch.compiler.set_stance("fail_on_recompile" if index else "default"):
        torch.manual_seed(index)
        found = compiled(*batch)
    torch.manual_seed(index)
    want = plain(*batch)
    torch.testing.assert_close(found, want, **NEAR)
    for encoder, features in ((plain, want), (compiled, found)):
        encoder.zero_grad()
        features.square().sum().backward()
    for one, other in zip(plain.parameters(), compiled.parameters()):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)
graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
assert graphs > 0
assert list(compiled.state_dict()) == list(plain.state_dict())
copied = copy.deepcopy(compiled)
with torch.compiler.set_stance("fail_on_recompile"):
    copied(*batches[0])  # a teacher is a copy, and compiled too
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler")
def test_compiled_is_the_same_and_other_lengths_compile_nothing_again():  # S81
    """In a process of its own, since what checks shapes in tests cannot be compiled."""
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, "-c", COMPILES, here], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


# What the original needed before it could be imported, and this does not.
FOREIGN = "flash_attn torch_scatter torchvision timm peft outlines triton fused_dense_lib xformers"

IMPORTS = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[1].split()))  # to import them is an error
import neuro.models.attention, neuro.models.predictor, neuro.models.vit, neuro.systems.jepa
from neuro.models.vit import VisionTransformer
encoder = VisionTransformer(24, 1, 2, patch_voxels=8, position_dim=6)
import torch
bounds, coords = torch.tensor([0, 5]), torch.zeros(5, 3, dtype=torch.int64)
encoder(torch.randn(5, 8), coords, bounds).sum().backward()
"""


def test_an_encoder_needs_no_cuda_and_nothing_that_is_compiled_on_install():  # S61, S62
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", IMPORTS, FOREIGN]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_on_cuda_in_half_precision_it_is_nearly_the_same(compiled):
    encoder, batch = small(dim=128, num_heads=2), pack((300, 17, 64))
    want = encoder(*batch)
    want.square().sum().backward()
    on_cuda = copy.deepcopy(encoder).cuda()
    on_cuda.compiled = compiled
    with torch.autocast("cuda", torch.bfloat16):
        found = on_cuda(*(one.cuda() for one in batch), (300, 17, 64))
    assert found.dtype == torch.float32
    found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), want, atol=0.15, rtol=0)
    for one, other in zip(encoder.parameters(), on_cuda.parameters(), strict=True):
        near = torch.nn.functional.cosine_similarity(one.grad.ravel(), other.grad.cpu().ravel(), 0)
        assert near > 0.95


@pytest.mark.gpu
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_on_cuda_in_float32_it_is_the_same(checkpoint_activations):  # S68
    """There the kernel for packed tokens does not exist."""
    encoder, batch = small(dim=128, num_heads=2), pack((300, 17, 64))
    want = encoder(*batch)
    want.square().sum().backward()
    on_cuda = copy.deepcopy(encoder).cuda()
    on_cuda.checkpoint_activations = checkpoint_activations
    found = on_cuda(*(one.cuda() for one in batch), (300, 17, 64))
    found.square().sum().backward()
    torch.testing.assert_close(found.cpu(), want, atol=1e-3, rtol=0)
    for one, other in zip(encoder.parameters(), on_cuda.parameters(), strict=True):
        near = torch.nn.functional.cosine_similarity(one.grad.ravel(), other.grad.cpu().ravel(), 0)
        assert near > 0.999
