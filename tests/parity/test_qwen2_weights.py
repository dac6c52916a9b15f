"""Qwen2-Audio's checkpoints, read, refused and written; its weights seen in the field's shapes."""

import copy
import json

import pytest
import tiny_qwen2 as tiny
import tiny_qwen2_checkpoint as checkpoint
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import (
    AutoProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
)

from hooked_asr import CheckpointError, ConfigError, HookedQwen2Audio, HookedWhisper

every_layout = pytest.mark.parametrize("layout", tiny.LAYOUTS)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with everything that belongs to one."""
    return checkpoint.save_checkpoint(tmp_path / "qwen")


def inputs(audio_token=tiny.AUDIO):
    batch = tiny.inputs([[61], [40, 100]])
    batch["tokens"][batch["tokens"] == tiny.AUDIO] = audio_token
    return batch


@torch.no_grad()
def logits_of(model, audio_token=tiny.AUDIO):
    batch = inputs(audio_token)
    if isinstance(model, HookedQwen2Audio):
        return model(**batch)
    return model(**tiny.hf_inputs(batch)).logits


def same_memory(a, b):
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def theirs(hf, model):
    """The reference's parameter for each of ours."""
    by_key = {key.removeprefix("model."): p for key, p in hf.named_parameters()}
    if model.config.tied_embeddings:
        del by_key["lm_head.weight"]  # an equal of the embedding
    ours = {name: model.source.key(name) for name, _ in model.named_parameters()}
    assert sorted(ours.values()) == sorted(by_key)
    return {name: by_key[key] for name, key in ours.items()}


def edit_config(folder, part=None, drop=(), **fields):
    """Change fields of a checkpoint's config, or of the `part` of it for one of the towers."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edited = config[part] if part else config
    for name in drop:
        del edited[name]
    edited.update(fields)
    path.write_text(json.dumps(config))


def edit_weights(folder, edit):
    """Rewrite the tensors of a folder, after `edit` has changed the dict of them in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(place, error=CheckpointError):
    with pytest.raises(error) as caught:
        HookedQwen2Audio.from_pretrained(place)
    return str(caught.value)


# Reading


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("keys", ["new", "old"])
@every_layout
def test_a_checkpoint_loads(tmp_path, layout, keys, shards):
    checkpoint.save_checkpoint(tmp_path, layout, keys, shards)
    assert len(list(tmp_path.glob("*.safetensors"))) == (3 if shards else 1)
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path)
    expected = logits_of(checkpoint.hf_model(layout), checkpoint.AUDIO)
    assert torch.equal(logits_of(hf, checkpoint.AUDIO), expected)
    model = HookedQwen2Audio.from_pretrained(tmp_path)
    assert torch.equal(logits_of(model, checkpoint.AUDIO), expected)
    assert not model.training
    assert model.config == HookedQwen2Audio.config_of(tmp_path)
    assert model.generation_config.to_dict() == hf.generation_config.to_dict()


@every_layout
def test_what_the_reference_saves_loads(tmp_path, layout):
    hf = tiny.hf_qwen2_audio(layout)
    hf.save_pretrained(tmp_path)
    model = HookedQwen2Audio.from_pretrained(tmp_path)
    assert torch.equal(logits_of(model), logits_of(hf))
    assert model.tokenizer is None
    assert model.feature_extractor is None


def test_a_checkpoint_brings_its_tokenizer_and_its_feature_extractor(folder):
    model = HookedQwen2Audio.from_pretrained(folder)
    assert model.tokenizer.convert_tokens_to_ids("<|AUDIO|>") == checkpoint.AUDIO
    assert model.feature_extractor.n_samples == 16000
    assert model.feature_extractor.feature_size == tiny.N_MELS
    assert model.config.d_vocab == checkpoint.N_VOCAB
    assert model.name == str(folder)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every_dtype
def test_dtype_converts_what_is_stored(tmp_path, stored, dtype):
    checkpoint.save_checkpoint(tmp_path, dtype=stored)
    model = HookedQwen2Audio.from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    expected = tiny.cast(checkpoint.hf_model(dtype=stored), dtype)
    audio = checkpoint.AUDIO
    assert torch.equal(logits_of(model, audio), logits_of(expected, audio))


@every_dtype
def test_without_dtype_weights_keep_the_type_they_are_stored_in(tmp_path, dtype):
    checkpoint.save_checkpoint(tmp_path, dtype=dtype)
    assert HookedQwen2Audio.from_pretrained(tmp_path).dtype == dtype


