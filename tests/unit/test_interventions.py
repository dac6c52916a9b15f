"""What an intervention does to an activation, against loops over its places written by hand."""

import base64
import json
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tiny import START, hf_whisper, hooked, inputs

from hooked_asr import HookedWhisper, HookError, KVCache, UnknownHookError
from hooked_asr.generation import PromptShape, end_tokens, greedy, logits_processors
from hooked_asr.interventions import (
    PARTS,
    Action,
    Intervention,
    InterventionError,
    Site,
    add,
    custom,
    from_json,
    interpolate,
    mean,
    replace,
    to_json,
    zero,
)

# One hook of each kind, its axes written out: b batch, p position, h head, d whatever is inside.
KINDS = {
    "encoder.1.hook_resid_pre": "bpd",
    "encoder.0.attn.hook_z": "bphd",
    "encoder.1.attn.hook_pattern": "bhpd",
    "encoder.0.mlp.hook_post": "bpd",
    "decoder.1.hook_resid_mid": "bpd",
    "decoder.0.attn.hook_z": "bphd",
    "decoder.1.attn.hook_pattern": "bhpd",
    "decoder.0.attn.hook_k": "bphd",
    "decoder.1.attn.hook_result": "bphd",
    "decoder.0.attn.hook_q_input": "bphd",
    "decoder.1.cross_attn.hook_k_input": "bphd",
    "decoder.1.cross_attn.hook_k": "bphd",
    "decoder.0.cross_attn.hook_v": "bphd",
    "decoder.1.cross_attn.hook_z": "bphd",
    "decoder.0.cross_attn.hook_pattern": "bhpd",
    "decoder.1.mlp.hook_post": "bpd",
}
DECODER_KINDS = [name for name in KINDS if name.startswith("decoder.")]
HEADED = [name for name, axes in KINDS.items() if "h" in axes]


@pytest.fixture(scope="module")
def model():
    """Two encoder heads, eight decoder heads: mixing the stacks up shows."""
    return hooked("unequal_heads")


@pytest.fixture(scope="module")
def source(model):
    """Every activation of another input, lazy ones too."""
    return run_with_cache(model, seed=1)


@torch.no_grad()
def run_with_cache(model, hooks=(), seed=0, names=tuple(KINDS)):
    _, cache = model.run_with_cache(*inputs(model, seed=seed), names_filter=names, fwd_hooks=hooks)
    return cache


def before_and_after(model, intervention):
    """The activation at its one hook in a plain run, and with the intervention."""
    name = intervention.site.hook
    before, after = (run_with_cache(model, hooks, names=[name]) for hooks in ([], [intervention]))
    return before[name], after[name]


def by_hand(x, axes, site, new):
    """`x`, with `new(index)` at each batch, position, head and neuron that `site` means."""
    out = x.clone()
    for index in product(*map(range, x.shape[:-1])):
        at = dict(zip(axes, index, strict=False))  # `d` stays whole
        if site.heads is not None and at["h"] not in site.heads:
            continue
        if site.positions is not None and at["p"] not in site.positions:
            continue
        inside = slice(None) if site.neurons is None else list(site.neurons)
        out[index][inside] = torch.as_tensor(new(index)).expand(x.shape[-1])[inside]
    return out


def places(name):
    """Everything at a hook, some positions, and where it has heads, some of them and rectangles."""
    positions = (1, 4, 5)
    which = "heads" if "h" in KINDS[name] else "neurons"
    chosen: list[dict[str, Any]] = [{}, {which: (1,)}, {which: (1, 0)}]
    return [Site(name, positions=at, **units) for at in (None, positions) for units in chosen]


# --- Sites ----------------------------------------------------------------------------------------

numbers = st.none() | st.lists(st.integers(0, 1500), min_size=1, max_size=6).map(tuple)
spans = st.tuples(st.integers(0, 1500), st.integers(1, 40)).map(
    lambda span: tuple(range(span[0], span[0] + span[1]))
)
blocks = st.builds("{}.{}".format, st.sampled_from(["encoder", "decoder"]), st.integers(0, 40))
leaves = st.sampled_from(
    [*PARTS.values(), *(f"attn.hook_{x}" for x in "qkvz"), "cross_attn.hook_z", "mlp.hook_post"]
)
other_hooks = st.sampled_from(
    ["hook_mel", "hook_embed", "unembed.hook_out", "decoder.*.hook_pattern", "*.hook_z", "*"]
)


