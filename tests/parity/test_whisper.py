"""Our Whisper against Hugging Face's: same weights, same input, every activation, bit for bit."""

import functools

import pytest
import reference
import tiny
import torch
from torch.testing import assert_close
from transformers import WhisperConfig, WhisperForConditionalGeneration

from hooked_asr import HookedWhisper

GRAD_MODES = {
    "autograd": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}

every_layout = pytest.mark.parametrize("layout", tiny.LAYOUTS)
every_grad_mode = pytest.mark.parametrize("grad_mode", GRAD_MODES.values(), ids=GRAD_MODES)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)


@functools.cache
def pair(layout="base", dtype=torch.float32):
    """The reference and ours over the same memory; no test changes them."""
    hf = tiny.hf_whisper(layout, dtype)
    return hf, HookedWhisper.from_hf(hf)


@functools.cache
def eager(layout="base"):
    hf = tiny.hf_whisper(layout)
    hf.set_attn_implementation("eager")
    return hf


def logits_of(hf, mel, tokens):
    return hf(mel, decoder_input_ids=tokens).logits


def everywhere(name):
    return True


def attentions(model):
    """The path of every attention."""
    return [name.removesuffix(".hook_z") for name in model.hook_table if name.endswith("hook_z")]


# The fused path: not one bit differs


@pytest.mark.parametrize("batch", [1, 2])
@every_grad_mode
@every_dtype
@every_layout
def test_the_logits_are_the_references(layout, dtype, grad_mode, batch):
    hf, model = pair(layout, dtype)
    mel, tokens = tiny.inputs(model, batch)
    with grad_mode():
        expected = logits_of(hf, mel, tokens)
        assert torch.equal(model(mel, tokens), expected)
        logits, _ = model.run_with_cache(mel, tokens)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("batch", [1, 2])
@every_dtype
@every_layout
@torch.no_grad()
def test_every_activation_is_the_references(layout, dtype, batch):
    hf, model = pair(layout, dtype)
    mel, tokens = tiny.inputs(model, batch)
    _, cache = model.run_with_cache(mel, tokens)
    for name, expected in reference.activations(hf, mel, tokens).items():
        assert torch.equal(cache[name], expected.reshape(cache[name].shape)), name


@every_layout
@torch.no_grad()
def test_no_activation_goes_unchecked(layout):
    """Norms and lazy hooks have no counterpart in a module of the reference: they follow below."""
    hf, model = pair(layout)
    checked = reference.activations(hf, *tiny.inputs(model)).keys()
    rest = {name.rpartition(".")[2] for name in model.hook_table.keys() - checked}
    lazy = {"hook_q_input", "hook_k_input", "hook_v_input", "hook_in"}
    lazy |= {"hook_attn_scores", "hook_pattern", "hook_result"}
    assert rest == lazy | {"hook_scale", "hook_normalized"}


@every_dtype
@torch.no_grad()
def test_the_last_position_alone_is_a_token_sequence_too(dtype):
    hf, model = pair("base", dtype)
    mel, tokens = tiny.inputs(model, n_pos=1)
    assert torch.equal(model(mel, tokens), logits_of(hf, mel, tokens))


@torch.no_grad()
def test_all_positions_can_be_used():
    hf, model = pair()
    mel, tokens = tiny.inputs(model, n_pos=model.config.decoder.n_ctx)
    assert torch.equal(model(mel, tokens), logits_of(hf, mel, tokens))


@pytest.mark.parametrize("returns", ["itself", "nothing"])
@every_grad_mode
@every_dtype
def test_a_hook_that_changes_nothing_changes_no_bit(dtype, grad_mode, returns):
    _, model = pair("base", dtype)
    mel, tokens = tiny.inputs(model)
    seen = []

    def look(x, hook):
        seen.append(hook.name)
        return x if returns == "itself" else None

    with grad_mode():
        plain = model(mel, tokens)
        assert torch.equal(model.run_with_hooks(mel, tokens, fwd_hooks=[(everywhere, look)]), plain)
    assert set(seen) == model.hook_table.keys()


# float16: the reference clamps what leaves an encoder layer, and only that