def test_casting_matches_the_reference():
    model = tiny.hooked("gqa").to(torch.bfloat16)
    expected = tiny.hf_qwen2_audio("gqa", torch.bfloat16)
    assert torch.equal(logits_of(model), logits_of(expected))


# The published 7B config, as it is on the hub.
PUBLISHED = {
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "encoder_layerdrop": 0.0,
        "d_model": 1280,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_function": "gelu",
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "init_std": 0.02,
        "max_source_positions": 1500,
    },
    "audio_token_index": 151646,
    "ignore_index": -100,
    "model_type": "qwen2_audio",
    "text_config": {
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rope_theta": 10000,
        "rms_norm_eps": 1e-05,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "vocab_size": 156032,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.1",
    "vocab_size": 156032,
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_published_7b_has_the_references_size(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = HookedQwen2Audio.config_of(tmp_path)
    with torch.device("meta"):
        model = HookedQwen2Audio(config)
        hf = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig.from_pretrained(tmp_path))
    assert (config.encoder.n_layers, config.encoder.n_heads, config.encoder.d_model) == (
        32,
        20,
        1280,
    )
    assert (config.decoder.n_layers, config.decoder.n_heads, config.decoder.d_model) == (
        32,
        32,
        4096,
    )
    assert config.decoder.n_kv_heads == 32
    assert config.decoder.d_mlp == 11008
    assert config.d_vocab == 156032
    assert config.front_end.n_mels == 128
    assert len(model.encoder) == len(model.decoder) == 32
    assert 8.3e9 < count(model) < 8.5e9
    assert count(model) == count(hf)
    for name, parameter in theirs(hf, model).items():
        assert model.get_parameter(name).shape == parameter.shape, name


def test_fields_of_the_published_config_are_known(folder):
    """Beside those that the tiny model has of its own."""
    edit_config(folder, **{k: PUBLISHED[k] for k in ("ignore_index", "torch_dtype")})
    edit_config(folder, vocab_size=checkpoint.N_VOCAB, transformers_version="4.38.1")
    edit_config(folder, "text_config", sliding_window=32768, use_mrope=False, torch_dtype="float32")
    edit_config(folder, "audio_config", init_std=0.02)
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    model = HookedQwen2Audio.from_pretrained(folder)
    audio = checkpoint.AUDIO
    assert torch.equal(logits_of(model, audio), logits_of(hf, audio))


def test_the_base_of_the_rotation_is_read_as_it_was_written_before(folder):
    """`rope_theta` in the text's config, where `rope_parameters` is now."""
    edit_config(folder, "text_config", drop=["rope_parameters"], rope_theta=500.0)
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(folder)
    model = HookedQwen2Audio.from_pretrained(folder)
    audio = checkpoint.AUDIO
    assert torch.equal(logits_of(model, audio), logits_of(hf, audio))
    assert not torch.equal(logits_of(model, audio), logits_of(checkpoint.hf_model(), audio))


# A model in memory


@every_layout
def test_a_model_in_memory_is_shared_not_copied(layout):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    ours = dict(model.named_parameters())
    for name, parameter in theirs(hf, model).items():
        assert ours[name].data_ptr() == parameter.data_ptr(), name
        assert ours[name].requires_grad == parameter.requires_grad, name
    before = logits_of(model)
    with torch.no_grad():
        hf.model.language_model.layers[0].mlp.up_proj.weight.mul_(2)
    assert torch.equal(logits_of(model), logits_of(hf))
    assert not torch.equal(logits_of(model), before)


def test_keys_are_the_references():
    source = tiny.hooked().source
    layer = "language_model.layers.0"
    expected = {
        "decoder.0.attn.q_proj.weight": f"{layer}.self_attn.q_proj.weight",
        "decoder.0.attn.o_proj.weight": f"{layer}.self_attn.o_proj.weight",
        "decoder.0.ln1.weight": f"{layer}.input_layernorm.weight",
        "decoder.0.ln2.weight": f"{layer}.post_attention_layernorm.weight",
        "decoder_final_ln.weight": "language_model.norm.weight",
        "encoder.1.attn.o_proj.bias": "audio_tower.layers.1.self_attn.out_proj.bias",
        "encoder.1.ln1.bias": "audio_tower.layers.1.self_attn_layer_norm.bias",
        "encoder_final_ln.weight": "audio_tower.layer_norm.weight",
        "conv1.weight": "audio_tower.conv1.weight",
        "embed.weight": "language_model.embed_tokens.weight",
        "unembed.weight": "lm_head.weight",
    }
    assert {name: source.key(name) for name in expected} == expected


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_are_kept_both_ways(training):
    model = HookedQwen2Audio.from_hf(tiny.hf_qwen2_audio().train(training))
    assert model.training == training
    assert model.to_hf().training == training


def test_a_processor_given_with_a_model_is_kept():
    tokenizer, extractor = checkpoint.tiny_tokenizer(), checkpoint.feature_extractor()
    processor = Qwen2AudioProcessor(extractor, tokenizer)
    model = HookedQwen2Audio.from_hf(checkpoint.hf_model(), processor)
    assert model.tokenizer is tokenizer
    assert model.feature_extractor is extractor


@every_layout
def test_there_and_back_again(layout):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    back = model.to_hf()
    assert type(back) is type(hf)
    for name, parameter in theirs(back, model).items():
        assert parameter.data_ptr() == model.get_parameter(name).data_ptr(), name
        assert parameter.requires_grad == model.get_parameter(name).requires_grad, name
    assert torch.equal(logits_of(back), logits_of(hf))
    assert back.config.to_dict() == hf.config.to_dict()
    assert back.generation_config.to_dict() == hf.generation_config.to_dict()


@every_layout
def test_what_is_saved_loads_here_and_in_the_reference(tmp_path, layout):
    checkpoint.save_checkpoint(tmp_path / "given", layout)
    model = HookedQwen2Audio.from_pretrained(tmp_path / "given")
    model.save_pretrained(tmp_path / "saved")
    audio = checkpoint.AUDIO
    expected = logits_of(checkpoint.hf_model(layout), audio)
    again = HookedQwen2Audio.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(again, audio), expected)
    assert again.config == model.config
    assert again.generation_config.to_dict() == model.generation_config.to_dict()
    hf = Qwen2AudioForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(hf, audio), expected)
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert isinstance(processor, Qwen2AudioProcessor)
    assert processor.audio_token_id == audio
    assert processor.feature_extractor.n_samples == 16000