hooks = st.builds("{}.{}".format, blocks, leaves) | other_hooks


WITH_HEADS = ("attn_scores", "pattern", "_q", "_k", "_v", "_z")


@given(hook=hooks, units=numbers | spans, positions=numbers | spans)
def test_a_site_is_what_its_short_name_says(hook, units, positions):
    which = "heads" if hook.endswith(WITH_HEADS) else "neurons"
    site = Site(hook, positions=positions, **{which: units})
    assert Site.parse(str(site)) == site


@given(block=blocks, part=st.sampled_from(sorted(PARTS)))
def test_a_part_stands_for_the_hook_of_what_it_writes(block, part):
    assert Site.parse(f"{block}.{part}") == Site(f"{block}.{PARTS[part]}")
    assert str(Site(f"{block}.{PARTS[part]}")) == f"{block}.{part}"


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("decoder.3.cross_attn.5", Site("decoder.3.cross_attn.hook_z", (5,))),
        ("decoder.3.mlp.17@4", Site("decoder.3.mlp.hook_post", None, (4,), neurons=(17,))),
        ("decoder.3.attn.5,7@7", Site("decoder.3.attn.hook_z", (5, 7), (7,))),
        ("encoder.0.attn.2-4", Site("encoder.0.attn.hook_z", (2, 3, 4))),
        ("encoder.2.mlp@3-5", Site("encoder.2.hook_mlp_out", None, (3, 4, 5))),
        ("decoder.1.resid_post@2,5", Site("decoder.1.hook_resid_post", None, (2, 5))),
        ("decoder.1.attn.hook_k.3@0", Site("decoder.1.attn.hook_k", (3,), (0,))),
        ("decoder.*.cross_attn.1", Site("decoder.*.cross_attn.hook_z", (1,))),
        ("hook_mel@10-12", Site("hook_mel", None, (10, 11, 12))),
    ],
)
def test_short_names_as_documented(text, site):
    assert Site.parse(text) == site
    assert str(site) == text


def test_heads_and_positions_may_be_one_number_or_any_sequence():
    site = Site("decoder.0.attn.hook_z", heads=3, positions=range(2, 4))
    assert site == Site("decoder.0.attn.hook_z", torch.tensor(3), torch.tensor([2, 3]))
    assert (site.heads, site.positions) == ((3,), (2, 3))
    assert all(type(number) is int for number in (*site.heads, *site.positions))


@pytest.mark.parametrize(
    "text",
    [
        "decoder.3.mlp@",
        "decoder.3.mlp@two",
        "decoder.3.mlp@1@2",
        "decoder.3.mlp@-1",
        "decoder.3.mlp@5-3",
        "decoder.3.mlp@1.5",
        "decoder.3.cross_attn.5,",
        "decoder.3.cross_attn.5-",
    ],
)
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(InterventionError, match=r"7, 7-9 or 2,5"):
        Site.parse(text)


@pytest.mark.parametrize("numbers", [-1, (), (2, -3)])
@pytest.mark.parametrize("axis", ["heads", "positions"])
def test_heads_and_positions_count_from_zero(axis, numbers):
    with pytest.raises(InterventionError, match=f"{axis} are one or more numbers from 0 on"):
        Site("decoder.0.attn.hook_z", **{axis: numbers})


# --- Actions --------------------------------------------------------------------------------------


def check_everywhere(model, name, make, new):
    """`make(site)` puts `new(x, index)` at each place of every kind of site, and nowhere else."""
    for site in places(name):
        before, after = before_and_after(model, make(site))
        expected = by_hand(before, KINDS[name], site, partial(new, before))
        torch.testing.assert_close(after, expected, atol=1e-6, rtol=1e-6)
        untouched = by_hand(before, KINDS[name], site, lambda index: torch.nan).isfinite()
        assert torch.equal(after[untouched], before[untouched])


@pytest.mark.parametrize("name", KINDS)
def test_zero(model, name):
    check_everywhere(model, name, zero, lambda x, index: 0.0)


@pytest.mark.parametrize("name", KINDS)
def test_replace(model, source, name):
    check_everywhere(
        model, name, lambda site: replace(site, source), lambda x, index: source[name][index]
    )


@pytest.mark.parametrize("name", KINDS)
def test_interpolate(model, source, name):
    check_everywhere(
        model,
        name,
        lambda site: interpolate(site, source, 0.3),
        lambda x, index: 0.7 * x[index] + 0.3 * source[name][index],
    )