def overflowing(stack):
    hf = tiny.hf_whisper("base")
    hf.get_submodule(f"model.{stack}.layers.0.fc2").weight.data *= 1e5
    hf.half()
    return hf, HookedWhisper.from_hf(hf)


@torch.no_grad()
def test_an_encoder_stream_that_overflows_is_clamped():
    hf, model = overflowing("encoder")
    mel, tokens = tiny.inputs(model)
    logits, cache = model.run_with_cache(mel, tokens)
    assert cache["encoder.0.hook_mlp_out"].isinf().any()
    assert cache["encoder.0.hook_resid_post"].isfinite().all()
    assert logits.isfinite().all()
    assert torch.equal(logits, logits_of(hf, mel, tokens))


@torch.no_grad()
def test_a_decoder_stream_that_overflows_is_not():
    hf, model = overflowing("decoder")
    mel, tokens = tiny.inputs(model)
    resid = model(mel, tokens, stop_at="decoder.1")
    assert resid.isinf().any()
    assert torch.equal(resid, reference.activations(hf, mel, tokens)["decoder.0.hook_resid_post"])


# The explicit path: what the reference computes with eager attention


@pytest.mark.parametrize(
    "hooks",
    [
        *("hook_q_input", "hook_k_input", "hook_v_input", "hook_in"),
        *("hook_attn_scores", "hook_pattern", "hook_result", "hook_scale", "hook_normalized"),
        "all",
    ],
)
@every_layout
@torch.no_grad()
def test_an_equal_copy_anywhere_gives_the_eager_references_logits(layout, hooks):
    _, model = pair(layout)
    mel, tokens = tiny.inputs(model)
    selector = everywhere if hooks == "all" else f"*.{hooks}"
    logits = model.run_with_hooks(mel, tokens, fwd_hooks=[(selector, lambda x, hook: x.clone())])
    assert_close(logits, logits_of(eager(layout), mel, tokens), rtol=1e-5, atol=1e-5)


@every_layout
@torch.no_grad()
def test_patterns_are_the_eager_references(layout):
    _, model = pair(layout)
    mel, tokens = tiny.inputs(model)
    _, cache = model.run_with_cache(mel, tokens, names_filter=["*.hook_pattern"])
    out = eager(layout)(mel, decoder_input_ids=tokens, output_attentions=True)
    theirs = {
        "encoder.{}.attn": out.encoder_attentions,
        "decoder.{}.attn": out.decoder_attentions,
        "decoder.{}.cross_attn": out.cross_attentions,
    }
    expected = {
        f"{path.format(i)}.hook_pattern": pattern
        for path, patterns in theirs.items()
        for i, pattern in enumerate(patterns)
    }
    assert cache.keys() == expected.keys()
    for name, pattern in expected.items():
        assert_close(cache[name], pattern, rtol=0, atol=1e-6, msg=name)


@every_layout
@torch.no_grad()
def test_scores_are_scaled_and_masked_products(layout):
    _, model = pair(layout)
    _, cache = model.run_with_cache(*tiny.inputs(model), names_filter=everywhere)
    for path in attentions(model):
        q, k, scores = (cache[f"{path}.hook_{x}"] for x in ("q", "k", "attn_scores"))
        expected = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        if path.startswith("decoder") and path.endswith(".attn"):
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            expected = expected.masked_fill(later, -torch.inf)
        assert_close(scores, expected, rtol=1e-5, atol=1e-5, msg=path)
        assert_close(scores.softmax(-1), cache[f"{path}.hook_pattern"], rtol=0, atol=1e-6, msg=path)


@every_layout
@torch.no_grad()
def test_results_are_each_heads_share_of_what_is_written(layout):
    hf, model = pair(layout)
    _, cache = model.run_with_cache(*tiny.inputs(model), names_filter=everywhere)
    for path in attentions(model):
        z, result = cache[f"{path}.hook_z"], cache[f"{path}.hook_result"]
        theirs = hf.get_submodule(reference.counterparts(hf)[f"{path}.hook_z"][0])
        for head in range(z.shape[2]):
            alone = torch.zeros_like(z)
            alone[:, :, head] = z[:, :, head]
            expected = theirs(alone.flatten(2)) - theirs.bias
            assert_close(result[:, :, head], expected, rtol=1e-5, atol=1e-5, msg=path)


