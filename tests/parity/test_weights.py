"""Checkpoints of every kind, read, refused and written; weights seen in the field's shapes."""

import copy
import io
import json
import pickle
import shutil

import huggingface_hub.constants
import pytest
import tiny
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import WhisperForConditionalGeneration, WhisperModel

from hooked_asr import (
    CheckpointError,
    ConfigError,
    FrontEndConfig,
    HookedEncoderDecoder,
    HookedWhisper,
    ModelConfig,
    StackConfig,
)
from hooked_asr.models.pretrained import PretrainedModel
from hooked_asr.weights.source import Source
from hooked_asr.weights.whisper import WHISPER

every_layout = pytest.mark.parametrize("layout", tiny.LAYOUTS)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as the reference writes it today."""
    tiny.hf_whisper().save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper"


@torch.no_grad()
def logits_of(model):
    mel, tokens = tiny.inputs(model)
    if isinstance(model, HookedEncoderDecoder):
        return model(mel, tokens)
    return model(mel, decoder_input_ids=tokens).logits


def same_memory(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def theirs(hf, model):
    """The reference's parameter for each of ours."""
    by_key = {key.removeprefix("model."): p for key, p in hf.named_parameters()}
    return {name: by_key[model.source.key(name)] for name, _ in model.named_parameters()}


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, edit):
    """Rewrite the tensors of a folder, after `edit` has changed the dict of them in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(place, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        HookedWhisper.from_pretrained(place, **options)
    return str(caught.value)


# Reading


@every_layout
def test_a_saved_folder_loads(tmp_path, layout):
    hf = tiny.hf_whisper(layout)
    hf.save_pretrained(tmp_path)
    model = HookedWhisper.from_pretrained(tmp_path)
    assert torch.equal(logits_of(model), logits_of(hf))
    assert not model.training
    assert model.tokenizer is None
    assert model.generation_config.to_dict() == hf.generation_config.to_dict()
    assert model.config == HookedWhisper.config_of(tmp_path)


@pytest.mark.parametrize("layout", ["base", "untied"])
def test_shards_load(tmp_path, layout):
    hf = tiny.hf_whisper(layout)
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(tmp_path)), logits_of(hf))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before_torch_1.6"])
@pytest.mark.parametrize("prefix", ["model.", ""], ids=["prefixed", "bare"])
@pytest.mark.parametrize("unembedding", ["stored", "left_out"])
def test_a_pickle_loads(folder, prefix, unembedding, zipped):
    hf = tiny.hf_whisper()
    weights = {key.replace("model.", prefix): tensor for key, tensor in hf.state_dict().items()}
    if unembedding == "left_out":
        del weights["proj_out.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(folder)), logits_of(hf))


def test_a_sharded_pickle_loads(folder):
    weights = {k: v for k, v in tiny.hf_whisper().state_dict().items() if k != "proj_out.weight"}
    (folder / "model.safetensors").unlink()
    weight_map = {key: f"part-{i % 2}.bin" for i, key in enumerate(weights)}
    for part in set(weight_map.values()):
        torch.save({k: weights[k] for k in weights if weight_map[k] == part}, folder / part)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(folder)), logits_of(tiny.hooked()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_converts_what_is_stored(folder, dtype):
    model = HookedWhisper.from_pretrained(folder, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(logits_of(model), logits_of(tiny.hf_whisper().to(dtype)))


def test_without_dtype_weights_keep_the_type_they_are_stored_in(tmp_path):
    tiny.hf_whisper(dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert HookedWhisper.from_pretrained(tmp_path).dtype == torch.bfloat16


PUBLISHED = {  # what configs on the hub say besides, from openai/whisper-base and fine-tuned models
    "_name_or_path": "openai/whisper-base",
    "_attn_implementation_autoset": True,
    "forced_decoder_ids": [[1, None], [2, 47], [3, 49]],
    "max_length": 24,
    "num_hidden_layers": 2,
    "suppress_tokens": [1, 7, 9],
    "torch_dtype": "float32",
    "transformers_version": "4.27.0.dev0",
}


def test_fields_of_published_configs_are_known(folder):
    edit_json(folder / "config.json", **PUBLISHED)
    expected = WhisperForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(folder)), logits_of(expected))


# A model in memory


@every_layout
def test_a_model_in_memory_is_shared_not_copied(layout):
    hf = tiny.hf_whisper(layout)
    model = HookedWhisper.from_hf(hf)
    ours = dict(model.named_parameters())
    for name, parameter in theirs(hf, model).items():
        assert ours[name].data_ptr() == parameter.data_ptr(), name
        assert ours[name].requires_grad == parameter.requires_grad, name
    with torch.no_grad():
        hf.model.decoder.layers[0].fc1.bias.add_(1)
    assert torch.equal(logits_of(model), logits_of(hf))


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_are_kept_both_ways(training):
    model = HookedWhisper.from_hf(tiny.hf_whisper().train(training))
    assert model.training == training
    assert model.to_hf().training == training


def test_a_bare_whisper_model_will_do():
    hf = tiny.hf_whisper()
    assert isinstance(hf.model, WhisperModel)
    assert torch.equal(logits_of(HookedWhisper.from_hf(hf.model)), logits_of(hf))


def test_adapters_must_be_merged_first():
    hf = tiny.hf_whisper()
    hf.peft_config = {"default": "an adapter"}
    with pytest.raises(CheckpointError, match="merge_and_unload"):
        HookedWhisper.from_hf(hf)


@every_layout
def test_there_and_back_again(tmp_path, layout):
    hf = tiny.hf_whisper(layout)
    model = HookedWhisper.from_hf(hf)
    back = model.to_hf()
    assert type(back) is type(hf)
    for name, parameter in theirs(back, model).items():
        assert parameter.data_ptr() == model.get_parameter(name).data_ptr(), name
        assert parameter.requires_grad == model.get_parameter(name).requires_grad, name
    assert torch.equal(logits_of(back), logits_of(hf))
    assert back.config.to_dict() == hf.config.to_dict()
    assert back.generation_config.to_dict() == hf.generation_config.to_dict()
    back.save_pretrained(tmp_path)
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(tmp_path)), logits_of(hf))
    again = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again), logits_of(hf))


# What cannot be loaded says why


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.encoder.layers.1.fc1.bias"))
    message = refusal(folder)
    assert "1 missing" in message
    assert "encoder.layers.1.fc1.bias" in message


def test_an_extra_tensor_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.adapter.weight": torch.ones(2)}))
    message = refusal(folder)
    assert "1 extra" in message
    assert "model.adapter.weight" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    key = "model.decoder.layers.0.fc2.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(48, 32)}))
    assert f"1 misshapen ({key}: [48, 32], not [32, 48])" in refusal(folder)


def test_all_that_is_wrong_is_said_at_once(folder):
    def edit(tensors):
        for key in [key for key in tensors if "layers.1." in key]:
            del tensors[key]
        tensors["more"] = torch.ones(1)

    edit_weights(folder, edit)
    message = refusal(folder)
    assert "missing" in message
    assert "1 extra (more)" in message
    assert "…" in message


def test_an_unembedding_that_only_the_config_calls_tied_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"proj_out.weight": torch.ones(64, 32)}))
    assert "1 unequal (proj_out.weight" in refusal(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    expected = WhisperForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(logits_of(HookedWhisper.from_pretrained(folder)), logits_of(expected))


def test_an_unknown_config_field_is_named(folder):
    edit_json(folder / "config.json", rope_theta=10000, sliding_window=7)
    assert "rope_theta, sliding_window" in refusal(folder, ConfigError)


@pytest.mark.parametrize("load", [HookedWhisper.from_pretrained, HookedWhisper.config_of])
def test_another_family_is_named(folder, load):
    edit_json(folder / "config.json", model_type="moonshine")
    with pytest.raises(ConfigError, match=r"'whisper'.* is of type 'moonshine'"):
        load(folder)


def test_an_unknown_activation_is_answered_with_those_that_exist(folder):
    edit_json(folder / "config.json", activation_function="gelo")
    message = refusal(folder, ConfigError)
    assert "'gelo'" in message
    assert "gelu" in message


def test_a_folder_without_a_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "", "[]", '"whisper"'])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert str(folder) in message
    assert "pytorch_model.bin" in message


def test_an_absent_shard_is_named(tmp_path):
    tiny.hf_whisper().save_pretrained(tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": null}'])
def test_an_index_that_lists_no_shards_is_refused(folder, text):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_a_file_cut_short_is_refused(folder, kept):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:kept])
    message = refusal(folder)
    assert "model.safetensors" in message
    assert "damaged" in message


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 not a zip"])
def test_a_damaged_pickle_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in refusal(folder)


class _Burglar:
    def __reduce__(self):
        return pytest.fail, ("code from a pickle was run",)


def test_a_pickle_of_code_is_refused_and_not_run(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"proj_out.weight": _Burglar()}, folder / "pytorch_model.bin")
    assert "cannot be read as plain tensors" in refusal(folder)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_pickle_of_something_else_is_refused(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    message = refusal(folder)
    assert "tensors" in message
    assert all(str(key) in message for key in content if isinstance(content, dict))


def test_a_file_is_answered_with_its_folder(folder):
    assert "give the folder" in refusal(folder / "model.safetensors")


@pytest.mark.parametrize("file", ["generation_config.json", "preprocessor_config.json"])
def test_damaged_belongings_are_not_passed_over(folder, file):
    (folder / file).write_text("{")
    assert str(folder) in refusal(folder)


# The hub


@pytest.fixture
def hub(monkeypatch, tmp_path, folder):
    """The hub's local cache with one model in it, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--someone--whisper"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789")
    shutil.copytree(folder, repository / "snapshots" / "0123456789")
    return tmp_path / "hub"


