"""What a run keeps where audio is a prefix, and both of its residual streams taken apart."""

import pytest
import torch
from tiny_qwen2 import hf_inputs, hf_qwen2_audio, inputs
from torch.testing import assert_close

from hooked_asr import ActivationCache, HookedQwen2Audio
from hooked_asr.residual import CacheError

# Three prompts of four clips, padded on the left: no two axes are of one length.
FRAMES = [[40], [61, 100], [23]]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def hf():
    return hf_qwen2_audio("gqa")


@pytest.fixture(scope="module")
def model(hf):
    return HookedQwen2Audio.from_hf(hf)


@pytest.fixture(scope="module")
def run():
    return inputs(FRAMES)


@pytest.fixture(scope="module")
def everything(model):
    return list(model.hook_table)


@pytest.fixture(scope="module")
def cache(model, run, everything):
    """Every activation, lazy ones too."""
    with torch.no_grad():
        return model.run_with_cache(**run, names_filter=everything)[1]


@pytest.fixture(scope="module")
def reference(hf, run):
    """What goes into each of the reference's layers and final norms, and the logits."""
    found = {"encoder": [], "decoder": []}
    towers = {"encoder": hf.model.audio_tower, "decoder": hf.model.language_model}
    handles = []
    for stack, tower in towers.items():
        last = tower.layer_norm if stack == "encoder" else tower.norm
        handles += [
            module.register_forward_pre_hook(lambda _, args, own=found[stack]: own.append(args[0]))
            for module in (*tower.layers, last)
        ]
    with torch.no_grad():
        logits = hf(**hf_inputs(run)).logits
    for handle in handles:
        handle.remove()
    return found | {"logits": logits}


def pooled(stream):
    """Averaged two by two, as the reference does before the encoder's final norm."""
    return stream.unflatten(-2, (-1, 2)).mean(-2)


# --- What is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_clips", [0, 1, 4])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("names_filter", [None, "*.hook_pattern", ["*.hook_z", "*.hook_result"]])
def test_bytes_are_told_beforehand(model, n_clips, dtype, names_filter):
    run = inputs({0: [[], []], 1: [[61], []], 4: [[61], [40, 23, 100]]}[n_clips])
    n_rows, n_pos = run["tokens"].shape
    with torch.no_grad():
        _, cache = model.run_with_cache(**run, names_filter=names_filter, dtype=dtype)
    told = model.cache_bytes(n_rows, n_pos, names_filter, dtype, n_clips=n_clips)
    assert told == sum(x.nbytes for x in cache.values())
    assert cache.nbytes <= told


def test_bytes_are_of_one_clip_for_each_prompt_if_not_said(model):
    assert model.cache_bytes(2, 30) == model.cache_bytes(2, 30, n_clips=2)
    assert model.cache_bytes(2, 30) < model.cache_bytes(2, 30, n_clips=3)


def test_a_file_comes_back_as_it_was(cache, model, tmp_path):
    cache.save(tmp_path / "activations.safetensors")
    loaded = ActivationCache.load(tmp_path / "activations.safetensors", model)
    assert list(loaded) == list(cache)
    for name, x in cache.items():
        assert torch.equal(loaded[name], x), name
    assert torch.equal(loaded.decompose_resid()[0], cache.decompose_resid()[0])


@torch.no_grad()
def test_slices_cut_their_own_positions_alone(model, run, everything, cache):
    cut = {"pos_slice": slice(3, 8), "audio_slice": -1}
    _, sliced = model.run_with_cache(**run, names_filter=everything, **cut)
    for name, x in cache.items():
        spec = model.hook_table[name]
        start, length = {"pos": (3, 5), "audio": (49, 1)}.get(spec.clock, (0, None))
        axis = spec.position_axis
        expected = x.narrow(axis, start, x.shape[axis] if length is None else length)
        assert torch.equal(sliced[name], expected), name
    assert sliced["hook_encoder_out"].shape[1] == 25


@torch.no_grad()
def test_a_prompt_of_one_clip_needs_no_first_axis(model):
    _, cache = model.run_with_cache(**inputs([[61]]))
    _, one = model.run_with_cache(**inputs([[61]]), remove_batch_dim=True)
    for name, x in cache.items():
        assert torch.equal(one[name], x[0]), name
    terms, _ = one.decompose_resid(stack="encoder", per_head=True)
    assert_close(one.apply_ln_to_stack(terms, "encoder").sum(0), from_norm(one), **CLOSE)


def from_norm(cache):
    """The encoder's output without its norm's bias, which belongs to no component."""
    return cache["hook_encoder_out"] - cache.model.encoder_final_ln.bias.detach()


def test_a_prompt_of_several_clips_keeps_its_first_axes(model):
    with pytest.raises(CacheError, match="holds 2 clips"):
        model.run_with_cache(**inputs([[61, 40]]), remove_batch_dim=True)


def test_short_names_find_what_is_here_alone(cache):
    assert cache["pre_linear", 1] is cache["decoder.1.mlp.hook_pre_linear"]
    assert cache["rot_q", 0] is cache["decoder.0.attn.hook_rot_q"]
    assert cache["encoder_pool"] is cache["hook_encoder_pool"]
    assert cache["out", "projector"] is cache["projector.hook_out"]


