"""Weights of the original's layout load whole, and nothing is left out in silence."""

from __future__ import annotations

import datetime
import logging
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from neuro.errors import InputError
from neuro.models.vit import VisionTransformer
from neuro.models.weights import load_weights, read_checkpoint, read_weights, weights_file

PREFIXES = ["", "student_encoder.", "model.student.vision_encoder."]
SMALL = {"dim": 48, "num_layers": 2, "num_heads": 3, "patch_voxels": 16}


def original(*, dim=768, num_layers=12, patch_voxels=1024, positions=30, seed=0, **_):
    """Random weights, named and shaped as NeuroVFM writes them; attention in bfloat16."""
    shapes = {
        "token_embed.proj.weight": (dim - positions, patch_voxels),
        "token_embed.proj.bias": (dim - positions,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for index in range(num_layers):
        block = {
            "norm1.weight": (dim,),
            "norm1.bias": (dim,),
            "mixer.qkv.weight": (3 * dim, dim),
            "mixer.qkv.bias": (3 * dim,),
            "mixer.proj.weight": (dim, dim),
            "norm2.weight": (dim,),
            "norm2.bias": (dim,),
            "mlp.fc1.weight": (4 * dim, dim),
            "mlp.fc1.bias": (4 * dim,),
            "mlp.fc2.weight": (dim, 4 * dim),
            "mlp.fc2.bias": (dim,),
        }
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: shape[-1] ** -0.5 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    return {name: one.bfloat16() if "mixer" in name else one for name, one in state.items()}


def prefixed(state, prefix):
    return {prefix + name: one for name, one in state.items()}


def batch(voxels, num=6):
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randn(num, voxels, generator=generator)
    return tokens, torch.randint(0, 12, (num, 3), generator=generator), torch.tensor([0, num])


@pytest.fixture(scope="module")
def released():
    return original()


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_tensor_of_the_original_finds_its_place_in_the_base_preset(prefix, released):  # S52
    with torch.device("meta"):
        encoder = VisionTransformer.preset("base")
    encoder = encoder.to_empty(device="cpu")
    report = load_weights(encoder, prefixed(released, prefix))
    assert report.complete
    assert (len(report.matched), report.prefix) == (4 + 12 * 11, prefix)
    for name, one in encoder.state_dict().items():
        assert one.dtype == torch.float32  # S23
        assert torch.equal(one, released[name].float())
    if not prefix:
        encoder(*batch(1024)).square().sum().backward()
        assert all(one.grad.abs().sum() > 0 for one in encoder.parameters())


def written_out(state, tokens, coords, *, num_heads):
    """The original for one volume, formula by formula, from its weights."""
    state = {name: one.float() for name, one in state.items()}
    angles = coords[:, :, None] * 10000 ** (-torch.arange(0, 10, 2) / 10)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).reshape(len(coords), 30)
    embedded = F.linear(tokens, state["token_embed.proj.weight"], state["token_embed.proj.bias"])
    x = torch.cat((embedded, waves), dim=1)

    def normed(x, name):
        centred = x - x.mean(dim=1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    for index in range(sum(name.endswith("fc1.weight") for name in state)):
        at = f"blocks.{index}."
        joint = normed(x, at + "norm1") @ state[at + "mixer.qkv.weight"].T
        joint = (joint + state[at + "mixer.qkv.bias"]).reshape(len(x), 3, num_heads, -1)
        query, key, value = joint.permute(1, 2, 0, 3)
        scores = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        gathered = (scores @ value).transpose(0, 1).reshape(len(x), -1)
        x = x + gathered @ state[at + "mixer.proj.weight"].T
        hidden = normed(x, at + "norm2") @ state[at + "mlp.fc1.weight"].T
        hidden = hidden + state[at + "mlp.fc1.bias"]
        cubic = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + cubic.tanh())
        x = x + hidden @ state[at + "mlp.fc2.weight"].T + state[at + "mlp.fc2.bias"]
    return normed(x, "norm")


def test_features_are_those_of_the_original():
    state, encoder = original(**SMALL), VisionTransformer(**SMALL)
    load_weights(encoder, state)
    tokens, coords, bounds = batch(16)
    want = written_out(state, tokens, coords, num_heads=3)
    torch.testing.assert_close(encoder(tokens, coords, bounds), want, atol=1e-5, rtol=1e-5)


def test_our_weights_have_the_names_and_shapes_of_the_original():
    ours = VisionTransformer(**SMALL).state_dict()
    theirs = original(**SMALL)
    assert {name: one.shape for name, one in ours.items()} == {
        name: one.shape for name, one in theirs.items()
    }


@pytest.mark.parametrize("form", ["safetensors", "pt", "ckpt", "bin folder", "safetensors folder"])
def test_all_forms_of_a_file_give_the_same(tmp_path, form):  # S71
    state = original(**SMALL)
    path = {"bin folder": tmp_path / "pytorch_model.bin"}.get(form, tmp_path / f"model.{form}")
    if form == "safetensors folder":
        path = tmp_path / "model.safetensors"
    if "safetensors" in form:
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 3} if form == "ckpt" else state, path)
    encoder = VisionTransformer(**SMALL)
    assert load_weights(encoder, tmp_path if "folder" in form else path).complete
    assert torch.equal(encoder.norm.weight, state["norm.weight"])


