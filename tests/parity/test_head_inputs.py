"""What each head's projection reads, edited and differentiated, against the reference's modules."""

import pytest
import tiny
import tiny_qwen2
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from hooked_asr import HookedQwen2Audio, HookedWhisper, KVCache

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
HEAD = 1

# Our attention, theirs, and the width of a head.
WHISPER = [
    ("encoder.1.attn", "model.encoder.layers.1.self_attn", 16),
    ("decoder.0.attn", "model.decoder.layers.0.self_attn", 4),
    ("decoder.1.cross_attn", "model.decoder.layers.1.encoder_attn", 4),
]
QWEN2 = [
    ("encoder.0.attn", "model.audio_tower.layers.0.self_attn", 8),
    ("decoder.1.attn", "model.language_model.layers.1.self_attn", 12),
]
MLPS = [
    ("whisper", "encoder.1.mlp", "model.encoder.layers.1.fc1"),
    ("whisper", "decoder.0.mlp", "model.decoder.layers.0.fc1"),
    ("qwen2", "encoder.0.mlp", "model.audio_tower.layers.0.fc1"),
    ("qwen2", "decoder.1.mlp", "model.language_model.layers.1.mlp"),
]
CASES = [("whisper", *case) for case in WHISPER] + [("qwen2", *case) for case in QWEN2]

every_attention = pytest.mark.parametrize(("family", "ours", "theirs", "d_head"), CASES)
every_projection = pytest.mark.parametrize("projection", ["q", "k", "v"])


@pytest.fixture(scope="module")
def families():
    """Of each family: the reference, ours, and the inputs of each."""
    whisper = tiny.hf_whisper("unequal_heads")
    mel, tokens = tiny.inputs(whisper)
    qwen2 = tiny_qwen2.hf_qwen2_audio("gqa")
    batch = tiny_qwen2.inputs([[61], [40]])
    return {
        "whisper": (
            whisper,
            HookedWhisper.from_hf(whisper),
            {"input_features": mel, "decoder_input_ids": tokens},
            {"mel": mel, "tokens": tokens},
        ),
        "qwen2": (
            qwen2,
            HookedQwen2Audio.from_hf(qwen2),
            tiny_qwen2.hf_inputs(batch),
            batch,
        ),
    }


def turned(x):
    """Another input."""
    return x.flip(-1) * 0.7 + 0.1


def turn_one_head(x, hook):
    x[:, :, HEAD] = turned(x[:, :, HEAD])


def with_one_head_turned(projection, d_head):
    """A hook on a module of the reference: the same of what its head is projected from."""
    own = slice(HEAD * d_head, (HEAD + 1) * d_head)

    def hook(module, args, out):
        bias = None if module.bias is None else module.bias[own]
        out = out.clone()
        out[..., own] = F.linear(turned(args[0]), module.weight[own], bias)
        return out

    return projection.register_forward_hook(hook)


@every_projection
@every_attention
@torch.no_grad()
def test_one_heads_input_is_its_projections_alone(
    families, family, ours, theirs, d_head, projection
):
    hf, model, their_inputs, our_inputs = families[family]
    handle = with_one_head_turned(hf.get_submodule(f"{theirs}.{projection}_proj"), d_head)
    try:
        expected = hf(**their_inputs).logits
    finally:
        handle.remove()
    edit = [(f"{ours}.hook_{projection}_input", turn_one_head)]
    logits = model.run_with_hooks(**our_inputs, fwd_hooks=edit)
    assert_close(logits, expected, **CLOSE)
    assert (logits - model(**our_inputs)).abs().max() > 1e-3


@pytest.mark.parametrize(("family", "ours", "theirs"), MLPS)
@torch.no_grad()
def test_an_mlps_input_is_what_it_reads(families, family, ours, theirs):
    hf, model, their_inputs, our_inputs = families[family]
    module = hf.get_submodule(theirs)
    handle = module.register_forward_pre_hook(lambda _, args: (turned(args[0]), *args[1:]))
    try:
        expected = hf(**their_inputs).logits
    finally:
        handle.remove()
    edit = [(f"{ours}.hook_in", lambda x, hook: turned(x))]
    assert_close(model.run_with_hooks(**our_inputs, fwd_hooks=edit), expected, **CLOSE)


@every_projection
@every_attention
def test_gradients_are_the_references_behind_each_heads_weight(
    families, family, ours, theirs, d_head, projection
):
    """The chain rule from the projection's output, whose gradient is the reference's."""
    hf, model, their_inputs, our_inputs = families[family]
    module = hf.get_submodule(f"{theirs}.{projection}_proj")
    projected = []
    handle = module.register_forward_hook(lambda m, args, out: projected.append(out))
    try:
        score = hf(**their_inputs).logits[:, -1, 3].sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, projected)
    expected = torch.einsum(
        "bphe,hed->bphd",
        gradient.unflatten(-1, (-1, d_head)),
        module.weight.unflatten(0, (-1, d_head)),
    )
    name = f"{ours}.hook_{projection}_input"
    logits, cache = model.run_with_cache(
        **our_inputs, names_filter=name, incl_bwd=lambda logits: logits[:, -1, 3].sum()
    )
    with torch.no_grad():
        assert torch.equal(logits, model(**our_inputs))
    assert expected.abs().max() > 1e-4
    assert_close(cache[f"{name}_grad"], expected, **CLOSE)


@torch.no_grad()
def test_an_edit_in_place_reaches_no_other_reader_of_the_stream(families):
    """All cross-attentions, keys and values alike, read one tensor."""
    _, model, _, inputs = families["whisper"]
    names = ["decoder.0.cross_attn.hook_v", "decoder.1.cross_attn.hook_k"]
    _, plain = model.run_with_cache(**inputs, names_filter=names)
    edit = [("decoder.0.cross_attn.hook_k_input", lambda x, hook: x.mul_(0))]
    _, cache = model.run_with_cache(**inputs, names_filter=names, fwd_hooks=edit)
    assert all(torch.equal(cache[name], plain[name]) for name in names)


@pytest.mark.parametrize(
    "name", ["attn.hook_q_input", "attn.hook_k_input", "cross_attn.hook_v_input"]
)
@torch.no_grad()
def test_edits_in_cached_decoding_are_those_of_the_full_forward(families, name):
    _, model, _, inputs = families["whisper"]
    audio, tokens = model.encode(inputs["mel"]), inputs["tokens"]
    edit = [(f"decoder.1.{name}", turn_one_head)]
    past = KVCache(n_layers=2, capacity=7)
    with model.hooks(edit):
        steps = [model.decode(tokens[:, i : i + 1], audio, past=past) for i in range(7)]
        assert_close(torch.cat(steps, 1), model.decode(tokens, audio), **CLOSE)