def test_a_hub_id_loads(hub):
    model = HookedWhisper.from_pretrained("someone/whisper", cache_dir=hub)
    assert torch.equal(logits_of(model), logits_of(tiny.hooked()))
    assert model.generation_config.eos_token_id == tiny.END
    assert model.name == "someone/whisper"


def test_without_network_only_what_is_kept_loads(hub):
    message = refusal("someone/else", cache_dir=hub)
    assert "someone/else" in message
    assert "network" in message


def test_without_network_weights_that_are_not_kept_are_not_said_to_be_absent(hub):
    for path in hub.rglob("model.safetensors"):
        path.unlink()
    message = refusal("someone/whisper", cache_dir=hub)
    assert "model.safetensors" in message
    assert "hub could not be asked" in message


def hub_that_raises(monkeypatch, error, only="config.json"):
    def download(name, filename, **options):
        if filename == only:
            raise error
        pytest.fail(f"went on to ask for {filename}")

    monkeypatch.setattr("hooked_asr.weights.checkpoint.hf_hub_download", download)


def answer(monkeypatch, kind):
    """An error as the hub's client raises it for an answer of the hub."""
    request = type("Request", (), {"url": "https://hub/someone/whisper", "method": "GET"})
    response = type("Response", (), {"headers": {}, "request": request, "status_code": 500})
    hub_that_raises(monkeypatch, kind("the hub's own words", response=response()))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (GatedRepoError, "ask for access"),
        (RepositoryNotFoundError, "neither a folder here nor a model on the hub"),
        (RevisionNotFoundError, "no revision 'v9'"),
        (HfHubHTTPError, "the hub's own words"),
    ],
)
def test_what_the_hub_refuses_is_said(monkeypatch, kind, says):
    answer(monkeypatch, kind)
    message = refusal("someone/whisper", revision="v9")
    assert says in message
    assert "someone/whisper" in message


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("x"), OfflineModeIsEnabled("x")])
def test_a_hub_out_of_reach_is_said(monkeypatch, error):
    hub_that_raises(monkeypatch, error)
    message = refusal("someone/whisper")
    assert "cannot be reached" in message
    assert "config.json" in message


