"""What a run learned is loaded again, by this project and by transformers, and says the same."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file
from small_llava import batch_of, mixed_studies, small_llava, study_of
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from neuro import command
from neuro.data.collate import Background, ConversationCollator
from neuro.data.contract import Contract
from neuro.data.conversation import Turn
from neuro.data.fixed_grid import FixedGrid
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError
from neuro.export import _run, new_folder
from neuro.models.connector import PerceiverConnector
from neuro.models.eye import begin_with
from neuro.models.llava import load_llava, load_tokenizer
from neuro.models.policy import Policy
from neuro.models.tower_llava import TowerLlava
from neuro.models.tuning import Lora, merge_adapters
from neuro.models.vit import VisionTransformer
from neuro.models.vit_llava import VitLlava
from neuro.models.volume_embed import GAIN
from neuro.models.weights import load_weights, read_checkpoint
from neuro.train import train

PADDING = 37  # rows of a table of embeddings that no token has, as Qwen's has
ADAPTERS = {"_target_": "neuro.models.tuning.Lora", "rank": 2, "layers": ["q_proj", "v_proj"]}
POLICIES = {
    "embeddings": {},
    "projector": {"projector": True},
    "lora": {"lora": {"vision_tower": ADAPTERS, "language_model": ADAPTERS}},
    "none": {"projector": True, "vision_tower": True, "language_model": True},
}
ENCODER = {"dim": 48, "num_layers": 2, "num_heads": 3, "patch_voxels": 216}
CONNECTOR = {"num_queries": 3, "num_heads": 3}
CUBE = FixedGrid(shape=(12, 12, 12), spacing_mm=16.0, patch=(6, 6, 6), percentiles=(0.5, 99.5))


def needs_peft(name):
    if name == "lora" and importlib.util.find_spec("peft") is None:
        pytest.skip("the extra lora is not installed")


def policy_of(name):
    lora = {
        one: Lora(rank=2, layers=["q_proj", "v_proj"]) for one in POLICIES[name].get("lora", ())
    }
    return Policy(**{**POLICIES[name], **({"lora": lora} if lora else {})})


def drawn(model):
    """Draw all that is trained anew: about as large as it was, and adapters with an effect."""
    generator = torch.Generator().manual_seed(9)
    for one in model.parameters():
        if one.requires_grad:
            one.data = 0.2 * torch.randn(one.shape, generator=generator)
    return model.eval()


def base_of(folder, kind, text, *, tied=False, dtype=torch.float32):
    """Write a pretrained model, its table padded, and its tokenizer; return its parts."""
    rows = len(text.tokenizer) + PADDING
    small_llava(kind, rows, text.image_id, tied=tied, seed=4).to(dtype).save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)
    return {
        "llava": {
            "_target_": "neuro.models.llava.load_llava",
            "name": str(folder),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "text": {
            "_target_": "neuro.data.text.TextEncoder",
            "tokenizer": {"_target_": "neuro.models.llava.load_tokenizer", "name": str(folder)},
            "chat_format": {"clip": "vicuna", "siglip": "chatml"}[kind],
            "image_token": "<image>",
            "max_length": 512,
        },
    }


def write_checkpoint(path, model, parts, recipes, policy):
    contract = Contract(recipes=recipes, min_foreground=0.5, statistics={"mri": (0.4, 0.3)})
    state = model.state_dict()
    held = {
        "state_dict": {f"llava.{name}": state[name].clone() for name in model.kept_names()},
        "contract": contract.plain(),
        "parts": {
            **parts,
            "policy": {"_target_": "neuro.models.policy.Policy", **POLICIES[policy]},
        },
    }
    path.parent.mkdir(parents=True)
    torch.save(held, path)


def node(recipe):
    return {"_target_": f"{type(recipe).__module__}.{type(recipe).__name__}"} | dataclasses.asdict(
        recipe
    )


@pytest.fixture
def tower(tmp_path, texts, recipes):
    """Return a function that writes a run folder of a tower, and returns its model."""

    def build(kind="siglip", policy="embeddings", *, trained=None, **settings):
        needs_peft(policy)
        parts = base_of(tmp_path / "base", kind, texts[kind], **settings)
        parts["vision"] = {
            "_target_": "neuro.models.tower_llava.TowerLlava",
            "_partial_": True,
            "grids": {name: node(one) for name, one in recipes.items()},
            "positions": "axes",
        }
        llava = load_llava(str(tmp_path / "base"), parts["llava"]["dtype"])
        model = drawn(TowerLlava(llava, recipes, policy_of(policy), "axes"))
        shown = {name: one for name, one in recipes.items() if name in (trained or recipes)}
        write_checkpoint(tmp_path / "run/checkpoints/best.ckpt", model, parts, shown, policy)
        return model

    return build


@pytest.fixture
def vit(tmp_path, texts):
    """Return a function that writes a run folder of an encoder of ours, and returns its model."""

    def build(policy="embeddings", tuning="Frozen"):
        needs_peft("lora" if tuning == "Lora" else policy)
        parts = base_of(tmp_path / "base", "siglip", texts["siglip"])
        parts["vision"] = {
            "_target_": "neuro.models.vit_llava.VitLlava",
            "_partial_": True,
            "encoder": {"_target_": "neuro.models.vit.VisionTransformer", **ENCODER},
            "connector": {
                "_target_": "neuro.models.connector.PerceiverConnector",
                "_partial_": True,
                **CONNECTOR,
            },
            "tuning": {"_target_": f"neuro.models.tuning.{tuning}"},
            "init_from": "a/run/that/is/gone",
        }
        model = drawn(vit_of(tmp_path / "base", policy, tuning))
        run = tmp_path / "run/checkpoints/best.ckpt"
        write_checkpoint(run, model, parts, {"T1": CUBE}, policy)
        return model

    return build


def vit_of(base, policy="embeddings", tuning="Frozen"):
    torch.manual_seed(5)
    return VitLlava(
        load_llava(str(base), "float32"),
        VisionTransformer(**ENCODER),
        lambda **sizes: PerceiverConnector(**sizes, **CONNECTOR),
        getattr(sys.modules["neuro.models.tuning"], tuning)(),
        policy_of(policy),
    )


@pytest.fixture
def export(tmp_path, monkeypatch, capfd):
    """Run the command on the run folder; return its exit status and what it printed."""

    def call(*words):
        given = [f"ckpt_path={tmp_path / 'run'}", f"paths.root={tmp_path}", *words]
        monkeypatch.setattr(sys, "argv", ["export", *given])
        GlobalHydra.instance().clear()
        status = command.run("export", _run)
        out, err = capfd.readouterr()
        return status, out + err

    return call


@torch.no_grad()
def logits_of(model, batch):
    features = model.image_features(batch.volumes, batch.images)
    hidden = model.llava.get_input_embeddings()(batch.input_ids).clone()
    hidden[batch.input_ids == model.image_id] = torch.cat(features)
    return model.llava(inputs_embeds=hidden, attention_mask=batch.attention_mask).logits


def plain(folder):
    """Load a folder as everybody does, and check that nothing is missing or left over."""
    model, found = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found[f"{one}_keys"] for one in ("missing", "unexpected", "mismatched"))
    return model


# ---------------------------------------------------------------- the whole model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_merged_model_says_exactly_what_the_run_did(
    tower, export, tmp_path, recipes, kind, policy, tied, texts, collate
):  # D22, D23
    model = tower(kind, policy, tied=tied)
    status, printed = export("what=model", f"output={tmp_path / 'out'}")
    assert status == 0, printed
    loaded = plain(tmp_path / "out")
    assert loaded.get_input_embeddings().num_embeddings == len(texts[kind].tokenizer) + PADDING
    assert loaded.lm_head.weight.shape == loaded.get_input_embeddings().weight.shape
    tables = {loaded.get_input_embeddings().weight.data_ptr(), loaded.lm_head.weight.data_ptr()}
    assert len(tables) == (1 if tied else 2)
    again = TowerLlava(load_llava(str(tmp_path / "out"), "float32"), recipes, Policy(), "axes")
    assert begin_with(again, tmp_path / "out").complete
    batch = batch_of(mixed_studies(), recipes, collate)
    before = logits_of(model, batch)
    merge_adapters(model.llava)
    assert torch.equal(logits_of(again.eval(), batch), logits_of(model, batch))
    torch.testing.assert_close(logits_of(again, batch), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", ["embeddings", "projector"])
def test_a_merged_model_still_looks_at_pictures_as_its_base_does(
    tower, export, tmp_path, kind, policy
):
    tower(kind, policy)
    assert export("what=model", f"output={tmp_path / 'out'}")[0] == 0
    base, loaded = plain(tmp_path / "base"), plain(tmp_path / "out")
    assert (
        loaded.config.vision_feature_select_strategy == base.config.vision_feature_select_strategy
    )
    pixels = torch.randn(1, 3, 32, 32)
    seen, expected = (one.eval().model.vision_tower(pixels)[0] for one in (loaded, base))
    assert torch.equal(seen, expected)
    weights, before = loaded.state_dict(), base.state_dict()
    assert weights.keys() == before.keys()
    changed = {name for name, one in weights.items() if not torch.equal(one, before[name])}
    assert all("multi_modal_projector" in name for name in changed)
    assert bool(changed) == (policy == "projector")


@pytest.mark.parametrize("policy", ["embeddings", "lora"])
def test_a_merged_model_in_half_precision_keeps_what_was_trained_whole(
    tower, export, tmp_path, recipes, policy, texts
):
    model = tower("siglip", policy, dtype=torch.bfloat16)
    assert export("what=model", f"output={tmp_path / 'out'}")[0] == 0
    assert {one.dtype for one in plain(tmp_path / "out").parameters()} == {torch.bfloat16}
    merge_adapters(model.llava)
    held = load_file(tmp_path / "out/model.safetensors")
    (name,) = (
        one
        for one in held
        if "language" in one and one.endswith("layers.0.self_attn.q_proj.weight")
    )
    expected = model.llava.model.language_model.layers[0].self_attn.q_proj.weight
    assert held[name].dtype == (torch.float32 if policy == "lora" else torch.bfloat16)
    assert torch.equal(held[name], expected)


def test_the_tokenizer_brings_its_chat_and_marks_what_is_said(tower, export, tmp_path, kind, texts):
    tower(kind)
    assert export("what=model", f"output={tmp_path / 'out'}")[0] == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == texts[kind].tokenizer.get_vocab()
    study = study_of("a", "T1", turns=(Turn("user", ("Side?",)), Turn("assistant", ("left",))))
    expected = texts[kind](study.conversation, [])
    said = [("user", "Side?"), ("assistant", "left")]
    messages = [{"role": a, "content": [{"type": "text", "text": b}]} for a, b in said]
    found = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found["input_ids"] == expected.input_ids.tolist()
    assert found["assistant_masks"] == (expected.labels != IGNORE).int().tolist()
    picture = [{"role": "user", "content": [{"type": "image"}]}]
    assert "<image>" in tokenizer.apply_chat_template(picture, tokenize=False)
    chat_format = {"clip": "vicuna", "siglip": "chatml"}[kind]
    settings = {"chat_format": chat_format, "image_token": "<image>", "max_length": 512}
    assert TextEncoder(load_tokenizer(str(tmp_path / "out")), **settings).image_id >= 0


@pytest.mark.parametrize(
    ("policy", "tuning"),
    [("embeddings", "Frozen"), ("none", "FineTuned"), ("lora", "Frozen"), ("embeddings", "Lora")],
)
def test_a_model_with_an_encoder_of_ours_is_merged_beside_its_eye(
    vit, export, tmp_path, texts, policy, tuning
):
    model = vit(policy, tuning)
    status, printed = export("what=model", f"output={tmp_path / 'out'}")
    assert status == 0, printed
    base, loaded = plain(tmp_path / "base").state_dict(), plain(tmp_path / "out").state_dict()
    for name, one in loaded.items():
        if "vision_tower" in name or "projector" in name:
            assert torch.equal(one, base[name])
    again = vit_of(tmp_path / "out")
    assert begin_with(again, tmp_path / "out").complete
    collator = ConversationCollator(
        texts["siglip"], Background(min_foreground=0.5), slots_per_image=3, any_grid=True
    )
    batch = batch_of([study_of("a", "T1"), study_of("b", "T1", "T1")], {"T1": CUBE}, collator)
    before = logits_of(model, batch)
    merge_adapters(model)
    assert torch.equal(logits_of(again.eval(), batch), logits_of(model, batch))
    torch.testing.assert_close(logits_of(again, batch), before, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- what it sees with


def test_embedders_are_two_small_files_that_a_model_begins_with(tower, export, tmp_path, recipes):
    model = tower()
    status, printed = export()
    assert status == 0, printed
    folder = tmp_path / "run/export/embedders"
    assert {one.name for one in folder.iterdir()} == {"embedders.safetensors", "embedders.json"}
    mode = folder.stat().st_mode & 0o666  # whoever may look into the folder may read them
    assert {one.stat().st_mode & 0o777 for one in folder.iterdir()} == {mode}
    told = json.loads((folder / "embedders.json").read_text())
    assert told["modalities"].keys() == recipes.keys()
    assert told["modalities"]["rsfMRI"] == {"shape": [24, 24, 24, 8], "patch": [12, 12, 12, 4]}
    assert (told["positions"], told["gain"], told["dim"]) == ("axes", GAIN, 32)
    assert {"neuro", "torch", "transformers"} == told["versions"].keys()
    assert Contract.of_plain(told["contract"], "it").recipes == recipes
    assert str(tmp_path) not in json.dumps(told)
    for source in (folder, folder / "embedders.safetensors"):
        again = TowerLlava(load_llava(str(tmp_path / "base"), "float32"), recipes, Policy(), "axes")
        assert begin_with(again, source).complete
        assert read_checkpoint(source)["contract"] == told["contract"]
        for name, one in model.embeddings.state_dict().items():
            assert torch.equal(again.embeddings.state_dict()[name], one)


def test_only_modalities_that_were_trained_on_are_written(tower, export, tmp_path):
    tower(trained=["T1"])
    assert export()[0] == 0
    held = load_file(tmp_path / "run/export/embedders/embedders.safetensors")
    assert {name.split(".")[1] for name in held} == {"T1"}


def test_an_adapted_encoder_is_written_as_a_plain_one(vit, export, tmp_path):
    model = vit(tuning="Lora")
    status, printed = export()
    assert status == 0, printed
    folder = tmp_path / "run/export/embedders"
    encoder = VisionTransformer(**ENCODER)
    load_weights(encoder, folder)  # as system.vision.init_from does
    adapted = vit_of(tmp_path / "base", tuning="Lora")
    begin_with(adapted, folder)
    merge_adapters(model)
    for name, one in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], one)
    merge_adapters(adapted)
    assert torch.equal(adapted.encoder.norm.weight, encoder.norm.weight)
    told = json.loads((folder / "embedders.json").read_text())
    assert told["encoder"]["num_layers"] == 2
    assert told["connector"]["num_queries"] == 3
    assert "gone" not in json.dumps(told)


# ---------------------------------------------------------------- mistakes


def test_help_is_there_at_once(export, monkeypatch):
    with pytest.raises(SystemExit) as left:
        export("--help")
    assert left.value.code == 0


def test_a_folder_that_holds_something_is_refused_and_stays(tower, export, tmp_path):
    tower()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    status, printed = export(f"output={tmp_path / 'out'}")
    assert status == 2
    assert "is there and not empty. Name a folder that is not there" in printed
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out/mine").unlink()
    assert export(f"output={tmp_path / 'out'}")[0] == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_interrupted_leaves_nothing(tmp_path, error):
    def half():
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(error):
        half()
    assert not list(tmp_path.iterdir())


def test_a_wrong_word_or_checkpoint_is_told_with_its_cure(tower, export, tmp_path):
    tower()
    status, printed = export("what=everything")
    assert (status, "what must be one of embedders, model" in printed) == (2, True)
    path = tmp_path / "run/checkpoints/best.ckpt"
    held = torch.load(path)
    for change, message in [
        ({"parts": {"encoder": {}}}, "is no checkpoint of system=llava_mri"),
        ({"parts": {**held["parts"], "text": {"_target_": "os.system"}}}, "asks for os.system"),
        (
            {"parts": {**held["parts"], "text": {"_target_": "neuro.data.whole_file.remove"}}},
            "asks for neuro.data.whole_file.remove",
        ),
    ]:
        torch.save({**held, **change}, path)
        status, printed = export("what=model")
        assert status == 2, printed
        assert message in printed
    torch.save({**held, "state_dict": dict(list(held["state_dict"].items())[1:])}, path)
    status, printed = export("what=model")
    assert status == 2
    assert "its weights do not fit its parts; 1 differ" in printed
    assert not (tmp_path / "run/export/model").exists()
    path.unlink()
    status, printed = export()
    assert status == 2
    assert "holds neither checkpoints/best.ckpt" in printed


# ---------------------------------------------------------------- end to end


@pytest.mark.slow
def test_a_run_of_the_tiny_model_is_exported_and_begun_with(tmp_path, export):
    def cfg(*words):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(command.CONF), version_base="1.3"):
            small = ["data.num_subjects=20", "trainer.max_steps=2", "trainer.accelerator=cpu"]
            small += ["system.max_new_tokens=4"]
            tiny = [f"system.llava.{one}" for one in ("dim=32", "num_layers=2", "num_heads=2")]
            tiny += ["system.llava.steps=2"]
            pretrained = any(word.startswith("model=") for word in words)
            given = [f"paths.root={tmp_path}", *small, *([] if pretrained else tiny), *words]
            found = compose("train", overrides=given)
        command.resolve(found)
        return found

    train(cfg(f"paths.run_dir={tmp_path / 'run'}"))
    assert (tmp_path / "run/checkpoints/last.ckpt").stat().st_size < 5e6
    status, printed = export("what=model", f"output={tmp_path / 'out'}")
    assert status == 0, printed
    plain(tmp_path / "out")
    train(
        cfg(
            "model=llava_interleave_05b",
            f"system.text.tokenizer.name={tmp_path / 'out'}",
            f"init_from={tmp_path / 'out'}",
            f"paths.run_dir={tmp_path / 'again'}",
            "plan=true",
        )
    )
    with pytest.raises(InputError, match=r"data\.recipes\.T1\.spacing_mm: 4\.0 -> 5\.0"):
        train(
            cfg(
                f"init_from={tmp_path / 'out'}",
                f"paths.run_dir={tmp_path / 'other'}",
                "data.recipes.T1.spacing_mm=5.0",
            )
        )
