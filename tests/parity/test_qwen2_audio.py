"""Our Qwen2-Audio against Hugging Face's: same weights, same input, every activation, bit for bit.

Where rows are padded, the fused attention of the reference gives zeros, and all that follows is
finite: padding is compared like any other position. Its eager attention spreads evenly over masked
positions instead, so against that only real positions are compared.
"""

import functools
from contextlib import ExitStack, contextmanager

import pytest
import tiny_qwen2 as tiny
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from hooked_asr import HookedQwen2Audio

every_layout = pytest.mark.parametrize("layout", tiny.LAYOUTS)
every_batch = pytest.mark.parametrize("batch", tiny.BATCHES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"]
)
some_layouts = pytest.mark.parametrize("layout", ["mha", "gqa", "mqa", "unequal_heads"])
padded_batches = pytest.mark.parametrize("batch", ["one_clip", "mixed_left", "mixed_right"])

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def pair(layout="mha", dtype=torch.float32):
    """The reference and ours over the same memory; no test changes them."""
    hf = tiny.hf_qwen2_audio(layout, dtype)
    return hf, HookedQwen2Audio.from_hf(hf)


@functools.cache
def eager(layout="mha"):
    hf = tiny.hf_qwen2_audio(layout)
    hf.set_attn_implementation("eager")
    for part in (hf.model.audio_tower, hf.model.language_model):
        assert part.config._attn_implementation == "eager"
    return hf


def inputs_of(batch, **changes):
    return tiny.inputs(**tiny.BATCHES[batch] | changes)


def logits_of(hf, inputs):
    return hf(**tiny.hf_inputs(inputs), use_cache=False).logits


def real(inputs):
    """Which of the tokens `[batch pos]` are no padding."""
    return inputs["attention_mask"].bool()


def everywhere(name):
    return True


def attentions(model):
    """The path of every attention."""
    return [name.removesuffix(".hook_z") for name in model.hook_table if name.endswith("hook_z")]


# The reference's activations, under the names of our hooks


def counterparts(hf):
    """For each of our hooks, the reference's module, and whether the tensor goes in or out."""
    rows = {
        "hook_mel": ("model.audio_tower.conv1", "in"),
        "conv1.hook_pre": ("model.audio_tower.conv1", "out"),
        "conv1.hook_post": ("model.audio_tower.conv2", "in"),
        "conv2.hook_pre": ("model.audio_tower.conv2", "out"),
        "hook_encoder_out": ("model.audio_tower.layer_norm", "out"),
        "projector.hook_out": ("model.multi_modal_projector.linear", "out"),
        "unembed.hook_out": ("lm_head", "out"),
    }
    for i in range(len(hf.model.audio_tower.layers)):
        rows |= layer_rows(f"encoder.{i}", f"model.audio_tower.layers.{i}", ENCODER_LAYER)
    for i in range(len(hf.model.language_model.layers)):
        rows |= layer_rows(f"decoder.{i}", f"model.language_model.layers.{i}", DECODER_LAYER)
    return rows


def layer_rows(ours, theirs, rows):
    rows = {f"{ours}.{hook}": (f"{theirs}.{path}", side) for hook, (path, side) in rows.items()}
    return rows | {f"{ours}.hook_resid_post": (theirs, "out")}


PROJECTIONS = {f"attn.hook_{x}": (f"self_attn.{x}_proj", "out") for x in "qkv"}
ENCODER_LAYER = {
    "hook_resid_pre": ("self_attn_layer_norm", "in"),
    **PROJECTIONS,
    "attn.hook_z": ("self_attn.out_proj", "in"),
    "hook_attn_out": ("self_attn.out_proj", "out"),
    "hook_resid_mid": ("final_layer_norm", "in"),
    "mlp.hook_pre": ("fc1", "out"),
    "mlp.hook_post": ("fc2", "in"),
    "hook_mlp_out": ("fc2", "out"),
}
DECODER_LAYER = {
    "hook_resid_pre": ("input_layernorm", "in"),
    **PROJECTIONS,
    "attn.hook_z": ("self_attn.o_proj", "in"),
    "hook_attn_out": ("self_attn.o_proj", "out"),
    "hook_resid_mid": ("post_attention_layernorm", "in"),
    "mlp.hook_pre": ("mlp.gate_proj", "out"),
    "mlp.hook_pre_linear": ("mlp.up_proj", "out"),
    "mlp.hook_post": ("mlp.down_proj", "in"),
    "hook_mlp_out": ("mlp.down_proj", "out"),
}


@contextmanager
def captured(hf, places, retain_grad=False):
    """Within it, fills the dict it yields with what goes in or out of modules, by our names."""
    tensors = {}

    def keep(name, tensor):
        assert name not in tensors, f"{name} was computed twice"
        tensors[name] = tensor
        if retain_grad and tensor.requires_grad:
            tensor.retain_grad()

    with ExitStack() as stack:
        for name, (path, side) in places.items():
            module = hf.get_submodule(path)
            if side == "in":
                handle = module.register_forward_pre_hook(lambda _, x, n=name: keep(n, x[0]))
            else:
                handle = module.register_forward_hook(lambda _, x, out, n=name: keep(n, out))
            stack.callback(handle.remove)
        yield tensors


def activations(hf, inputs):
    """Every activation that has a counterpart, laid out as ours are, heads not yet apart."""
    with captured(hf, counterparts(hf)) as tensors:
        logits_of(hf, inputs)
    ours = {name: our_layout(name, tensor) for name, tensor in tensors.items()}
    if "mel" in inputs:
        ours["hook_embed"] = F.gelu(tensors["conv2.hook_pre"]).mT
        positions = hf.model.audio_tower.embed_positions.weight
        ours["hook_pos_embed"] = positions.expand_as(ours["hook_embed"])
    return ours


def our_layout(name, tensor):
    return tensor.mT if name.startswith(("hook_mel", "conv")) else tensor


# The fused path: not one bit differs