# --- The streams taken apart ----------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2, None])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("ways", [{}, {"separate_bias": True}, {"per_head": True}])
def test_terms_sum_to_the_references_stream(cache, reference, ways, stack, layer):
    terms, labels = cache.decompose_resid(layer, stack, **ways)
    assert len(terms) == len(labels)
    total = terms.sum(0)
    if stack == "encoder" and layer in (2, None):  # its final norm reads what is pooled
        total = pooled(total)
    assert_close(total, reference[stack][2 if layer is None else layer], **CLOSE)


def test_terms_carry_their_names(cache):
    parts = ["0_attn_out", "0_mlp_out", "1_attn_out", "1_mlp_out"]
    assert cache.decompose_resid(stack="encoder")[1] == ["embed", "pos_embed", *parts]
    assert cache.decompose_resid()[1] == ["embed", *parts]
    heads = [f"0_attn_h{head}" for head in range(4)]
    labels = cache.decompose_resid(1, per_head=True)[1]
    assert labels == ["embed", *heads, "0_mlp_out", "bias"]


def test_the_decoder_has_no_bias_to_set_apart(cache):
    terms, labels = cache.decompose_resid(per_head=True)
    assert not terms[labels.index("bias")].any()
    terms, labels = cache.decompose_resid(stack="encoder", per_head=True)
    assert terms[labels.index("bias")].all()


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_streams_accumulate_layer_by_layer(cache, reference, stack):
    streams, labels = cache.accumulated_resid(stack=stack)
    assert labels == ["0_pre", "1_pre", "final"]
    expected = reference[stack]
    for i in range(2):
        assert torch.equal(streams[i], expected[i])
    last = pooled(streams[2]) if stack == "encoder" else streams[2]
    assert_close(last, expected[2], rtol=0, atol=0 if stack == "decoder" else 1e-6)
    _, labels = cache.accumulated_resid(stack=stack, incl_mid=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final"]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_heads_are_the_lazy_results(cache, stack):
    results, labels = cache.stack_head_results(stack=stack)
    assert labels == [f"{i}_attn_h{head}" for i in range(2) for head in range(4)]
    expected = [cache[f"{stack}.{i}.attn.hook_result"].unbind(2) for i in range(2)]
    assert_close(results, torch.stack([head for layer in expected for head in layer]), **CLOSE)


@pytest.mark.parametrize("ways", [{}, {"separate_bias": True}, {"per_head": True}])
def test_terms_of_the_encoder_sum_to_its_pooled_output(cache, hf, ways):
    terms, _ = cache.decompose_resid(stack="encoder", **ways)
    normed = cache.apply_ln_to_stack(terms, "encoder")
    assert normed.shape[1:] == (4, 25, 32)
    bias = hf.model.audio_tower.layer_norm.bias.detach()
    assert_close(normed.sum(0) + bias, cache["hook_encoder_out"], **CLOSE)
    streams, _ = cache.accumulated_resid(stack="encoder", apply_ln=True)
    assert_close(streams[-1] + bias, cache["hook_encoder_out"], **CLOSE)


@pytest.mark.parametrize("ways", [{}, {"separate_bias": True}, {"per_head": True}])
def test_terms_of_the_decoder_sum_to_the_references_logits(cache, reference, ways):
    terms, _ = cache.decompose_resid(**ways)
    for token in (0, 7, 79):
        total = cache.logit_attrs(terms, token).sum(0)
        assert_close(total, reference["logits"][..., token], **CLOSE)
    total = cache.logit_attrs(terms, 7, 11).sum(0)
    assert_close(total, reference["logits"][..., 7] - reference["logits"][..., 11], **CLOSE)


@pytest.mark.parametrize(("layer", "module"), [(1, "ln1"), (0, "ln2")])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_inner_norms_act_before_anything_is_pooled(cache, stack, layer, module):
    terms, _ = cache.decompose_resid(layer, stack)
    if module == "ln2":
        terms = torch.stack([*terms, cache[f"{stack}.{layer}.hook_attn_out"]])
    norm = cache.model.get_submodule(f"{stack}.{layer}.{module}")
    expected = cache[f"{stack}.{layer}.{module}.hook_normalized"] * norm.weight.detach()
    assert_close(cache.apply_ln_to_stack(terms, stack, layer, module).sum(0), expected, **CLOSE)


@torch.no_grad()
def test_what_is_pooled_must_be_whole(model, run):
    _, sliced = model.run_with_cache(**run, audio_slice=slice(10, 20))
    terms, _ = sliced.decompose_resid(stack="encoder")
    with pytest.raises(CacheError, match="have 5 positions where encoder_final_ln had 25"):
        sliced.apply_ln_to_stack(terms, "encoder")
    inner, _ = sliced.decompose_resid(1, "encoder")
    assert sliced.apply_ln_to_stack(inner, "encoder", 1).shape == (4, 4, 10, 32)