def test_a_model_saved_as_bfloat16_is_stored_so(tmp_path):
    model = tiny.hooked("gqa")
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.dtype == torch.float32
    again = HookedQwen2Audio.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits_of(again), logits_of(tiny.hf_qwen2_audio("gqa", torch.bfloat16)))


@every_layout
def test_a_state_dict_makes_the_round_trip(layout):
    model = tiny.hooked(layout)
    fresh = HookedQwen2Audio(model.config)
    assert not torch.equal(logits_of(fresh), logits_of(model))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(fresh), logits_of(model))


def test_a_copy_is_a_whole_model_of_its_own():
    model = tiny.hooked("gqa")
    twin, expected = copy.deepcopy(model), logits_of(model)
    assert torch.equal(logits_of(twin), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not logits_of(twin).any()
    assert torch.equal(logits_of(model), expected)


def test_an_untrained_model_goes_to_the_reference_and_back():
    torch.manual_seed(0)
    model = HookedQwen2Audio(tiny.hooked("gqa").config)
    hf, expected = model.to_hf().eval(), logits_of(model)
    assert expected.isfinite().all()
    assert torch.equal(logits_of(hf), expected)
    assert torch.equal(logits_of(HookedQwen2Audio.from_hf(hf)), expected)


@torch.no_grad()
def test_fresh_weights_are_drawn_as_the_reference_draws_them():
    torch.manual_seed(0)
    model = HookedQwen2Audio(tiny.hooked("gqa").config)
    hf = Qwen2AudioForConditionalGeneration(tiny.config("gqa"))
    norms = [name for name in theirs(hf, model) if "ln" in name]
    for name, parameter in theirs(hf, model).items():
        ours = model.get_parameter(name)
        if name.endswith("bias") or name in norms:
            assert_close(ours, parameter, msg=name)
        elif "pos_embed" not in name:
            assert_close(ours.std(), parameter.std(), rtol=0.2, atol=0, msg=name)
    assert not model.encoder_pos_embed.weight.requires_grad


# What cannot be loaded says why


def test_another_family_is_named(folder):
    edit_config(folder, model_type="qwen2_5_omni")
    for load in (HookedQwen2Audio.from_pretrained, HookedQwen2Audio.config_of):
        with pytest.raises(ConfigError, match=r"'qwen2_audio'.* is of type 'qwen2_5_omni'"):
            load(folder)


def test_a_qwen_is_no_whisper(folder):
    with pytest.raises(ConfigError, match="'qwen2_audio'"):
        HookedWhisper.from_pretrained(folder)


@pytest.mark.parametrize("part", [None, "text_config", "audio_config"])
def test_an_unknown_config_field_is_named(folder, part):
    edit_config(folder, part, surprise=7)
    assert "surprise" in refusal(folder, ConfigError)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "scaling", [YARN, {"type": "linear", "factor": 2.0}], ids=["yarn", "linear"]
)
def test_scaled_rotations_as_they_were_written_before_are_refused(folder, scaling):
    before = {"rope_theta": 10000.0, "rope_scaling": scaling}
    edit_config(folder, "text_config", drop=["rope_parameters"], **before)
    assert scaling.get("rope_type", "linear") in refusal(folder, ConfigError)