@every_batch
@every_dtype
@every_layout
@torch.no_grad()
def test_the_logits_are_the_references(layout, dtype, batch):
    hf, model = pair(layout, dtype)
    inputs = inputs_of(batch)
    expected = logits_of(hf, inputs)
    assert expected.isfinite().all()
    assert torch.equal(model(**inputs), expected)
    logits, _ = model.run_with_cache(**inputs)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    "grad_mode", [torch.enable_grad, torch.inference_mode], ids=["autograd", "inference"]
)
@pytest.mark.parametrize("batch", ["left_padded", "right_padded", "text_only"])
@every_dtype
def test_the_logits_are_the_references_in_every_grad_mode(dtype, batch, grad_mode):
    hf, model = pair("gqa", dtype)
    inputs = inputs_of(batch)
    with grad_mode():
        expected = logits_of(hf, inputs)
        assert torch.equal(model(**inputs), expected)
        logits, _ = model.run_with_cache(**inputs)
    assert torch.equal(logits, expected)


@every_batch
@every_dtype
@every_layout
@torch.no_grad()
def test_every_activation_is_the_references(layout, dtype, batch):
    hf, model = pair(layout, dtype)
    inputs = inputs_of(batch)
    _, cache = model.run_with_cache(**inputs)
    expected = activations(hf, inputs)
    assert expected.keys() <= cache.keys()
    for name, tensor in expected.items():
        assert torch.equal(cache[name], tensor.reshape(cache[name].shape)), name


@every_layout
@torch.no_grad()
def test_no_activation_goes_unchecked(layout):
    """What has no counterpart in a module of the reference follows below."""
    hf, model = pair(layout)
    checked = activations(hf, inputs_of("one_clip")).keys()
    assert checked <= model.hook_table.keys()
    rest = {name.rpartition(".")[2] for name in model.hook_table.keys() - checked}
    lazy = {"hook_q_input", "hook_k_input", "hook_v_input", "hook_in"}
    lazy |= {"hook_attn_scores", "hook_pattern", "hook_result"}
    rotated = {"hook_rot_q", "hook_rot_k"}
    own = {"hook_encoder_pool", "hook_decoder_embed"}
    assert rest == lazy | rotated | own | {"hook_scale", "hook_normalized"}


@every_dtype
@every_layout
@torch.no_grad()
def test_the_stream_is_pooled_before_the_final_norm(layout, dtype):
    hf, model = pair(layout, dtype)
    inputs = inputs_of("several_clips")
    places = {
        "pooled": ("model.audio_tower.avg_pooler", "out"),
        "normed": ("model.audio_tower.layer_norm", "in"),
    }
    with captured(hf, places) as theirs:
        logits_of(hf, inputs)
    _, cache = model.run_with_cache(**inputs)
    assert torch.equal(cache["hook_encoder_pool"], theirs["pooled"].mT)
    assert torch.equal(cache["hook_encoder_pool"], theirs["normed"])
    last = model.config.encoder.n_layers - 1
    stream = cache[f"encoder.{last}.hook_resid_post"]
    means = stream.unflatten(1, (-1, 2)).float().mean(2)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else CLOSE
    assert_close(cache["hook_encoder_pool"].float(), means, **tolerance)


@every_batch
@every_dtype
@every_layout
@torch.no_grad()
def test_queries_and_keys_are_rotated_as_in_the_reference(layout, dtype, batch):
    """By the columns of the batch, from 0, whatever of it is padding."""
    hf, model = pair(layout, dtype)
    inputs = inputs_of(batch)
    _, cache = model.run_with_cache(**inputs)
    columns = torch.arange(inputs["tokens"].shape[1])[None]
    for i in range(model.config.decoder.n_layers):
        q, k = (cache[f"decoder.{i}.attn.hook_{x}"].transpose(1, 2) for x in "qk")
        cos, sin = hf.model.language_model.rotary_emb(q, columns)
        for x, expected in zip("qk", apply_rotary_pos_emb(q, k, cos, sin), strict=True):
            rotated = cache[f"decoder.{i}.attn.hook_rot_{x}"]
            assert torch.equal(rotated, expected.transpose(1, 2)), (i, x)
            assert not torch.equal(rotated, cache[f"decoder.{i}.attn.hook_{x}"])


@every_batch
@every_dtype
@torch.no_grad()
def test_the_decoders_input_is_tokens_with_the_audio_in_its_places(dtype, batch):
    hf, model = pair("gqa", dtype)
    inputs = inputs_of(batch)
    with captured(hf, {"entering": ("model.language_model.layers.0", "in")}) as theirs:
        logits_of(hf, inputs)
    _, cache = model.run_with_cache(**inputs)
    embed = cache["hook_decoder_embed"]
    assert torch.equal(embed, theirs["entering"])
    heard = inputs["tokens"] == tiny.AUDIO
    words = hf.get_input_embeddings()(inputs["tokens"])
    assert torch.equal(embed[~heard], words[~heard])
    if "mel" in inputs:
        lengths = [tiny.n_pooled(n) for n in inputs["mel_mask"].sum(-1).tolist()]
        clips = zip(cache["projector.hook_out"], lengths, strict=True)
        assert torch.equal(embed[heard], torch.cat([clip[:n] for clip, n in clips]))


@torch.no_grad()
def test_the_unembedding_is_the_embedding_where_the_config_says_so():
    for layout in ("tied", "mha"):
        hf, model = pair(layout)
        assert torch.equal(model.W_U, hf.lm_head.weight.T)
        assert torch.equal(model.W_E, hf.get_input_embeddings().weight)
        assert (model.unembed.weight is model.embed.weight) == (layout == "tied")


@torch.no_grad()
def test_masks_of_ones_may_be_left_out():
    hf, model = pair("gqa")
    inputs = inputs_of("whole_window")
    expected = logits_of(hf, inputs)
    assert torch.equal(model(mel=inputs["mel"], tokens=inputs["tokens"]), expected)
    assert torch.equal(model(inputs["mel"], inputs["tokens"]), expected)
    inputs = inputs_of("text_only")
    assert torch.equal(model(tokens=inputs["tokens"]), logits_of(hf, inputs))