@every_layout
@torch.no_grad()
def test_norms_show_the_scale_they_divided_by(layout):
    hf, model = pair(layout)
    mel, tokens = tiny.inputs(model)
    _, cache = model.run_with_cache(mel, tokens)
    norms = [name.removesuffix(".hook_scale") for name in cache if name.endswith("hook_scale")]
    assert norms
    for path in norms:
        theirs = hf.get_submodule("model." + model.source.key(f"{path}.weight")[: -len(".weight")])
        seen = {}
        with theirs.register_forward_hook(lambda _, x, y, seen=seen: seen.update(x=x[0], y=y)):
            logits_of(hf, mel, tokens)
        variance, mean = torch.var_mean(seen["x"], dim=-1, correction=0, keepdim=True)
        scale, normalized = cache[f"{path}.hook_scale"], cache[f"{path}.hook_normalized"]
        assert_close(scale, (variance + theirs.eps).sqrt(), rtol=1e-5, atol=0, msg=path)
        assert_close(normalized, (seen["x"] - mean) / scale, rtol=1e-5, atol=1e-5, msg=path)
        out = normalized * theirs.weight + theirs.bias
        assert_close(out, seen["y"], rtol=1e-5, atol=1e-5, msg=path)


# What a hook puts in place of a tensor is what the rest is computed from


@torch.no_grad()
def run_with(model, name, value):
    """Every activation of a run in which the hook `name` gave `value`."""
    _, cache = model.run_with_cache(
        *tiny.inputs(model),
        names_filter=everywhere,
        fwd_hooks=[(name, lambda x, hook: value(x))],
    )
    return cache


@pytest.mark.parametrize("path", ["encoder.1.attn", "decoder.1.attn", "decoder.0.cross_attn"])
def test_a_changed_map_or_result_is_what_flows_on(path):
    _, model = pair()
    attn = model.get_submodule(path)
    out = f"{path.rpartition('.')[0]}.hook_{path.rpartition('.')[2]}_out"

    def assert_z_is_read_by(pattern, cache):
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, cache[f"{path}.hook_v"])
        assert_close(cache[f"{path}.hook_z"], z)

    cache = run_with(model, f"{path}.hook_attn_scores", lambda x: x / 2)
    assert_z_is_read_by(cache[f"{path}.hook_attn_scores"].softmax(-1), cache)

    cache = run_with(model, f"{path}.hook_pattern", lambda x: x.flip(-1) * 2)
    assert_z_is_read_by(cache[f"{path}.hook_pattern"], cache)

    cache = run_with(model, f"{path}.hook_result", torch.sin)
    assert_close(cache[out], cache[f"{path}.hook_result"].sum(2) + attn.b_O)


NORMS = {  # what a norm of the decoder normalises, and what reads the result
    "ln1": ("hook_resid_pre", "attn.q_proj", "attn.hook_q"),
    "ln2": ("hook_resid_mid", "cross_attn.q_proj", "cross_attn.hook_q"),
    "ln3": ("hook_resid_mid_cross", "mlp.fc_in", "mlp.hook_pre"),
}


@pytest.mark.parametrize(
    ("layer", "norm"), [("encoder.1", "ln1"), *(("decoder.1", norm) for norm in NORMS)]
)
def test_a_changed_scale_is_what_the_stream_is_divided_by(layer, norm):
    _, model = pair()
    entry, reader, out = NORMS[norm]
    block = model.get_submodule(layer)
    ln = getattr(block, norm)

    def assert_read(normalized, cache):
        read = block.get_submodule(reader)(normalized * ln.weight + ln.bias)
        assert_close(cache[f"{layer}.{out}"].reshape(read.shape), read)

    cache = run_with(model, f"{layer}.{norm}.hook_scale", lambda x: x * 3)
    x = cache[f"{layer}.{entry}"]
    assert_read((x - x.mean(-1, keepdim=True)) / cache[f"{layer}.{norm}.hook_scale"], cache)

    cache = run_with(model, f"{layer}.{norm}.hook_normalized", torch.sin)
    assert_read(cache[f"{layer}.{norm}.hook_normalized"], cache)