@pytest.mark.parametrize("name", ["/no/such/folder", "../whisper", "a b"])
def test_a_name_that_can_be_neither_folder_nor_hub_id_is_said_to_be_so(name):
    assert "no folder here, and no hub id" in refusal(name)


# Weights in the field's shapes


@every_layout
def test_head_views_share_memory_and_mean_what_they_say(layout):
    hf = tiny.hf_whisper(layout)
    model = HookedWhisper.from_hf(hf)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for path in (f"{stack}.0.{name}" for stack, name in ATTENTIONS):
        attn = model.get_submodule(path)
        their = hf.get_submodule("model." + model.source.key(f"{path}.q_proj.weight")[:-14])
        for ours, bias, proj in (
            (attn.W_Q, attn.b_Q, their.q_proj),
            (attn.W_K, attn.b_K, their.k_proj),
            (attn.W_V, attn.b_V, their.v_proj),
        ):
            assert same_memory(ours, proj.weight)
            by_head = torch.einsum("pm,hmd->phd", x, ours) + bias
            assert_close(by_head.flatten(1), proj(x), rtol=1e-5, atol=1e-5)
        z = torch.randn(3, *attn.W_V.shape[::2], generator=torch.Generator().manual_seed(1))
        written = torch.einsum("phd,hdm->pm", z, attn.W_O) + attn.b_O
        assert_close(written, their.out_proj(z.flatten(1)), rtol=1e-5, atol=1e-5)
        assert same_memory(attn.W_O, their.out_proj.weight)