@torch.no_grad()
def test_masks_of_any_number_type_are_taken():
    _, model = pair("gqa")
    inputs = inputs_of("mixed_left")
    expected = model(**inputs)
    for dtype in (torch.bool, torch.int32):
        masks = {name: inputs[name].to(dtype) for name in ("mel_mask", "attention_mask")}
        assert torch.equal(model(**inputs | masks), expected), dtype


@pytest.mark.parametrize("returns", ["itself", "nothing"])
@padded_batches
@every_dtype
@torch.no_grad()
def test_a_hook_that_changes_nothing_changes_no_bit(dtype, batch, returns):
    _, model = pair("gqa", dtype)
    inputs = inputs_of(batch)
    seen = []

    def look(x, hook):
        seen.append(hook.name)
        return x if returns == "itself" else None

    plain = model(**inputs)
    hooked = model.run_with_hooks(**inputs, fwd_hooks=[(everywhere, look)])
    assert torch.equal(hooked, plain)
    assert set(seen) == model.hook_table.keys()


@every_batch
@every_layout
@torch.no_grad()
def test_each_hook_fires_once_with_the_shape_it_declares(layout, batch):
    _, model = pair(layout)
    inputs = inputs_of(batch)
    (n_rows, n_pos), n_clips = inputs["tokens"].shape, len(inputs.get("mel", []))
    shapes = {}

    def look(x, hook):
        shapes.setdefault(hook.name, []).append(tuple(x.shape))

    hooks = [(name, look) for name in model.hook_table if n_clips or on_the_way_of_text(name)]
    model.run_with_hooks(**inputs, fwd_hooks=hooks)
    assert shapes.keys() == {name for name, _ in hooks}
    for name, seen in shapes.items():
        spec = model.hook_table[name]
        assert seen == [spec.shape(model.config, n_rows, n_pos, n_clips)], name


def on_the_way_of_text(name):
    """Whether a hook lies where a prompt without audio passes too."""
    return name.startswith(("decoder", "hook_decoder", "unembed"))


@torch.no_grad()
def test_shapes_are_what_they_are_called():
    _, model = pair("gqa")
    inputs = tiny.inputs([[100, 61, 40], []])
    n_rows, n_pos, n_clips = 2, inputs["tokens"].shape[1], 3
    _, cache = model.run_with_cache(**inputs, names_filter=everywhere)
    expected = {
        "hook_mel": (n_clips, 100, 8),
        "hook_embed": (n_clips, 50, 32),
        "encoder.0.attn.hook_pattern": (n_clips, 4, 50, 50),
        "hook_encoder_pool": (n_clips, 25, 32),
        "hook_encoder_out": (n_clips, 25, 32),
        "projector.hook_out": (n_clips, 25, 48),
        "hook_decoder_embed": (n_rows, n_pos, 48),
        "decoder.0.attn.hook_q": (n_rows, n_pos, 4, 12),
        "decoder.0.attn.hook_rot_q": (n_rows, n_pos, 4, 12),
        "decoder.0.attn.hook_k": (n_rows, n_pos, 2, 12),
        "decoder.0.attn.hook_v": (n_rows, n_pos, 2, 12),
        "decoder.0.attn.hook_rot_k": (n_rows, n_pos, 2, 12),
        "decoder.0.attn.hook_pattern": (n_rows, 4, n_pos, n_pos),
        "decoder.0.attn.hook_z": (n_rows, n_pos, 4, 12),
        "decoder.0.attn.hook_result": (n_rows, n_pos, 4, 48),
        "decoder.0.ln1.hook_scale": (n_rows, n_pos, 1),
        "decoder.0.mlp.hook_pre_linear": (n_rows, n_pos, 56),
        "unembed.hook_out": (n_rows, n_pos, 80),
    }
    assert {name: tuple(cache[name].shape) for name in expected} == expected


@torch.no_grad()
def test_decoder_hooks_fire_in_the_order_of_the_table():
    _, model = pair("gqa")
    seen = []
    look = [(everywhere, lambda x, hook: seen.append(hook.name))]
    model.run_with_hooks(**inputs_of("one_clip"), fwd_hooks=look)
    assert seen == list(model.hook_table)


# What is padding is not heard


@every_dtype
@torch.no_grad()
def test_what_lies_far_behind_a_clips_end_changes_nothing(dtype):
    """The first frame behind it does: the convolutions reach that far."""
    hf, model = pair("gqa", dtype)
    inputs = inputs_of("left_padded")
    lengths = inputs["mel_mask"].sum(-1)
    behind = torch.arange(tiny.N_FRAMES) >= lengths[:, None] + 4
    other = inputs["mel"] + 5.0 * behind[:, None]
    assert not torch.equal(other, inputs["mel"])
    expected = model(**inputs)
    assert torch.equal(model(**inputs | {"mel": other}), expected)
    assert torch.equal(logits_of(hf, inputs | {"mel": other}), expected)