@pytest.mark.parametrize("prefix", ["nothing_like_it.", "model.teacher."])
def test_no_match_is_an_error_and_changes_nothing(prefix):  # S52
    encoder = VisionTransformer(**SMALL)
    before = {name: one.clone() for name, one in encoder.state_dict().items()}
    held = prefixed(original(**SMALL), "student_encoder.")
    with pytest.raises(InputError, match=r"none of its 26 tensors matches.*student_encoder"):
        load_weights(encoder, held, prefix=prefix)
    with pytest.raises(InputError, match="none of its 26 tensors"):
        load_weights(encoder, prefixed(original(**SMALL), prefix), partial=True)
    for name, one in encoder.state_dict().items():
        assert torch.equal(one, before[name])


def test_a_prefix_leads_a_name_and_does_not_just_occur_in_it():  # S52
    held = prefixed(original(**SMALL), "old.student_encoder.")
    with pytest.raises(InputError, match="none of its"):
        load_weights(VisionTransformer(**SMALL), held)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "other shape"])
def test_a_partial_match_is_an_error_unless_it_is_allowed(fault, caplog):  # S72
    state, name = original(**SMALL), "blocks.1.mlp.fc1.bias"
    if fault == "missing":
        del state[name]
    elif fault == "unexpected":
        name = "cls_token"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    encoder = VisionTransformer(**SMALL)
    before = {key: one.clone() for key, one in encoder.state_dict().items()}
    with pytest.raises(InputError, match=rf"of 26 tensors match.*; {fault}: {name}"):
        load_weights(encoder, state)
    assert all(torch.equal(one, before[key]) for key, one in encoder.state_dict().items())
    with caplog.at_level(logging.INFO, logger="neuro"):
        report = load_weights(encoder, state, partial=True)
    assert not report.complete
    assert caplog.records[-1].levelno == logging.WARNING
    assert f"{fault}: {name}" in caplog.text
    assert torch.equal(encoder.norm.weight, state["norm.weight"])
    if fault != "unexpected":
        assert torch.equal(encoder.state_dict()[name], before[name])


def test_the_table_counts_every_tensor(caplog):  # S52
    state = prefixed(original(**SMALL), "model.student.vision_encoder.")
    state |= prefixed(original(**SMALL, seed=1), "model.teacher.vision_encoder.")
    with caplog.at_level(logging.INFO, logger="neuro"):
        report = load_weights(VisionTransformer(**SMALL), state)
    assert report.elsewhere == 26
    rows = {line.split()[0]: line.split()[1:] for line in report.table().splitlines()[1:]}
    assert rows == {
        "blocks": ["22", "0", "0", "0"],
        "norm": ["2", "0", "0", "0"],
        "token_embed": ["2", "0", "0", "0"],
        "all": ["26", "0", "0", "0"],
    }
    assert report.table() in caplog.text
    assert "'model.student.vision_encoder.', 26 other tensors" in caplog.text