@pytest.mark.parametrize("name", KINDS)
def test_own_mean(model, name):
    position = KINDS[name].index("p")

    def average(x, index):
        same_place = [
            x[(*index[:position], other, *index[position + 1 :])]
            for other in range(x.shape[position])
        ]
        return torch.stack(same_place).mean(0)

    check_everywhere(model, name, mean, average)


@pytest.mark.parametrize("name", KINDS)
def test_mean_of_a_source(model, source, name):
    other, has_heads = source[name], "h" in KINDS[name]
    n_heads = other.shape[KINDS[name].index("h")] if has_heads else 1
    rows = {head: [] for head in range(n_heads)}
    for index in product(*map(range, other.shape[:-1])):
        rows[head_of(index, name)].append(other[index])
    means = {head: torch.stack(found).mean(0) for head, found in rows.items()}
    check_everywhere(
        model, name, lambda site: mean(site, source), lambda x, index: means[head_of(index, name)]
    )


def head_of(index, name):
    return index[KINDS[name].index("h")] if "h" in KINDS[name] else 0


@pytest.mark.parametrize("name", KINDS)
def test_add(model, source, name):
    direction = source[name].flatten(0, -2)[3]
    check_everywhere(
        model,
        name,
        lambda site: add(site, direction[list(site.neurons or range(len(direction)))], scale=-2.0),
        lambda x, index: x[index] - 2.0 * direction,
    )


@pytest.mark.parametrize("name", KINDS)
def test_custom(model, name):
    check_everywhere(
        model,
        name,
        lambda site: custom(site, lambda x, hook: x**2 + 1),
        lambda x, index: x[index] ** 2 + 1,
    )


@pytest.mark.parametrize("name", [name for name in HEADED if KINDS[name] == "bphd"])
def test_a_direction_for_each_head(model, source, name):
    direction = source[name][0, 0, :2]
    site = Site(name, (1, 0), (2, 5))
    before, after = before_and_after(model, add(site, direction))
    given_in_this_order = {1: direction[0], 0: direction[1]}
    expected = by_hand(
        before, "bphd", site, lambda index: before[index] + given_in_this_order[index[2]]
    )
    torch.testing.assert_close(after, expected)


def test_all_of_a_source_is_the_source_and_none_of_it_changes_nothing(model, source):
    for name in KINDS:
        before, none = before_and_after(model, interpolate(Site(name), source, 0.0))
        _, everything = before_and_after(model, interpolate(Site(name), source, 1.0))
        assert torch.equal(none, before)
        assert torch.equal(everything, source[name])


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_masked_scores_stay_masked_between_two_inputs(model, alpha):
    site = Site("decoder.0.attn.hook_attn_scores")
    theirs = run_with_cache(model, seed=1, names=site.hook)
    before, after = before_and_after(model, interpolate(site, theirs, alpha))
    masked = before.isinf()
    assert masked.any()
    assert torch.equal(after.isinf(), masked)
    expected = (1 - alpha) * before + alpha * theirs[site.hook]
    torch.testing.assert_close(after[~masked], expected[~masked])


def test_one_clip_of_a_source_stands_for_every_clip(model, source):
    name = "decoder.0.attn.hook_z"
    one = source[name][:1]
    _, from_tensor = before_and_after(model, replace(Site(name), one))
    _, from_mapping = before_and_after(model, replace(Site(name), {name: one}))
    assert torch.equal(from_tensor, one.expand_as(from_tensor))
    assert torch.equal(from_mapping, from_tensor)


def test_a_longer_source_is_read_where_the_activation_stands(model):
    name, mel_and_tokens = "decoder.0.hook_mlp_out", inputs(model, n_pos=12, seed=3)
    with torch.no_grad():
        _, longer = model.run_with_cache(*mel_and_tokens, names_filter=name)
    _, after = before_and_after(model, replace(Site(name), longer))
    assert torch.equal(after, longer[name][:, :7])


@pytest.mark.parametrize("name", ["decoder.1.attn.hook_pattern", "decoder.0.attn.hook_attn_scores"])
def test_a_longer_source_of_attention_is_read_among_the_keys_there_are(model, name):
    mel_and_tokens = inputs(model, n_pos=12, seed=3)
    with torch.no_grad():
        _, longer = model.run_with_cache(*mel_and_tokens, names_filter=name)
    _, after = before_and_after(model, replace(Site(name), longer))
    assert torch.equal(after, longer[name][:, :, :7, :7])