@torch.no_grad()
def test_without_a_mask_all_of_a_window_is_heard():
    _, model = pair("gqa")
    inputs = inputs_of("left_padded")
    mel, mask = inputs["mel"], inputs["mel_mask"]
    heard = [tiny.n_pooled(n) for n in mask.sum(-1).tolist()]
    masked, whole = model.encode(mel, mel_mask=mask), model.encode(mel)
    assert torch.equal(model.encode(mel, mel_mask=torch.ones_like(mask)), whole)
    for clip, n in enumerate(heard):
        changed = (masked[clip, :n] - whole[clip, :n]).abs().amax(-1)
        assert (changed > 1e-3).all() if n < 25 else not changed.any()
    other = mel.clone()
    other[1, :, 60:] += 5.0  # the clip has 40 frames
    assert torch.equal(model.encode(other, mel_mask=mask)[1, :10], masked[1, :10])
    assert ((model.encode(other)[1, :10] - whole[1, :10]).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("side", ["left", "right"])
@every_layout
@torch.no_grad()
def test_a_row_of_a_batch_is_what_it_is_alone(layout, side):
    _, model = pair(layout)
    inputs = tiny.inputs([[61, 100], [40], []], side=side)
    logits = model(**inputs)
    clips = [slice(0, 2), slice(2, 3), None]
    for row, clip in enumerate(clips):
        kept = real(inputs)[row]
        alone = {"tokens": inputs["tokens"][row, kept][None]}
        if clip is not None:
            alone |= {name: inputs[name][clip] for name in ("mel", "mel_mask")}
        assert_close(logits[row, kept], model(**alone)[0], **CLOSE)


@torch.no_grad()
def test_each_clip_is_heard_where_its_tokens_stand():
    """Exchanging two clips of equal length is exchanging what the two places hear."""
    _, model = pair("gqa")
    inputs = tiny.inputs([[61, 61], [61]])
    order = torch.tensor([1, 0, 2])
    swapped = inputs | {"mel": inputs["mel"][order]}
    _, cache = model.run_with_cache(**inputs, names_filter="hook_decoder_embed")
    _, other = model.run_with_cache(**swapped, names_filter="hook_decoder_embed")
    heard = inputs["tokens"] == tiny.AUDIO
    first, second, third = cache["hook_decoder_embed"][heard].split(15)
    assert torch.equal(other["hook_decoder_embed"][heard], torch.cat([second, first, third]))
    assert not torch.equal(model(**swapped)[0], model(**inputs)[0])
    assert torch.equal(model(**swapped)[1], model(**inputs)[1])


# The explicit path: what the reference computes with eager attention


@pytest.mark.parametrize(
    "hooks",
    [
        *("hook_q_input", "hook_k_input", "hook_v_input", "hook_in"),
        *("hook_attn_scores", "hook_pattern", "hook_result", "hook_scale", "hook_normalized"),
        *("hook_rot_q", "hook_rot_k", "hook_q", "hook_v", "all"),
    ],
)
@padded_batches
@every_layout
@torch.no_grad()
def test_an_equal_copy_anywhere_gives_the_eager_references_logits(layout, batch, hooks):
    hf, model = pair(layout)
    inputs = inputs_of(batch)
    selector = everywhere if hooks == "all" else f"*.{hooks}"
    copy = [(selector, lambda x, hook: x.clone())]
    logits = model.run_with_hooks(**inputs, fwd_hooks=copy)
    kept = real(inputs)
    assert_close(logits[kept], logits_of(eager(layout), inputs)[kept], **CLOSE)
    assert_close(logits, logits_of(hf, inputs), **CLOSE)


@padded_batches
@every_layout
@torch.no_grad()
def test_patterns_are_the_eager_references(layout, batch):
    hf, (_, model) = eager(layout), pair(layout)
    inputs = inputs_of(batch)
    config = model.config
    places = {
        f"encoder.{i}.attn.hook_pattern": (f"model.audio_tower.layers.{i}.self_attn", "out")
        for i in range(config.encoder.n_layers)
    } | {
        f"decoder.{i}.attn.hook_pattern": (f"model.language_model.layers.{i}.self_attn", "out")
        for i in range(config.decoder.n_layers)
    }
    with captured(hf, places) as theirs:
        logits_of(hf, inputs)
    _, cache = model.run_with_cache(**inputs, names_filter=["*.hook_pattern"])
    assert cache.keys() == theirs.keys()
    kept = real(inputs)
    for name, (_, expected) in theirs.items():
        pattern = cache[name]
        if name.startswith("decoder"):
            pattern, expected = (x.transpose(1, 2)[kept] for x in (pattern, expected))
        assert_close(pattern, expected, rtol=0, atol=1e-6, msg=name)


def before_all(kept):
    """Positions that come before every real one of their row: those that see nothing."""
    return kept.cumsum(-1) == 0


@every_layout
@torch.no_grad()
def test_a_position_that_may_see_nothing_has_an_empty_pattern(layout):
    _, model = pair(layout)
    inputs = inputs_of("mixed_left")
    _, cache = model.run_with_cache(**inputs, names_filter=everywhere)
    blind = before_all(real(inputs))
    assert blind.sum() > 10
    for i in range(model.config.decoder.n_layers):
        path = f"decoder.{i}.attn"
        pattern = cache[f"{path}.hook_pattern"].transpose(1, 2)
        assert not pattern[blind].any()
        assert_close(pattern[~blind].sum(-1), torch.ones_like(pattern[~blind].sum(-1)))
        assert not cache[f"{path}.hook_z"][blind].any()
        assert (cache[f"{path}.hook_attn_scores"].transpose(1, 2)[blind] == -torch.inf).all()


@padded_batches
@every_layout
@torch.no_grad()
def test_scores_are_scaled_and_masked_products(layout, batch):
    _, model = pair(layout)
    inputs = inputs_of(batch)
    _, cache = model.run_with_cache(**inputs, names_filter=everywhere)
    for path in attentions(model):
        rotated = "rot_" if path.startswith("decoder") else ""
        q, k = (cache[f"{path}.hook_{rotated}{x}"] for x in "qk")
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        hidden = hidden_from(inputs, path.startswith("decoder"))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(hidden, -torch.inf)
        pattern = scores.softmax(-1).nan_to_num(0.0)
        assert_close(cache[f"{path}.hook_attn_scores"], scores, **CLOSE, msg=path)
        assert_close(cache[f"{path}.hook_pattern"], pattern, rtol=0, atol=1e-6, msg=path)


def hidden_from(inputs, decoder):
    """Which keys a query must not see, `[batch 1 query key]`."""
    if decoder:
        n_pos = inputs["tokens"].shape[1]
        later = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
        return later | ~real(inputs)[:, None, None]
    # The second convolution halves frames, the last one alone counting as two.
    lengths = (inputs["mel_mask"].sum(-1) + 1) // 2
    return (torch.arange(50) >= lengths[:, None])[:, None, None]


@padded_batches
@every_layout
@torch.no_grad()
def test_results_are_each_heads_share_of_what_is_written(layout, batch):
    hf, model = pair(layout)
    _, cache = model.run_with_cache(**inputs_of(batch), names_filter=everywhere)
    for path in attentions(model):
        z, result = cache[f"{path}.hook_z"], cache[f"{path}.hook_result"]
        theirs = hf.get_submodule(counterparts(hf)[f"{path}.hook_z"][0])
        bias = 0.0 if theirs.bias is None else theirs.bias
        for head in range(z.shape[2]):
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head]
            expected = theirs(alone.flatten(2)) - bias
            assert_close(result[:, :, head], expected, **CLOSE, msg=path)