def heads(layout):
    _, model = pair(layout)
    return [
        (path, head)
        for path in attentions(model)
        for head in range(model.hook_table[f"{path}.hook_z"].shape(model.config, 1, 1)[2])
    ]


@pytest.mark.parametrize("done", ["zeroed", "patched"])
@pytest.mark.parametrize("layout", ["base", "unequal_heads", "one_head"])
@torch.no_grad()
def test_changing_a_head_is_changing_what_enters_the_references_output_projection(layout, done):
    hf, model = pair(layout)
    mel, tokens = tiny.inputs(model)
    _, other = model.run_with_cache(*tiny.inputs(model, seed=1), names_filter="*.hook_z")
    clean = model(mel, tokens)
    for path, head in heads(layout):
        name = f"{path}.hook_z"
        new = torch.zeros_like(other[name]) if done == "zeroed" else other[name]

        def change(z, hook, new=new, head=head):
            z[:, :, head] = new[:, :, head]
            return z

        def change_theirs(module, args, new=new, head=head):
            z = args[0].unflatten(-1, new.shape[2:]).clone()
            z[:, :, head] = new[:, :, head]
            return (z.flatten(2),)

        out_proj = hf.get_submodule(reference.counterparts(hf)[name][0])
        with out_proj.register_forward_pre_hook(change_theirs):
            expected = logits_of(hf, mel, tokens)
        ours = model.run_with_hooks(mel, tokens, fwd_hooks=[(name, change)])
        assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=f"{name}, head {head}")
        assert not torch.equal(ours, clean)


# Gradients


def loss_of(logits):
    """A scalar in which every logit has a weight of its own."""
    generator = torch.Generator().manual_seed(2)
    return (logits * torch.randn(logits.shape, generator=generator)).mean()


def assert_relatively_close(ours, theirs, name):
    assert ours.shape == theirs.shape, name
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