ATTENTIONS = [("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross_attn")]


@pytest.mark.parametrize("layout", ["base", "untied"])
def test_other_views_share_memory_and_mean_what_they_say(layout):
    hf = tiny.hf_whisper(layout)
    model = HookedWhisper.from_hf(hf)
    mlp, their = model.decoder[1].mlp, hf.model.decoder.layers[1]
    for ours, theirs_ in (
        (mlp.W_in, their.fc1.weight.T),
        (mlp.W_out, their.fc2.weight.T),
        (mlp.b_in, their.fc1.bias),
        (mlp.b_out, their.fc2.bias),
        (model.W_E, hf.model.decoder.embed_tokens.weight),
        (model.W_U, hf.proj_out.weight.T),
        (model.W_pos, hf.model.decoder.embed_positions.weight),
    ):
        assert torch.equal(ours, theirs_)
        assert same_memory(ours, theirs_)
    assert same_memory(model.W_U, model.W_E) == (layout == "base")


@pytest.mark.parametrize(("stack", "name"), ATTENTIONS)
@pytest.mark.parametrize("layout", ["base", "unequal_heads", "one_head"])
@torch.no_grad()
def test_circuits_are_the_full_products(layout, stack, name):
    attn = getattr(getattr(tiny.hooked(layout), stack)[0], name)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for circuit, full in (
        (attn.QK, torch.einsum("hmd,hnd->hmn", attn.W_Q, attn.W_K)),
        (attn.OV, torch.einsum("hmd,hdn->hmn", attn.W_V, attn.W_O)),
    ):
        rank = attn.d_head
        assert circuit.shape == full.shape
        assert_close(circuit.AB, full, **close)
        assert_close(circuit.T.AB, full.mT, **close)
        assert_close(circuit[0].AB, full[0], **close)
        assert_close(circuit.norm(), torch.linalg.matrix_norm(full), **close)
        U, S, Vh = circuit.svd()
        assert U.shape[-1] == S.shape[-1] == Vh.shape[-2] == rank
        assert_close(S, torch.linalg.svdvals(full)[..., :rank], **close)
        assert_close((U * S[..., None, :]) @ Vh, full, **close)
        assert_close(U.mT @ U, torch.eye(rank).expand_as(U.mT @ U), **close)
        # Eigenvalues come in no order; their power sums tell them apart.
        for power in (1, 2, 3):
            traces = torch.linalg.matrix_power(full, power).diagonal(dim1=-2, dim2=-1).sum(-1)
            sums = circuit.eigenvalues().pow(power).sum(-1)
            assert_close(sums.real, traces, rtol=1e-3, atol=1e-3)
            assert_close(sums.imag, torch.zeros_like(traces), rtol=0, atol=1e-3)