@every_layout
@torch.no_grad()
def test_norms_show_the_scale_they_divided_by(layout):
    hf, model = pair(layout)
    inputs = inputs_of("mixed_left")
    _, cache = model.run_with_cache(**inputs)
    norms = [name.removesuffix(".hook_scale") for name in cache if name.endswith("hook_scale")]
    config = model.config
    assert len(norms) == 2 * (config.encoder.n_layers + config.decoder.n_layers) + 2
    for path in norms:
        key = model.source.key(f"{path}.weight").removesuffix(".weight")
        theirs = hf.get_submodule(f"model.{key}")
        seen = {}
        with theirs.register_forward_hook(lambda _, x, y, seen=seen: seen.update(x=x[0], y=y)):
            logits_of(hf, inputs)
        x = seen["x"]
        if path.startswith("encoder"):
            variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
            eps, bias = theirs.eps, theirs.bias
        else:
            variance, mean = x.square().mean(-1, keepdim=True), 0.0
            eps, bias = hf.config.text_config.rms_norm_eps, 0.0
        scale, normalized = cache[f"{path}.hook_scale"], cache[f"{path}.hook_normalized"]
        assert_close(scale, (variance + eps).sqrt(), rtol=1e-5, atol=0, msg=path)
        assert_close(normalized, (x - mean) / scale, **CLOSE, msg=path)
        assert_close(normalized * theirs.weight + bias, seen["y"], **CLOSE, msg=path)


# What a hook puts in place of a tensor is what the rest is computed from


@torch.no_grad()
def run_with(model, name, value, batch="mixed_left"):
    """Every activation of a run in which the hook `name` gave `value`."""
    hook = (name, lambda x, hook: value(x))
    _, cache = model.run_with_cache(**inputs_of(batch), names_filter=everywhere, fwd_hooks=[hook])
    return cache


@pytest.mark.parametrize("path", ["encoder.1.attn", "decoder.1.attn"])
@pytest.mark.parametrize("layout", ["mha", "gqa", "mqa"])
def test_a_changed_map_or_result_is_what_flows_on(layout, path):
    _, model = pair(layout)
    out = f"{path.rpartition('.')[0]}.hook_attn_out"
    bias = model.get_submodule(path).b_O if path.startswith("encoder") else 0.0

    def assert_z_is_read_by(pattern, cache):
        v = cache[f"{path}.hook_v"]
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        assert_close(cache[f"{path}.hook_z"], torch.einsum("bhqk,bkhd->bqhd", pattern, v), **CLOSE)

    cache = run_with(model, f"{path}.hook_attn_scores", lambda x: x / 2)
    scores = cache[f"{path}.hook_attn_scores"]
    assert_z_is_read_by(scores.softmax(-1).nan_to_num(0.0), cache)

    cache = run_with(model, f"{path}.hook_pattern", lambda x: x.flip(-1) * 2)
    assert_z_is_read_by(cache[f"{path}.hook_pattern"], cache)

    cache = run_with(model, f"{path}.hook_result", torch.sin)
    assert_close(cache[out], cache[f"{path}.hook_result"].sum(2) + bias, **CLOSE)


@pytest.mark.parametrize("x", ["q", "k"])
@pytest.mark.parametrize("layout", ["mha", "gqa", "mqa"])
def test_a_changed_query_or_key_is_rotated_and_a_rotated_one_attends(layout, x):
    hf, model = pair(layout)
    path = "decoder.1.attn"

    def assert_attends(cache):
        q, k = (cache[f"{path}.hook_rot_{name}"] for name in "qk")
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        hidden = hidden_from(inputs_of("mixed_left"), decoder=True)
        assert_close(
            cache[f"{path}.hook_attn_scores"], scores.masked_fill(hidden, -torch.inf), **CLOSE
        )

    cache = run_with(model, f"{path}.hook_{x}", torch.sin)
    changed = cache[f"{path}.hook_{x}"].transpose(1, 2)
    columns = torch.arange(changed.shape[2])[None]
    cos, sin = hf.model.language_model.rotary_emb(changed, columns)
    rotated, _ = apply_rotary_pos_emb(changed, changed, cos, sin)
    assert torch.equal(cache[f"{path}.hook_rot_{x}"], rotated.transpose(1, 2))
    assert_attends(cache)

    cache = run_with(model, f"{path}.hook_rot_{x}", torch.sin)
    assert_attends(cache)