def test_a_wrong_size_says_both_sizes():
    with pytest.raises(InputError, match=r"none of its 26 tensors.*have its names but other"):
        load_weights(VisionTransformer(96, 2, 3, patch_voxels=32), original(**SMALL))
    with pytest.raises(InputError, match=r"other shape: token_embed.*\[18, 16\] for \[18, 32\]"):
        load_weights(VisionTransformer(**{**SMALL, "patch_voxels": 32}), original(**SMALL))


def test_what_is_more_than_tensors_is_not_unpickled(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": original(**SMALL), "made": datetime.timedelta(1)}, path)
    with pytest.raises(InputError, match="more than tensors and plain values"):
        read_weights(path)


def test_what_is_no_file_of_weights_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_weights(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="holds neither checkpoints"):
        read_weights(tmp_path)
    for name in ("text.pt", "text.safetensors", "empty.pt"):
        (tmp_path / name).write_bytes(b"" if name == "empty.pt" else b"no weights at all")
        with pytest.raises(InputError, match="is no file of weights"):
            read_weights(tmp_path / name)
    torch.save({"step": 3}, tmp_path / "none.pt")
    with pytest.raises(InputError, match="holds no tensors"):
        read_weights(tmp_path / "none.pt")


def test_a_run_folder_gives_its_best_checkpoint_or_its_last(tmp_path):  # S54
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run holds neither checkpoints/best\.ckpt nor"):
        weights_file(folder)
    for seed, name in enumerate(["last.ckpt", "best.ckpt"]):
        path = folder / "checkpoints" / name
        torch.save({"state_dict": prefixed(original(**SMALL, seed=seed), "student.")}, path)
        assert weights_file(folder) == path
        assert weights_file(str(path)) == path
        encoder = VisionTransformer(**SMALL)
        assert load_weights(encoder, folder).complete
        assert torch.equal(encoder.token_embed["proj"].weight, read_weights(path)[TOKENS])


TOKENS = "student.token_embed.proj.weight"


def test_what_a_checkpoint_says_besides_its_weights_is_read(tmp_path):
    path = tmp_path / "last.ckpt"
    said = {"contract": {"labels": ["x"]}, "parts": {"pool": {"dropout": 0.5}}}
    torch.save({"state_dict": original(**SMALL), **said}, path)
    read = read_checkpoint(path)
    assert {name: read[name] for name in said} == said
    for name, save in (("model.safetensors", save_file), ("model.pt", torch.save)):
        save(original(**SMALL), tmp_path / name)
        assert read_checkpoint(tmp_path / name) == {}  # tensors alone say nothing


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_checkpoint_that_was_cut_off_is_an_error_of_one_line(tmp_path, share):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": original(**SMALL)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    for read in (read_checkpoint, read_weights):
        with pytest.raises(InputError, match=r"last\.ckpt is no file of weights") as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_an_archive_with_packed_members_is_not_unpacked(tmp_path):  # torch.save packs none
    import zipfile

    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as given,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as made,
    ):
        for name in given.namelist():
            more = bytes(1 << 28) if name.endswith("data.pkl") else b""
            made.writestr(name, given.read(name) + more)
    assert (tmp_path / "b.ckpt").stat().st_size < 1 << 20
    with pytest.raises(InputError, match="is no file of weights"):
        read_weights(tmp_path / "b.ckpt")


def test_a_file_that_trips_the_unpickler_is_no_file_of_weights(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.ckpt").read_bytes()
    for place in range(0, len(data), 3):
        (tmp_path / "b.ckpt").write_bytes(data[:place] + b"\xff" + data[place + 1 :])
        with suppress(InputError):  # and nothing else; some bytes do not matter
            read_weights(tmp_path / "b.ckpt")


@pytest.mark.parametrize("told", ["[" * 100_000, "not json", "[]", "9" * 5000])
def test_weights_that_say_nonsense_of_themselves_are_an_error(tmp_path, told):
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors", metadata={"neuro": told})
    with pytest.raises(InputError, match=r"a\.safetensors: what it says of its weights"):
        read_checkpoint(tmp_path / "a.safetensors")