@torch.no_grad()
def test_circuits_multiply():
    attn = tiny.hooked().decoder[0].attn
    QK, OV = attn.QK, attn.OV
    vector, matrix = torch.randn(32), torch.randn(32, 5)
    assert_close(OV @ vector, OV.AB @ vector, rtol=1e-4, atol=1e-4)
    assert_close((OV @ matrix).AB, OV.AB @ matrix, rtol=1e-4, atol=1e-4)
    assert_close((OV @ QK).AB, OV.AB @ QK.AB, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError):
        OV[0][0]
    with pytest.raises(ValueError, match="square"):
        (OV @ matrix).eigenvalues()


# A model of one's own


def untrained(tied=True):
    encoder = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=32, n_ctx=10)
    decoder = StackConfig(n_layers=1, n_heads=4, d_model=16, d_mlp=24, n_ctx=12)
    torch.manual_seed(0)
    return HookedWhisper(ModelConfig(FrontEndConfig(8), encoder, decoder, 20, tied))


def small_inputs():
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(4, 8, 20, generator=generator)
    return mel, torch.randint(0, 20, (4, 9), generator=generator)


@pytest.mark.parametrize("tied", [True, False])
def test_training_lowers_the_loss(tied):
    model = untrained(tied)
    mel, tokens = small_inputs()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        losses.append(model.loss(model(mel, tokens), tokens))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
    assert (model.unembed.weight is model.embed.weight) == tied


@torch.no_grad()
def test_fresh_weights_are_drawn_as_the_reference_draws_them():
    model = untrained()
    hf = WhisperForConditionalGeneration(model.to_hf().config)
    for name, parameter in theirs(hf, model).items():
        ours = model.get_parameter(name)
        if name.endswith("bias") or "ln" in name or name == "encoder_pos_embed.weight":
            assert_close(ours, parameter, msg=name)
        else:
            assert_close(ours.std(), parameter.std(), rtol=0.2, atol=0, msg=name)
    assert not model.encoder_pos_embed.weight.requires_grad


def test_an_untrained_model_goes_to_the_reference_and_back():
    model = untrained()
    hf, (mel, tokens) = model.to_hf().eval(), small_inputs()
    with torch.no_grad():
        expected = model(mel, tokens)
        assert torch.equal(hf(mel, decoder_input_ids=tokens).logits, expected)
        assert torch.equal(HookedWhisper.from_hf(hf)(mel, tokens), expected)


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"d_model": 8}, "one width"),
        ({"activation": "relu"}, "one activation"),
        ({"norm_eps": 1e-6}, "eps"),
    ],
)
def test_a_config_that_the_references_cannot_say_is_refused(encoder, says):
    own = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32, "n_ctx": 10}
    config = ModelConfig(FrontEndConfig(8), StackConfig(**own | encoder), StackConfig(**own), 20)
    with pytest.raises(ConfigError, match=says):
        HookedWhisper(config).to_hf()