NORMS = {  # what a norm normalises, and what reads the result
    "ln1": ("hook_resid_pre", "self_attn.q_proj", "attn.hook_q"),
    "ln2": ("hook_resid_mid", None, "mlp.hook_pre"),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@torch.no_grad()
def test_a_changed_scale_is_what_the_stream_is_divided_by(stack, norm):
    hf, model = pair("gqa")
    layer = f"{stack}.1"
    entry, reader, out = NORMS[norm]
    tower = "audio_tower" if stack == "encoder" else "language_model"
    their_layer = hf.get_submodule(f"model.{tower}.layers.1")
    reader = reader or ("fc1" if stack == "encoder" else "mlp.gate_proj")
    key = model.source.key(f"{layer}.{norm}.weight").removesuffix(".weight")
    their_norm = hf.get_submodule(f"model.{key}")
    bias = their_norm.bias if stack == "encoder" else 0.0

    def assert_read(normalized, cache):
        read = their_layer.get_submodule(reader)(normalized * their_norm.weight + bias)
        assert_close(cache[f"{layer}.{out}"].reshape(read.shape), read, **CLOSE)

    cache = run_with(model, f"{layer}.{norm}.hook_scale", lambda x: x * 3)
    x = cache[f"{layer}.{entry}"]
    mean = x.mean(-1, keepdim=True) if stack == "encoder" else 0.0
    assert_read((x - mean) / cache[f"{layer}.{norm}.hook_scale"], cache)

    cache = run_with(model, f"{layer}.{norm}.hook_normalized", torch.sin)
    assert_read(cache[f"{layer}.{norm}.hook_normalized"], cache)


@torch.no_grad()
def test_a_changed_gate_is_what_flows_on():
    hf, model = pair("gqa")
    mlp = hf.model.language_model.layers[1].mlp
    for name in ("hook_pre", "hook_pre_linear"):
        cache = run_with(model, f"decoder.1.mlp.{name}", torch.sin)
        gate, up = cache["decoder.1.mlp.hook_pre"], cache["decoder.1.mlp.hook_pre_linear"]
        assert_close(cache["decoder.1.mlp.hook_post"], F.silu(gate) * up, **CLOSE)
    cache = run_with(model, "decoder.1.mlp.hook_post", torch.sin)
    written = mlp.down_proj(cache["decoder.1.mlp.hook_post"])
    assert_close(cache["decoder.1.hook_mlp_out"], written, **CLOSE)


@torch.no_grad()
def test_what_is_put_in_place_of_the_audio_is_what_the_decoder_hears():
    hf, model = pair("gqa")
    inputs = inputs_of("mixed_left")
    linear = hf.model.multi_modal_projector.linear
    heard = inputs["tokens"] == tiny.AUDIO
    lengths = [tiny.n_pooled(n) for n in inputs["mel_mask"].sum(-1).tolist()]

    cache = run_with(model, "hook_encoder_pool", torch.sin)
    norm = hf.model.audio_tower.layer_norm
    assert_close(cache["hook_encoder_out"], norm(cache["hook_encoder_pool"]), **CLOSE)

    cache = run_with(model, "hook_encoder_out", torch.sin)
    assert_close(cache["projector.hook_out"], linear(cache["hook_encoder_out"]), **CLOSE)

    cache = run_with(model, "projector.hook_out", torch.sin)
    clips = zip(cache["projector.hook_out"], lengths, strict=True)
    expected = torch.cat([clip[:n] for clip, n in clips])
    assert torch.equal(cache["hook_decoder_embed"][heard], expected)

    cache = run_with(model, "hook_decoder_embed", torch.sin)
    assert torch.equal(cache["decoder.0.hook_resid_pre"], cache["hook_decoder_embed"])


def heads(model):
    return [
        (path, head)
        for path in attentions(model)
        for head in range(model.config.stack(path.partition(".")[0]).n_heads)
    ]


def with_head(new, head):
    """A hook of ours and one of theirs that put `new` in place of what a head gathered."""

    def change(z, hook):
        z[:, :, head] = new[:, : z.shape[1], head]
        return z

    def change_theirs(module, args):
        z = args[0].unflatten(-1, new.shape[2:]).clone()
        z[:, :, head] = new[:, : z.shape[1], head]
        return (z.flatten(2),)

    return change, change_theirs


@pytest.mark.parametrize("done", ["zeroed", "patched"])
@some_layouts
@torch.no_grad()
def test_changing_a_head_is_changing_what_enters_the_references_output_projection(layout, done):
    hf, model = pair(layout)
    inputs = inputs_of("left_padded")
    other = inputs_of("left_padded", seed=1)
    _, other = model.run_with_cache(**other, names_filter="*.hook_z")
    clean = model(**inputs)
    for path, head in heads(model):
        name = f"{path}.hook_z"
        new = torch.zeros_like(other[name]) if done == "zeroed" else other[name]
        change, change_theirs = with_head(new, head)
        out_proj = hf.get_submodule(counterparts(hf)[name][0])
        with out_proj.register_forward_pre_hook(change_theirs):
            expected = logits_of(hf, inputs)
        ours = model.run_with_hooks(**inputs, fwd_hooks=[(name, change)])
        assert_close(ours, expected, **CLOSE, msg=f"{name}, head {head}")
        assert not torch.allclose(ours[real(inputs)], clean[real(inputs)], atol=1e-4)


# Gradients


def loss_of(logits):
    """A scalar in which every logit has a weight of its own."""
    generator = torch.Generator().manual_seed(2)
    return (logits * torch.randn(logits.shape, generator=generator)).mean()


def assert_relatively_close(ours, theirs, name):
    assert ours.shape == theirs.shape, name
    assert theirs.isfinite().all(), name
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


@padded_batches
@every_layout
def test_parameters_get_the_references_gradients(layout, batch):
    hf = tiny.hf_qwen2_audio(layout)
    model = HookedQwen2Audio.from_hf(hf)
    inputs = inputs_of(batch)
    loss_of(logits_of(hf, inputs)).backward()
    theirs = {k.removeprefix("model."): p.grad for k, p in hf.named_parameters()}
    if layout == "tied":  # one parameter of ours, two equal ones of theirs
        theirs["language_model.embed_tokens.weight"] += theirs.pop("lm_head.weight")
    hf.zero_grad()  # the memory is shared; the gradients may be
    loss_of(model(**inputs)).backward()
    ours = {model.source.key(name): p.grad for name, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    frozen = "audio_tower.embed_positions.weight"
    assert [k for k, grad in ours.items() if grad is None] == [frozen]
    assert theirs[frozen] is None
    for key in ours.keys() - {frozen}:
        assert theirs[key].any(), key
        assert_relatively_close(ours[key], theirs[key], key)


@padded_batches
@every_layout
def test_activations_get_the_references_gradients(layout, batch):
    hf, model = tiny.hf_qwen2_audio(layout), tiny.hooked(layout)
    inputs = inputs_of(batch)
    with captured(hf, counterparts(hf), retain_grad=True) as tensors:
        loss_of(logits_of(hf, inputs)).backward()
    theirs = {n: our_layout(n, t.grad) for n, t in tensors.items() if t.grad is not None}
    _, cache = model.run_with_cache(**inputs, incl_bwd=loss_of)
    assert {f"{path}.hook_z" for path in attentions(model)} <= theirs.keys()
    assert {"conv1.hook_pre", "hook_encoder_out", "projector.hook_out"} <= theirs.keys()
    for name, expected in theirs.items():
        grad = cache[f"{name}_grad"]
        assert_relatively_close(grad, expected.reshape(grad.shape), name)


@pytest.mark.parametrize("layout", ["mha", "gqa", "mqa"])
def test_patterns_get_the_eager_references_gradients(layout):
    hf, model = eager(layout), tiny.hooked(layout)
    inputs = inputs_of("several_clips")
    places = {
        f"{stack}.{i}.attn.hook_pattern": (f"model.{tower}.layers.{i}.self_attn", "out")
        for stack, tower in (("encoder", "audio_tower"), ("decoder", "language_model"))
        for i in range(2)
    }
    with captured(hf, places) as theirs:
        logits = logits_of(hf, inputs)
    patterns = {name: pattern for name, (_, pattern) in theirs.items()}
    expected = torch.autograd.grad(loss_of(logits), list(patterns.values()))
    _, cache = model.run_with_cache(**inputs, names_filter="*.hook_pattern", incl_bwd=loss_of)
    for name, grad in zip(patterns, expected, strict=True):
        # What no pattern can reach has no say: the reference's gradient is behind the mask too.
        open_ = patterns[name] > 0
        assert_relatively_close(cache[f"{name}_grad"] * open_, grad * open_, name)


# Starting and stopping anywhere


def places(model):
    config = model.config
    return [(s, i) for s in ("encoder", "decoder") for i in range(config.stack(s).n_layers + 1)]


def without(inputs, *names):
    return {name: value for name, value in inputs.items() if name not in names}


@pytest.mark.parametrize("batch", ["one_clip", "mixed_left", "mixed_right"])
@pytest.mark.parametrize("layout", ["gqa", "deep"])
@every_dtype
@torch.no_grad()
def test_stopping_at_a_layer_and_starting_there_gives_the_same_logits(layout, batch, dtype):
    _, model = pair(layout, dtype)
    inputs = inputs_of(batch)
    expected = model(**inputs)
    mask = {"attention_mask": inputs["attention_mask"]}
    for stack, layer in places(model):
        place = f"{stack}.{layer}"
        encoder = stack == "encoder"
        rest = without(inputs, "mel") if encoder else mask
        start = {name: inputs[name] for name in ("mel", "mel_mask")} if encoder else inputs
        resid = model(**start, stop_at=place)
        again = model(resid=resid, start_at=place, **rest)
        assert torch.equal(again, expected), place
        stopped, before = model.run_with_cache(**start, stop_at=place)
        assert torch.equal(stopped, resid), place
        logits, after = model.run_with_cache(resid=resid, start_at=place, **rest)
        assert torch.equal(logits, expected), place
        # Each layer runs on one side of the cut, and only there.
        assert not before.keys() & after.keys(), place
        assert after, place


@pytest.mark.parametrize("batch", [name for name in tiny.BATCHES if name != "text_only"])
@every_dtype
@torch.no_grad()
def test_an_encoder_output_may_be_given_in_place_of_the_mel(dtype, batch):
    _, model = pair("gqa", dtype)
    inputs = inputs_of(batch)
    audio = model.encode(inputs["mel"], mel_mask=inputs["mel_mask"])
    _, cache = model.run_with_cache(**inputs, names_filter="hook_encoder_out")
    assert torch.equal(audio, cache["hook_encoder_out"])
    logits, seen = model.run_with_cache(audio=audio, **without(inputs, "mel"))
    assert torch.equal(logits, model(**inputs))
    assert not any(name.startswith(("encoder", "conv", "hook_mel")) for name in seen)
    assert "projector.hook_out" in seen


@torch.no_grad()
def test_a_run_between_two_layers_gives_the_stream_there():
    _, model = pair("deep")
    inputs = inputs_of("mixed_left")
    _, cache = model.run_with_cache(**inputs)
    for stack, masks in (("encoder", ["mel_mask"]), ("decoder", ["attention_mask"])):
        resid = cache[f"{stack}.1.hook_resid_pre"]
        rest = {name: inputs[name] for name in masks}
        out = model(resid=resid, start_at=f"{stack}.1", stop_at=f"{stack}.2", **rest)
        assert torch.equal(out, cache[f"{stack}.1.hook_resid_post"]), stack
    across = model(**inputs, stop_at="decoder.1")
    assert torch.equal(across, cache["decoder.0.hook_resid_post"])
    text = inputs_of("text_only")
    resid = model(**text, stop_at="decoder.2")
    assert torch.equal(model(resid=resid, start_at="decoder.2"), model(**text))


@every_dtype
@torch.no_grad()
def test_at_the_width_of_the_published_models_too(dtype):
    """Kernels differ by size: a layer of each stack, 30 s, real head sizes and mels."""
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 1280,
            "encoder_layers": 1,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "num_mel_bins": 128,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 1024,
            "num_hidden_layers": 1,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "intermediate_size": 2752,
            "vocab_size": 1000,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
        },
        audio_token_index=999,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    hf = tiny.cast(tiny.randomised(Qwen2AudioForConditionalGeneration(config).eval()), dtype)
    mel_mask = (torch.arange(3000) < torch.tensor([[3000], [811]])).long()
    rows = [[*range(9), *[999] * tiny.n_pooled(n), *range(20)] for n in (3000, 811)]
    longest = max(map(len, rows))
    inputs = {
        "mel": torch.randn(2, 128, 3000),
        "mel_mask": mel_mask,
        "tokens": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }
    logits, _ = HookedQwen2Audio.from_hf(hf).run_with_cache(**inputs)
    assert torch.equal(logits, logits_of(hf, inputs))


# Replies


def generated(hf, inputs, **options):
    """The new tokens of each row, by the reference, up to the end."""
    out = hf.generate(**tiny.hf_inputs(inputs), do_sample=False, **options)
    ends = set(hf.generation_config.eos_token_id or [])
    rows = out[:, inputs["tokens"].shape[1] :].tolist()
    stops = [next((i for i, t in enumerate(row) if t in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops, strict=True)]


def said(model, inputs, **options):
    """The new tokens of each row, by ours."""
    return [list(reply.tokens) for reply in model.generate(**inputs, **options)]


# The reference's `generate` raises where no two audio tokens stand side by side.
BATCHES_TO_ANSWER = [
    name
    for name, batch in tiny.BATCHES.items()
    if batch.get("side", "left") == "left" and name != "shortest_clip"
]


@pytest.mark.parametrize("penalty", [None, 1.3], ids=["plain", "penalty"])
@pytest.mark.parametrize("batch", BATCHES_TO_ANSWER)
@every_layout
def test_replies_are_the_references(layout, batch, penalty):
    rules = {} if penalty is None else {"repetition_penalty": penalty}
    hf, model = tiny.hf_qwen2_audio(layout, **rules), tiny.hooked(layout, **rules)
    inputs = inputs_of(batch)
    expected = generated(hf, inputs)
    assert said(model, inputs) == expected
    # Never one word over and over, nor the same whatever is asked.
    assert len(set(map(tuple, expected))) == len(expected)


def test_a_penalty_on_repetition_changes_what_is_said():
    inputs = inputs_of("several_clips")
    plain, penalised = (
        said(tiny.hooked("gqa", repetition_penalty=penalty), inputs) for penalty in (1.0, 1.3)
    )
    assert plain != penalised


def test_rows_end_at_their_own_time():
    hf, model = tiny.hf_qwen2_audio("gqa"), tiny.hooked("gqa")
    inputs = inputs_of("mixed_left")
    # Whatever the first row says as its fourth word is an end from now on.
    end = said(model, inputs)[0][3]
    for rules in (hf.generation_config, model.generation_config):
        rules.update(eos_token_id=[tiny.IM_END, end])
    expected = generated(hf, inputs)
    assert len({len(row) for row in expected}) > 1
    assert said(model, inputs) == expected
    assert not any(end in row for row in expected)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7])