def test_a_source_is_cast_to_what_the_activation_is(model, source):
    name = "encoder.0.attn.hook_z"
    _, after = before_and_after(model, replace(Site(name), source.to(dtype=torch.float64)))
    assert torch.equal(after, source[name])


def test_a_glob_acts_on_each_hook_with_its_own_part_of_the_source(model, source):
    names = ["decoder.0.attn.hook_z", "decoder.1.attn.hook_z"]
    theirs = run_with_cache(model, seed=1, names=names)
    after = run_with_cache(model, [replace("decoder.*.attn.2,3@4-5", theirs)], names=names)
    last = names[1]  # only the last layer's own value is the same as in a plain run
    assert torch.equal(after[names[0]][:, 4:6, 2:4], theirs[names[0]][:, 4:6, 2:4])
    assert torch.equal(after[last][:, 4:6, 2:4], theirs[last][:, 4:6, 2:4])
    assert not torch.equal(after[last][:, 4:6, 4:], theirs[last][:, 4:6, 4:])


def test_a_glob_reaches_every_hook_it_matches(model):
    after = run_with_cache(model, [zero("*.mlp")], names="*.hook_mlp_out")
    assert len(after) == 4
    assert not any(x.any() for x in after.values())


def test_interventions_on_one_site_act_in_turn(model):
    site = Site("decoder.0.hook_mlp_out")
    direction = torch.arange(32.0)
    both = run_with_cache(model, [zero(site), add(site, direction)], names=site.hook)
    assert torch.equal(both[site.hook], direction.expand(2, 7, 32))


@pytest.mark.parametrize("make", [zero, lambda site: custom(site, lambda x, hook: x.zero_())])
def test_an_intervention_leaves_the_tensors_of_others_alone(model, make):
    """A stream that leaves one layer is the next one's input: only what comes later may change."""
    left = []
    keep = ("decoder.0.hook_resid_post", lambda x, hook: left.append(x))
    run_with_cache(model, [keep])
    run_with_cache(model, [keep, make("decoder.1.resid_pre")])
    assert torch.equal(*left)


def test_an_intervention_leaves_its_source_alone(model, source):
    name = "decoder.1.hook_resid_mid"
    before = source[name].clone()
    run_with_cache(model, [replace(name, source), (name, lambda x, hook: x.zero_()), zero(name)])
    assert torch.equal(source[name], before)


def test_a_custom_function_may_edit_in_place(model):
    def silence(x, hook):
        x[:, 2] = 0.0

    site = Site("decoder.1.hook_resid_pre")
    before, after = before_and_after(model, custom(site, silence))
    expected = by_hand(before, "bpd", Site(site.hook, positions=2), lambda index: 0.0)
    assert torch.equal(after, expected)


def test_a_custom_function_sees_its_site_alone_and_the_hook(model):
    seen = {}

    def look(x, hook):
        seen["shape"], seen["name"], seen["positions"] = tuple(x.shape), hook.name, hook.positions
        return x

    run_with_cache(model, [custom("decoder.0.cross_attn.1,5@0-2", look)])
    assert seen == {
        "shape": (2, 3, 2, 4),
        "name": "decoder.0.cross_attn.hook_z",
        "positions": range(7),
    }


def test_the_same_action_elsewhere(model):
    first = zero("decoder.0.mlp@3")
    second = first.at("decoder.1.mlp@3")
    assert (str(first), str(second)) == ("zero decoder.0.mlp@3", "zero decoder.1.mlp@3")
    assert second.action is first.action
    assert second.acts_at == (3,)


def test_gradients_flow_into_a_direction(model):
    direction = torch.zeros(32, requires_grad=True)
    kept = {}
    logits = model.run_with_hooks(
        *inputs(model),
        fwd_hooks=[add("decoder.1.mlp@2", direction, scale=3.0)],
        bwd_hooks=[("decoder.1.hook_mlp_out", lambda grad, hook: kept.update(stream=grad))],
    )
    (gradient,) = torch.autograd.grad(logits.square().sum(), direction)
    torch.testing.assert_close(gradient, 3.0 * kept["stream"][:, 2].sum(0))