@pytest.mark.parametrize(
    "scaling", [YARN, {"rope_type": "linear", "factor": 2.0}], ids=["yarn", "linear"]
)
def test_scaled_rotations_are_refused(folder, scaling):
    edit_config(folder, "text_config", rope_parameters=scaling | {"rope_theta": 10000.0})
    assert scaling["rope_type"] in refusal(folder, ConfigError)


def test_a_window_that_slides_is_refused(folder):
    window = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}
    edit_config(folder, "text_config", drop=["layer_types"], **window)
    assert "sliding" in refusal(folder, ConfigError)


def test_layers_with_windows_that_slide_are_refused(folder):
    window = {"use_sliding_window": True, "sliding_window": 16}
    layers = ["full_attention", "sliding_attention"]
    edit_config(folder, "text_config", layer_types=layers, **window)
    assert "sliding" in refusal(folder, ConfigError)


def test_heads_of_a_width_of_their_own_are_refused(folder):
    """No published model has them, but the reference would build them."""
    edit_config(folder, "text_config", head_dim=16)
    assert "16" in refusal(folder, ConfigError)
    edit_config(folder, "text_config", head_dim=12)
    assert HookedQwen2Audio.from_pretrained(folder).config.decoder.d_head == 12


@pytest.mark.parametrize(
    ("part", "field"), [("text_config", "hidden_act"), ("audio_config", "activation_function")]
)
def test_an_unknown_activation_is_answered_with_those_that_exist(folder, part, field):
    edit_config(folder, part, **{field: "gelo"})
    message = refusal(folder, ConfigError)
    assert "'gelo'" in message
    assert "gelu" in message