def test_a_reply_has_as_many_tokens_as_are_asked_for(max_new_tokens):
    hf, model = tiny.hf_qwen2_audio("mha"), tiny.hooked("mha")
    inputs = inputs_of("one_clip")
    expected = generated(hf, inputs, max_new_tokens=max_new_tokens)
    assert len(expected[0]) == max_new_tokens
    assert said(model, inputs, max_new_tokens=max_new_tokens) == expected


@every_layout
def test_a_hook_that_gives_what_it_was_given_changes_no_bit_of_a_reply(layout):
    model = tiny.hooked(layout)
    inputs = inputs_of("mixed_left")

    def logits_said(*more):
        steps = []
        keep = ("unembed.hook_out", lambda x, hook: steps.append(x[:, -1].clone()))
        return said(model, inputs, fwd_hooks=[*more, keep]), steps

    rows, plain = logits_said()
    assert rows == said(model, inputs)
    for given in (lambda x, hook: x, lambda x, hook: None):
        again, steps = logits_said((everywhere, given))
        assert again == rows
        assert len(steps) == len(plain) > 1
        assert all(map(torch.equal, steps, plain))


def mute(logits, hook):
    """Keep a model without training from saying the audio token, which no one could then read."""
    logits[..., tiny.AUDIO] = -torch.inf