def test_no_gradient_flows_through_what_was_replaced(model, source):
    _, cache = model.run_with_cache(
        *inputs(model),
        names_filter="decoder.1.mlp.hook_post",
        fwd_hooks=[replace("decoder.1.mlp@2,3", run_with_cache(model, names="*.hook_mlp_out"))],
        incl_bwd=lambda logits: logits.square().sum(),
    )
    gradient = cache["decoder.1.mlp.hook_post_grad"]
    assert not gradient[:, 2:4].any()
    assert gradient[:, [0, 1, 4, 5, 6]].any(-1).all()


def test_an_intervention_acts_in_half_precision():
    model = hooked("base", torch.bfloat16)
    name = "decoder.0.hook_mlp_out"
    mel, tokens = inputs(model)
    with torch.no_grad():
        _, theirs = model.run_with_cache(*inputs(model, seed=1), names_filter=name)
        _, own = model.run_with_cache(mel, tokens, names_filter=name)
        hooks = [interpolate(name, theirs.to(dtype=torch.float32), 0.5), add(name, torch.ones(32))]
        _, after = model.run_with_cache(mel, tokens, names_filter=name, fwd_hooks=hooks)
    assert after[name].dtype == torch.bfloat16
    halfway = (own[name].float() + theirs[name].float()) / 2
    torch.testing.assert_close(after[name].float(), halfway + 1, atol=0.02, rtol=0.02)


# --- Against Hugging Face's own modules -----------------------------------------------------------

OUT_PROJ = {
    "encoder.1.attn": "model.encoder.layers.1.self_attn.out_proj",
    "decoder.0.attn": "model.decoder.layers.0.self_attn.out_proj",
    "decoder.1.cross_attn": "model.decoder.layers.1.encoder_attn.out_proj",
}


def hf_logits(hf, module, edit, mel, tokens):
    def pre_hook(module, args):
        return (edit(args[0].clone()),)

    handle = hf.get_submodule(module).register_forward_pre_hook(pre_hook)
    try:
        with torch.no_grad():
            return hf(mel, decoder_input_ids=tokens).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("attention", OUT_PROJ)
def test_a_head_switched_off_or_patched_equals_the_reference(model, attention):
    hf, head = hf_whisper("unequal_heads"), 1
    d_head = 16 if attention.startswith("encoder") else 4
    mine = slice(head * d_head, (head + 1) * d_head)
    mel, tokens = inputs(model)
    theirs = {}

    def keep(x):
        theirs["z"] = x
        return x

    def put(value):
        def edit(x):
            x[..., mine] = value()
            return x

        return edit

    hf_logits(hf, OUT_PROJ[attention], keep, *inputs(model, seed=1))
    source = theirs["z"]
    expected = {
        "zero": hf_logits(hf, OUT_PROJ[attention], put(lambda: 0.0), mel, tokens),
        "replace": hf_logits(hf, OUT_PROJ[attention], put(lambda: source[..., mine]), mel, tokens),
    }
    z = source.unflatten(-1, (-1, d_head))
    site = f"{attention}.{head}"
    for intervention in (zero(site), replace(site, z)):
        with torch.no_grad():
            logits = model.run_with_hooks(mel, tokens, fwd_hooks=[intervention])
        torch.testing.assert_close(logits, expected[intervention.action.kind], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected["zero"], expected["replace"], atol=1e-2)


# --- Cached decoding ------------------------------------------------------------------------------


def decoded_in_steps(model, tokens, audio, hooks, first=3):
    """Logits of a prompt of `first` tokens at once, then of one token at a time."""
    past = KVCache(model.config.decoder.n_layers, capacity=tokens.shape[1])
    steps = [first, *[1] * (tokens.shape[1] - first)]
    with torch.no_grad(), model.hooks(hooks):
        return torch.cat(
            [model.decode(new, audio, past=past) for new in tokens.split(steps, dim=1)], dim=1
        )


@pytest.fixture(scope="module")
def spoken(model):
    """Tokens, and what the encoder makes of a clip."""
    mel, tokens = inputs(model)
    with torch.no_grad():
        return {"tokens": tokens, "audio": model.encode(mel)}