@pytest.mark.parametrize("keys", ["new", "old"])
def test_a_missing_tensor_is_named(tmp_path, keys):
    folder = checkpoint.save_checkpoint(tmp_path, keys=keys)

    def drop(tensors):
        (key,) = (key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
        del tensors[key]

    edit_weights(folder, drop)
    message = refusal(folder)
    assert "1 missing" in message
    assert "layers.1.mlp.up_proj.weight" in message


def unembedding(tensors):
    (key,) = (key for key in tensors if key.endswith("lm_head.weight"))
    return key


@pytest.mark.parametrize("keys", ["new", "old"])
def test_an_unembedding_is_taken_from_the_embedding_only_where_the_config_ties_them(tmp_path, keys):
    for layout in ("tied", "mha"):
        folder = checkpoint.save_checkpoint(tmp_path / layout, layout, keys)
        edit_weights(folder, lambda tensors: tensors.pop(unembedding(tensors), None))
        if layout == "tied":
            model = HookedQwen2Audio.from_pretrained(folder)
            assert model.unembed.weight is model.embed.weight
        else:
            message = refusal(folder)
            assert "1 missing" in message
            assert "lm_head.weight" in message


def test_an_unembedding_that_only_the_config_calls_tied_is_refused(tmp_path):
    folder = checkpoint.save_checkpoint(tmp_path, "tied")
    edit_weights(folder, lambda tensors: tensors[unembedding(tensors)].add_(1))
    message = refusal(folder)
    assert "lm_head.weight" in message
    assert "ties" in message


def test_an_extra_tensor_is_named(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.adapter.weight": torch.ones(2)}))
    message = refusal(folder)
    assert "1 extra" in message
    assert "adapter.weight" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(folder):
    key = "model.multi_modal_projector.linear.weight"
    edit_weights(folder, lambda tensors: tensors.update({key: torch.ones(32, 48)}))
    message = refusal(folder)
    assert "1 misshapen" in message
    assert "multi_modal_projector.linear.weight" in message
    assert "[32, 48]" in message
    assert "[48, 32]" in message


# Weights in the field's shapes


def their_attention(hf, stack, layer):
    tower = "audio_tower" if stack == "encoder" else "language_model"
    return hf.get_submodule(f"model.{tower}.layers.{layer}.self_attn")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@every_layout
@torch.no_grad()
def test_head_views_share_memory_and_mean_what_they_say(layout, stack):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    attn, their = getattr(model, stack)[1].attn, their_attention(hf, stack, 1)
    config = model.config.stack(stack)
    x = torch.randn(3, config.d_model, generator=torch.Generator().manual_seed(0))
    for ours, bias, proj, n_heads in (
        (attn.W_Q, attn.b_Q, their.q_proj, config.n_heads),
        (attn.W_K, attn.b_K, their.k_proj, config.n_kv_heads),
        (attn.W_V, attn.b_V, their.v_proj, config.n_kv_heads),
    ):
        assert ours.shape == (n_heads, config.d_model, config.d_head)
        assert same_memory(ours, proj.weight)
        by_head = torch.einsum("pm,hmd->phd", x, ours) + bias
        assert_close(by_head.flatten(1), proj(x), rtol=1e-5, atol=1e-5)
    out_proj = their.out_proj if stack == "encoder" else their.o_proj
    assert attn.W_O.shape == (config.n_heads, config.d_head, config.d_model)
    assert same_memory(attn.W_O, out_proj.weight)
    z = torch.randn(3, config.n_heads, config.d_head, generator=torch.Generator().manual_seed(1))
    written = torch.einsum("phd,hdm->pm", z, attn.W_O) + attn.b_O
    assert_close(written, out_proj(z.flatten(1)), rtol=1e-5, atol=1e-5)


def test_heads_are_counted_as_the_layout_says():
    heads = {name: tiny.hooked(name).config.decoder for name in ("mha", "gqa", "mqa")}
    assert {name: (c.n_heads, c.n_kv_heads, c.d_head) for name, c in heads.items()} == {
        "mha": (4, 4, 12),
        "gqa": (4, 2, 12),
        "mqa": (4, 1, 12),
    }
    unequal = tiny.hooked("unequal_heads").config
    assert (unequal.encoder.n_heads, unequal.encoder.n_kv_heads) == (2, 2)
    assert (unequal.decoder.n_heads, unequal.decoder.n_kv_heads) == (8, 4)


@every_layout
def test_other_views_share_memory_and_mean_what_they_say(layout):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    gated, their_gated = model.decoder[1].mlp, hf.model.language_model.layers[1].mlp
    plain, their_plain = model.encoder[1].mlp, hf.model.audio_tower.layers[1]
    for ours, theirs_ in (
        (gated.W_gate, their_gated.gate_proj.weight.T),
        (gated.W_in, their_gated.up_proj.weight.T),
        (gated.W_out, their_gated.down_proj.weight.T),
        (plain.W_in, their_plain.fc1.weight.T),
        (plain.W_out, their_plain.fc2.weight.T),
        (plain.b_in, their_plain.fc1.bias),
        (plain.b_out, their_plain.fc2.bias),
        (model.W_E, hf.model.language_model.embed_tokens.weight),
    ):
        assert torch.equal(ours, theirs_)
        assert same_memory(ours, theirs_)
    assert torch.equal(model.W_U, hf.lm_head.weight.T)
    assert same_memory(model.W_U, model.W_E) == (layout == "tied")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@every_layout
@torch.no_grad()
def test_circuits_are_the_full_products_of_each_head(layout, stack):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    attn, their = getattr(model, stack)[0].attn, their_attention(hf, stack, 0)
    config = model.config.stack(stack)
    out_proj = their.out_proj if stack == "encoder" else their.o_proj

    def of_head(weight, head):  # [d_head d_model]
        return weight.unflatten(0, (-1, config.d_head))[head]

    assert attn.QK.shape == attn.OV.shape == (config.n_heads, config.d_model, config.d_model)
    for head in range(config.n_heads):
        shared = head // (config.n_heads // config.n_kv_heads)
        q, k = of_head(their.q_proj.weight, head), of_head(their.k_proj.weight, shared)
        v, o = of_head(their.v_proj.weight, shared), of_head(out_proj.weight.T, head)
        for circuit, full in ((attn.QK, q.T @ k), (attn.OV, v.T @ o)):
            assert_close(circuit[head].AB, full, rtol=1e-4, atol=1e-5)
            assert_close(circuit.AB[head], full, rtol=1e-4, atol=1e-5)
            values = torch.linalg.svdvals(full)[: config.d_head]
            assert_close(circuit[head].svd()[1], values, rtol=1e-4, atol=1e-4)