@every_layout
def test_a_state_dict_makes_the_round_trip(layout):
    model = tiny.hooked(layout)
    fresh = HookedWhisper(model.config)
    assert not torch.equal(logits_of(fresh), logits_of(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(fresh), logits_of(model))


@pytest.mark.parametrize("layout", ["base", "untied"])
def test_casting_keeps_ties_and_matches_the_reference(layout):
    model = tiny.hooked(layout).to(torch.bfloat16)
    assert (model.unembed.weight is model.embed.weight) == (layout == "base")
    assert torch.equal(logits_of(model), logits_of(tiny.hf_whisper(layout, torch.bfloat16)))


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("twin_of", [copy.deepcopy, by_pickle, by_torch])
@pytest.mark.parametrize("layout", ["base", "untied"])
@torch.no_grad()
def test_a_copy_is_a_whole_model_of_its_own(layout, twin_of):
    model = tiny.hooked(layout)
    twin = twin_of(model)
    expected = logits_of(model)
    assert torch.equal(logits_of(twin), expected)
    assert (twin.unembed.weight is twin.embed.weight) == (layout == "base")
    assert twin.source is WHISPER

    def silence(z, hook):
        assert hook is twin.decoder[0].cross_attn.hook_z
        return torch.zeros_like(z)

    mel, tokens = tiny.inputs(twin)
    hooks = [("decoder.0.cross_attn.hook_z", silence)]
    hooked = twin.run_with_hooks(mel, tokens, fwd_hooks=hooks)
    assert not torch.equal(hooked, expected)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(logits_of(model), expected)
    assert all(point.clock is twin.clock for point in twin.hook_points.values())
    assert twin.clock is not model.clock


# Another recogniser needs a Source, and nothing else


def murmur_config(fields):
    unknown = fields.keys() - {
        "model_type",
        "width",
        "depths",
        "heads",
        "hidden",
        "context",
        "words",
    }
    if unknown:
        raise ConfigError(f"unknown fields: {', '.join(sorted(unknown))}")
    encoder, decoder = (
        StackConfig(depth, fields["heads"], fields["width"], fields["hidden"], n_ctx)
        for depth, n_ctx in zip(fields["depths"], fields["context"], strict=True)
    )
    return ModelConfig(FrontEndConfig(8), encoder, decoder, fields["words"], tied_embeddings=False)


def murmur_name(ours):
    """Another family's name for the module that Whisper calls otherwise."""
    ours = ours.replace("encoder.{i}.", "ears.{i}.").replace("decoder.{i}.", "mouth.{i}.")
    return ours.replace("_proj", "").replace("mlp.", "ff.")


class HookedMurmur(PretrainedModel):
    source = Source(
        model_type="murmur",
        modules={ours: murmur_name(ours) for ours in WHISPER.modules},
        config_from_hf=murmur_config,
        config_to_hf=lambda config, fields: fields,
        hf_model=nn.Identity,
        hf_inputs={},
    )


MURMUR = {
    "model_type": "murmur",
    "width": 32,
    "depths": [2, 2],
    "heads": 4,
    "hidden": 48,
    "context": [50, 24],
    "words": 64,
}


def test_another_family_loads_by_its_own_names(tmp_path):
    whisper = tiny.hooked("untied")
    weights = {HookedMurmur.source.key(name): p for name, p in whisper.named_parameters()}
    assert "mouth.1.cross_attn.q.weight" in weights
    save_file({name: p.detach() for name, p in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(MURMUR))
    model = HookedMurmur.from_pretrained(tmp_path)
    assert torch.equal(logits_of(model), logits_of(whisper))
    mel, tokens = tiny.inputs(whisper)
    _, cache = model.run_with_cache(mel, tokens)
    assert cache.keys() == whisper.run_with_cache(mel, tokens)[1].keys()
    assert "is of type 'murmur'" in refusal(tmp_path, ConfigError)


def test_the_two_stacks_may_differ_in_width():
    """No Whisper does; cross-attention then reads from the encoder's width."""
    encoder = StackConfig(n_layers=1, n_heads=2, d_model=24, d_mlp=32, n_ctx=50)
    decoder = StackConfig(n_layers=2, n_heads=4, d_model=16, d_mlp=32, n_ctx=10)
    model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=8), encoder, decoder, d_vocab=11))
    logits, cache = model.run_with_cache(torch.zeros(1, 8, 100), torch.tensor([[1, 2]]))
    assert logits.shape == (1, 2, 11)
    assert model.decoder[0].cross_attn.W_K.shape == (4, 24, 4)
    for name, x in cache.items():
        assert x.shape == model.hook_table[name].shape(model.config, 1, 2), name


def test_circuits_multiply_from_the_left_too():
    attention = tiny.hooked().decoder[0].cross_attn
    rows, vector = torch.randn(4, 5, 32), torch.randn(32)
    with torch.no_grad():
        assert_close((rows @ attention.OV).AB, rows @ attention.OV.AB)
        assert_close(vector @ attention.OV, vector @ attention.OV.AB)