def actions_at(site, source):
    """Every action whose outcome at one position does not hang on the others."""
    width = len(site.neurons or range(source[site.hook].shape[-1]))
    interventions = [
        zero(site),
        replace(site, source),
        interpolate(site, source, 0.6),
        custom(site, lambda x, hook: 2 * x),
    ]
    if "hook_pattern" not in site.hook:
        interventions += [mean(site, source), add(site, torch.linspace(-1, 1, width))]
    return interventions


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", DECODER_KINDS)
def test_decoding_with_a_cache_equals_the_run_over_all_tokens(model, source, spoken, name):
    plain = decoded_in_steps(model, **spoken, hooks=[])
    everything, some_positions = places(name)[0], places(name)[-1]
    for site in (everything, some_positions):
        for intervention in actions_at(site, source):
            with torch.no_grad():
                at_once = model.run_with_hooks(**spoken, fwd_hooks=[intervention])
            in_steps = decoded_in_steps(model, **spoken, hooks=[intervention])
            torch.testing.assert_close(in_steps, at_once, atol=1e-5, rtol=1e-5)
        silenced = decoded_in_steps(model, **spoken, hooks=[zero(site)])
        assert not torch.allclose(silenced, plain, atol=1e-4)


def test_positions_are_met_at_exactly_their_steps(model, spoken):
    met = []

    def note(x, hook):
        met.append((hook.positions, x.shape[1]))
        return x

    site = Site("decoder.0.hook_mlp_out", positions=(1, 2, 4, 6))
    decoded_in_steps(model, **spoken, hooks=[custom(site, note)], first=3)
    assert met == [(range(3), 2), (range(4, 5), 1), (range(6, 7), 1)]


def test_nothing_before_the_first_position_changes(model, spoken):
    plain = decoded_in_steps(model, **spoken, hooks=[])
    changed = decoded_in_steps(model, **spoken, hooks=[zero("decoder.0.mlp@4")])
    assert torch.equal(changed[:, :4], plain[:, :4])
    assert not torch.allclose(changed[:, 4], plain[:, 4], atol=1e-3)


def test_an_intervention_holds_through_greedy_decoding(model, spoken):
    audio = spoken["audio"]
    prompt = torch.full((2, 1), START)
    hooks = [zero("decoder.1.cross_attn.2@3-8"), zero("decoder.0.mlp@5")]

    def uncached():
        rules = model.generation_config
        processors = logits_processors(rules, PromptShape(1, "cpu"))
        tokens = prompt
        while tokens.shape[1] < 12:
            scores = processors(tokens, model.decode(tokens, audio)[:, -1])
            tokens = torch.cat([tokens, scores.argmax(-1, keepdim=True)], dim=1)
        ends = end_tokens(rules)
        return [
            row[: next((i for i, token in enumerate(row) if token in ends), None)]
            for row in tokens[:, 1:].tolist()
        ]

    with torch.no_grad():
        spoken = {"audio": audio, "tokens": prompt}
        plain = greedy(model, spoken, 12)
        with model.hooks(hooks):
            assert greedy(model, spoken, 12) == uncached() != plain


def test_a_step_has_no_mean_of_its_own(model, spoken):
    with pytest.raises(InterventionError, match=r"one step of decoding.*give it a source"):
        decoded_in_steps(model, **spoken, hooks=[mean("decoder.0.mlp")])


def test_the_audio_has_a_mean_of_its_own_in_decoding_too(model, spoken):
    hooks = [mean("decoder.0.cross_attn.hook_v"), mean("decoder.0.mlp@0-2")]
    with torch.no_grad():
        short = {**spoken, "tokens": spoken["tokens"][:, :3]}
        at_once = model.run_with_hooks(**short, fwd_hooks=hooks)
    in_steps = decoded_in_steps(model, **spoken, hooks=hooks)
    torch.testing.assert_close(in_steps[:, :3], at_once, atol=1e-5, rtol=1e-5)


# --- JSON -----------------------------------------------------------------------------------------


def double(x, hook):
    return 2 * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["decoder.1.cross_attn.hook_z", "decoder.0.attn.hook_pattern"])
def test_json_keeps_every_action(model, dtype, name):
    theirs = run_with_cache(model, seed=1, names=name).to(dtype=dtype)
    site = Site(name, (1, 3), (2, 4))
    interventions = [
        zero(site),
        replace(site, theirs),
        replace(Site(name), theirs[name]),
        interpolate(site, theirs, 0.1),
        mean(site),
        mean(site, theirs),
        add(site, theirs[name][0, 0, 0], scale=0.3),
        custom(site, double),
    ]
    back = from_json(to_json(interventions), functions={"double": double})
    assert [str(one) for one in back] == [str(one) for one in interventions]
    assert [one.site for one in back] == [one.site for one in interventions]
    for before, after in zip(interventions, back, strict=True):
        _, expected = before_and_after(model, before)
        _, got = before_and_after(model, after)
        assert torch.equal(got, expected)
    assert back[2].action.source.dtype == dtype
    assert torch.equal(back[6].action.direction, theirs[name][0, 0, 0])