@pytest.mark.parametrize("batch", ["one_clip", "several_clips", "left_padded", "mixed_left"])
@every_layout
@torch.no_grad()
def test_cached_steps_give_the_logits_of_teacher_forcing(layout, batch):
    model = tiny.hooked(layout, eos_token_id=None)
    inputs = inputs_of(batch)
    steps = []
    keep = ("unembed.hook_out", lambda x, hook: steps.append(x[:, -1].clone()))
    rows = said(model, inputs, max_new_tokens=8, fwd_hooks=[("unembed.hook_out", mute), keep])
    new, n_prompt = torch.tensor(rows), inputs["tokens"].shape[1]
    assert new.shape[1] == len(steps) == 8
    forced = inputs | {
        "tokens": torch.cat([inputs["tokens"], new], dim=1),
        "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1),
    }
    logits = model.run_with_hooks(**forced, fwd_hooks=[("unembed.hook_out", mute)])
    logits = logits[:, n_prompt - 1 : -1]
    assert_close(torch.stack(steps, dim=1), logits, **CLOSE)
    assert torch.equal(logits.argmax(-1), new)


def test_each_position_passes_once_in_a_reply():
    """The clip is read once, the prompt once, and each new token once."""
    model = tiny.hooked("gqa", eos_token_id=None)
    inputs = inputs_of("one_clip")
    seen = {}

    def count(x, hook):
        seen.setdefault(hook.name, []).extend(hook.positions)

    names = [f"decoder.{i}.attn.hook_{x}" for i in range(2) for x in ("rot_k", "z")]
    hooks = [(name, count) for name in ("encoder.1.attn.hook_z", *names)]
    (row,) = said(model, inputs, max_new_tokens=6, fwd_hooks=hooks)
    assert len(row) == 6
    assert seen["encoder.1.attn.hook_z"] == list(range(50))
    # The last token that is said is not read any more.
    for name in names:
        assert seen[name] == list(range(inputs["tokens"].shape[1] + 5)), name


@pytest.mark.parametrize("batch", ["one_clip", "mixed_left"])
@some_layouts
def test_silencing_a_head_in_a_reply_is_silencing_it_in_the_reference(layout, batch):
    hf, model = tiny.hf_qwen2_audio(layout), tiny.hooked(layout)
    inputs = inputs_of(batch)
    plain, replies = said(model, inputs), []
    for path, head in heads(model):
        name = f"{path}.hook_z"
        d_head = model.config.stack(path.partition(".")[0]).d_head
        out_proj = hf.get_submodule(counterparts(hf)[name][0])

        def silence(z, hook, head=head):
            z[:, :, head] = 0.0

        def silence_theirs(module, args, head=head, d_head=d_head):
            z = args[0].unflatten(-1, (-1, d_head)).clone()
            z[:, :, head] = 0.0
            return (z.flatten(2),)

        with out_proj.register_forward_pre_hook(silence_theirs):
            expected = generated(hf, inputs)
        replies.append(said(model, inputs, fwd_hooks=[(name, silence)]))
        assert replies[-1] == expected, (path, head)
    assert any(reply != plain for reply in replies)


def test_a_reply_leaves_no_hook_and_no_gradient_behind():
    model = tiny.hooked("gqa")
    said(model, inputs_of("one_clip"), fwd_hooks=[("*.hook_z", lambda z, hook: None)])
    assert not model.has_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