@every_layout
def test_parameters_get_the_references_gradients(layout):
    hf = tiny.hf_whisper(layout)
    model = HookedWhisper.from_hf(hf)
    mel, tokens = tiny.inputs(model)
    loss_of(logits_of(hf, mel, tokens)).backward()
    loss_of(model(mel, tokens)).backward()
    theirs = {k.removeprefix("model."): p.grad for k, p in hf.named_parameters()}
    ours = {model.source.key(name): p.grad for name, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    assert [k for k, grad in ours.items() if grad is None] == ["encoder.embed_positions.weight"]
    assert theirs["encoder.embed_positions.weight"] is None
    for key in ours.keys() - {"encoder.embed_positions.weight"}:
        assert_relatively_close(ours[key], theirs[key], key)


@every_layout
def test_activations_get_the_references_gradients(layout):
    hf, model = tiny.hf_whisper(layout), tiny.hooked(layout)
    mel, tokens = tiny.inputs(model)
    theirs = reference.gradients(hf, mel, tokens, loss_of)
    _, cache = model.run_with_cache(mel, tokens, incl_bwd=loss_of)
    assert {f"{path}.hook_z" for path in attentions(model)} <= theirs.keys()
    for name, expected in theirs.items():
        grad = cache[f"{name}_grad"]
        assert_relatively_close(grad, expected.reshape(grad.shape), name)


@pytest.mark.parametrize("layout", ["base", "unequal_heads"])
def test_patterns_get_the_eager_references_gradients(layout):
    model = tiny.hooked(layout)
    mel, tokens = tiny.inputs(model)
    _, cache = model.run_with_cache(mel, tokens, names_filter="*.hook_pattern", incl_bwd=loss_of)
    out = eager(layout)(mel, decoder_input_ids=tokens, output_attentions=True)
    theirs = [*out.encoder_attentions, *out.decoder_attentions, *out.cross_attentions]
    names = [f"encoder.{i}.attn" for i in range(2)]
    names += [f"decoder.{i}.attn" for i in range(2)] + [f"decoder.{i}.cross_attn" for i in range(2)]
    expected = torch.autograd.grad(loss_of(out.logits), theirs)
    for name, grad in zip(names, expected, strict=True):
        assert_relatively_close(cache[f"{name}.hook_pattern_grad"], grad, name)


def test_watching_everything_leaves_the_gradients_of_parameters_as_they_are():
    plain, watched = tiny.hooked(), tiny.hooked()
    mel, tokens = tiny.inputs(plain)
    loss_of(plain(mel, tokens)).backward()
    with watched.hooks([(everywhere, lambda x, hook: None)]):
        loss_of(watched(mel, tokens)).backward()
    for (name, ours), theirs in zip(watched.named_parameters(), plain.parameters(), strict=True):
        if theirs.requires_grad:
            assert_relatively_close(ours.grad, theirs.grad, name)


# Starting and stopping anywhere


def places(layout):
    config = pair(layout)[1].config
    return [(s, i) for s in ("encoder", "decoder") for i in range(config.stack(s).n_layers + 1)]


@pytest.mark.parametrize("layout", ["base", "distilled", "deep_decoder"])
@every_dtype
@torch.no_grad()
def test_stopping_at_a_layer_and_starting_there_gives_the_same_logits(layout, dtype):
    _, model = pair(layout, dtype)
    mel, tokens = tiny.inputs(model)
    expected = model(mel, tokens)
    audio = model.encode(mel)
    assert torch.equal(model(audio=audio, tokens=tokens), expected)
    for stack, layer in places(layout):
        place = f"{stack}.{layer}"
        rest = {"tokens": tokens} if stack == "encoder" else {"audio": audio}
        start = {"mel": mel} if stack == "encoder" else {"mel": mel, "tokens": tokens}
        resid = model(**start, stop_at=place)
        assert torch.equal(model(resid=resid, start_at=place, **rest), expected), place
        stopped, before = model.run_with_cache(**start, stop_at=place)
        assert torch.equal(stopped, resid), place
        logits, after = model.run_with_cache(resid=resid, start_at=place, **rest)
        assert torch.equal(logits, expected), place
        # Each layer runs on one side of the cut, and only there.
        assert not before.keys() & after.keys(), place


@pytest.mark.parametrize("layout", ["base", "distilled", "deep_decoder"])
@torch.no_grad()
def test_each_stack_alone_stops_and_starts_at_any_layer(layout):
    _, model = pair(layout)
    mel, tokens = tiny.inputs(model)
    audio = model.encode(mel)
    logits = model.decode(tokens, audio)
    for stack, layer in places(layout):
        if stack == "encoder":
            resid = model.encode(mel, stop_at=layer)
            assert torch.equal(model.encode(resid, start_at=layer), audio), layer
        else:
            resid = model.decode(tokens, audio, stop_at=layer)
            assert torch.equal(model.decode(resid, audio, start_at=layer), logits), layer


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@torch.no_grad()
def test_a_run_between_two_layers_gives_the_stream_there(stack):
    _, model = pair("distilled" if stack == "encoder" else "deep_decoder")
    mel, tokens = tiny.inputs(model)
    _, cache = model.run_with_cache(mel, tokens)
    rest = {} if stack == "encoder" else {"audio": model.encode(mel)}
    resid = cache[f"{stack}.1.hook_resid_pre"]
    out = model(resid=resid, start_at=f"{stack}.1", stop_at=f"{stack}.2", **rest)
    assert torch.equal(out, cache[f"{stack}.1.hook_resid_post"])
    across = model(mel, tokens, stop_at="decoder.1")
    assert torch.equal(across, cache["decoder.0.hook_resid_post"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@torch.no_grad()
def test_at_the_width_of_large_v3_too(dtype):
    """Kernels differ by size: one layer of each stack, 30 s, and as many heads and mels."""
    config = WhisperConfig(
        d_model=1280,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=20,
        decoder_attention_heads=20,
        encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
        num_mel_bins=128,
        vocab_size=1000,
        pad_token_id=0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    hf = WhisperForConditionalGeneration(config).eval().to(dtype)
    mel = torch.randn(1, 128, 3000).to(dtype)
    tokens = torch.randint(1000, (1, 40))
    logits, _ = HookedWhisper.from_hf(hf).run_with_cache(mel, tokens)
    assert torch.equal(logits, logits_of(hf, mel, tokens))