def test_json_keeps_of_a_cache_what_its_glob_reads(model, source):
    (back,) = from_json(to_json([replace("decoder.*.cross_attn.1", source)]))
    assert set(back.action.source) == {"decoder.1.cross_attn.hook_z"}
    assert torch.equal(*(s["decoder.1.cross_attn.hook_z"] for s in (back.action.source, source)))


def test_json_is_text_that_reads_like_the_interventions():
    (entry,) = json.loads(to_json([zero("decoder.3.cross_attn.5@7-9")]))
    assert entry == {
        "hook": "decoder.3.cross_attn.hook_z",
        "heads": [5],
        "positions": [7, 8, 9],
        "action": "zero",
    }
    assert to_json([], indent=None) == "[]"
    assert from_json("[]") == []


def test_json_does_not_share_memory_with_the_tensors_it_kept(source):
    direction = torch.ones(32)
    (back,) = from_json(to_json([add("decoder.0.mlp", direction)]))
    back.action.direction.zero_()
    assert direction.all()


def test_json_takes_views_and_tensors_with_gradients():
    directions = torch.randn(4, 6, requires_grad=True)
    (back,) = from_json(to_json([add("decoder.0.mlp", directions[:, 2])]))
    assert torch.equal(back.action.direction, directions[:, 2].detach())


def test_text_never_runs_code():
    text = to_json([custom("decoder.0.mlp", double)])
    assert "double" in text
    with pytest.raises(InterventionError, match=r"functions=\{'double': fn\}"):
        from_json(text)
    for name in ("os.system", "__import__", "print"):
        with pytest.raises(InterventionError, match="give it"):
            from_json(text.replace('"double"', json.dumps(name)))


def test_a_function_without_a_name_cannot_be_kept():
    with pytest.raises(InterventionError, match=r"decoder.0.mlp has no name"):
        to_json([custom("decoder.0.mlp", partial(double))])


def test_a_cache_without_the_hook_cannot_be_kept(source):
    with pytest.raises(InterventionError, match=r"has no 'decoder.1.hook_mlp_out'"):
        to_json([replace("decoder.1.mlp", source)])


def entry(**changes):
    return json.dumps([json.loads(to_json([zero("decoder.0.mlp")]))[0] | changes])


NOT_TENSORS = {"safetensors": base64.b64encode(b"not tensors").decode()}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zero decoder.0.mlp",
        "{}x",
        "5",
        "null",
        '{"hook": "decoder.0.mlp"}',
        "[1]",
        '["zero"]',
        "[{}]",
        entry(action=["zero"]),
        entry(heads="all"),
        entry(positions=1.5),
        entry(hook=None),
        entry(action="replace"),
        entry(action="replace", source=None, alpha=1.0),
        entry(action="replace", source=NOT_TENSORS, alpha=1.0),
        entry(action="replace", source={"safetensors": "!"}, alpha=1.0),
        entry(action="replace", source={"safetensors": 3}, alpha=1.0),
        entry(action="add", direction=[1, 2], scale=1.0),
        entry(
            action="add",
            direction={"safetensors": base64.b64encode(save({"x": torch.ones(2)})).decode()},
            scale=1.0,
        ),
        entry(action="custom", fn=3),
    ],
)
def test_text_that_holds_no_interventions_is_refused(text):
    with pytest.raises(InterventionError):
        from_json(text)


def test_an_unknown_action_is_answered_with_those_there_are():
    with pytest.raises(InterventionError, match="no action 'explode'; there are zero, replace"):
        from_json(entry(action="explode"))


# --- What cannot be done --------------------------------------------------------------------------


def refused(model, intervention, message, error=InterventionError):
    with pytest.raises(error, match=message):
        run_with_cache(model, [intervention], names="decoder.0.hook_mlp_out")
    assert not model.has_hooks


def test_no_heads_there(model):
    refused(model, zero(Site("decoder.0.hook_mlp_out", 1)), r"has no heads \(batch pos d_model\)")


def test_no_neurons_there(model):
    refused(model, zero(Site("decoder.0.attn.hook_z", neurons=1)), "has heads .*say which")
    with pytest.raises(InterventionError, match="heads or which neurons, not both"):
        Site("decoder.0.attn.hook_z", heads=1, neurons=1)


def test_no_such_neuron(model):
    refused(model, zero("decoder.0.mlp.48"), "neurons 0 to 47; asked for 48")


def test_no_such_head(model):
    refused(model, zero("decoder.0.cross_attn.8"), "heads 0 to 7; asked for 8")
    refused(model, zero("encoder.0.attn.0,2"), "heads 0 to 1; asked for 2")


def test_no_such_hook(model):
    refused(model, zero("decoder.2.mlp"), "the decoder's layers are 0 to 1", UnknownHookError)
    refused(model, zero("encoder.0.cross_attn"), "no hook", UnknownHookError)


def test_a_source_without_the_hook(model, source):
    refused(model, replace("decoder.0.mlp", source), r"no 'decoder.0.hook_mlp_out': cache it")
    refused(model, mean("decoder.0.mlp", source), r"no 'decoder.0.hook_mlp_out': cache it")


def test_a_source_with_too_few_positions(model):
    refused(
        model,
        replace("decoder.0.mlp", torch.zeros(2, 5, 32)),
        "has 5 positions; position 6 is asked for",
    )
    refused(
        model,
        replace("decoder.0.mlp@2,5", torch.zeros(2, 5, 32)),
        "has 5 positions; position 5 is asked for",
    )


@pytest.mark.parametrize("make", [replace, mean])
def test_a_source_with_other_axes(model, make):
    refused(
        model,
        make("decoder.0.mlp", torch.zeros(7, 32)),
        r"shape \[7, 32\] does not fit \[2, 7, 32\] .*\(batch pos d_model\)",
    )


@pytest.mark.parametrize(
    ("site", "shape"),
    [
        ("decoder.0.mlp", (2, 7, 16)),
        ("decoder.0.mlp", (2, 7, 1)),
        ("decoder.0.mlp", (3, 7, 32)),
        ("decoder.0.attn.5", (2, 7, 4, 4)),
        ("decoder.0.attn.1", (2, 7, 4, 4)),
        ("decoder.0.cross_attn.hook_pattern", (2, 8, 7, 49)),
    ],
)
def test_a_source_of_another_size(model, site, shape):
    refused(model, replace(site, torch.zeros(shape)), "does not fit")


@pytest.mark.parametrize("shape", [(31,), (3, 32), (5, 2, 7, 32)])
def test_a_direction_that_does_not_fit(model, shape):
    refused(model, add("decoder.0.mlp", torch.zeros(shape)), "a direction of shape .* does not fit")


@pytest.mark.parametrize("made", [torch.zeros(2, 7, 16), torch.zeros(3), 5.0])
def test_a_custom_function_that_returns_something_else(model, made):
    refused(model, custom("decoder.0.mlp", lambda x, hook: made), "decoder.0.hook_mlp_out")


def test_an_action_that_says_nothing(model):
    with pytest.raises(TypeError, match="says nothing"):
        run_with_cache(model, [Intervention(Site("decoder.0.hook_mlp_out"), Action())])


def test_a_position_that_no_token_reaches(model):
    refused(model, zero("decoder.0.mlp@7"), "never met position 7.*0 to 6", HookError)
    refused(model, zero("encoder.0.mlp@3,50"), "never met position 50.*0 to 49", HookError)


def test_a_refusal_names_the_intervention_without_its_tensors(model):
    direction = torch.zeros(32)
    refused(model, add("decoder.0.mlp@7", direction), "'<add decoder.0.mlp@7>'", HookError)
    assert "tensor" not in repr(add("decoder.0.mlp@7", direction))


def test_a_site_that_the_run_does_not_pass(model, spoken):
    with pytest.raises(HookError, match="never fired"):
        model.run_with_hooks(**spoken, fwd_hooks=[zero("encoder.0.mlp")])


def test_an_intervention_in_a_model_of_fresh_weights():
    model = HookedWhisper(hooked("base").config)
    mel, tokens = inputs(model)
    cache = model.run_with_cache(mel, tokens, fwd_hooks=[zero("decoder.0.attn.1@2")])[1]
    assert not cache["decoder.0.attn.hook_z"][:, 2, 1].any()


def test_a_function_that_was_not_given_is_named_at_once():
    text = to_json([custom("decoder.0.mlp", double)])
    with pytest.raises(InterventionError, match=r"^the text names a custom function 'double'"):
        from_json(text)
