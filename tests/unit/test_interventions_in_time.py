"""When an intervention acts: steps of a decoding, seconds of the sound, positions from one on."""

import json
import math
import warnings

import pytest
import tiny
import tiny_qwen2
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from hooked_asr import HookError
from hooked_asr.interventions import (
    InterventionError,
    Lockstep,
    Site,
    add,
    custom,
    from_json,
    interpolate,
    replace,
    to_json,
    zero,
)
from hooked_asr.timing import FRAMES, hearing

N_PROMPT = 2  # start, and no time stamps


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    """It says no times of its own accord: one window for each clip."""
    model = tiny.hooked("unequal_heads")
    times = range(tiny.NO_TIMESTAMPS, tiny.N_VOCAB)
    model.generation_config.suppress_tokens = [1, 7, 9, tiny.START, *times]
    return model


@pytest.fixture(scope="module")
def mel(model):
    return tiny.inputs(model)[0]


def decoded(model, mel, *interventions, limit=10):
    """All tokens that were read, and the logits at each of them, of cached decoding."""
    out = model.generate(
        mel, interventions=interventions, max_new_tokens=limit, names_filter="unembed.hook_out"
    )
    logits = out.cache["unembed.hook_out"]
    return out.whole_tokens[:, : logits.shape[1]], logits


def positions_of(steps, n_read):
    """The token positions that pass in these steps."""
    behind = [N_PROMPT + step - 1 for step in steps if step > 0]
    inside = list(range(N_PROMPT)) if 0 in steps else []
    return [position for position in inside + behind if position < n_read]


# --- Steps ----------------------------------------------------------------------------------------

SITES = ["decoder.0.mlp", "decoder.1.cross_attn.3", "decoder.0.attn.hook_k", "decoder.1.resid_pre"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("span", [(0, 1), (0, 3), (1, 2), (2, 5), (4, None), (0, None)])
def test_steps_are_the_positions_that_pass_in_them(model, mel, site, span):
    tokens, logits = decoded(model, mel, zero(site).at_steps(*span))
    steps = range(span[0], 99 if span[1] is None else span[1])
    there = Site.parse(site)
    there = Site(there.hook, there.heads, positions_of(steps, tokens.shape[1]))
    expected = model.run_with_hooks(mel, tokens, fwd_hooks=[zero(there)])
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    everywhere = model.run_with_hooks(mel, tokens, fwd_hooks=[zero(site)])
    if span != (0, None):
        assert not torch.allclose(everywhere, expected, atol=1e-3)


def test_nothing_changes_before_the_first_step(model, mel):
    plain_tokens, plain = decoded(model, mel)
    tokens, logits = decoded(model, mel, zero("decoder.0.mlp").at_steps(3))
    before = N_PROMPT + 2
    assert torch.equal(logits[:, :before], plain[:, :before])
    assert torch.equal(tokens[:, : before + 1], plain_tokens[:, : before + 1])
    assert not torch.allclose(logits[:, before], plain[:, before], atol=1e-3)


def test_the_prompt_is_step_0_and_the_encoder_is_too(model, mel):
    seen = []
    look = custom("*.resid_post", lambda x, hook: seen.append((hook.name[0], hook.clock.step)))
    decoded(model, mel, look.in_prompt(), limit=4)
    assert set(seen) == {("e", 0), ("d", 0)}
    seen.clear()
    decoded(model, mel, look.at_steps(1, 3), limit=4)
    assert set(seen) == {("d", 1), ("d", 2)}


def test_what_is_kept_of_the_audio_is_made_in_the_prompts_step(model, mel):
    always = decoded(model, mel, zero("decoder.*.cross_attn.hook_v"))
    in_prompt = decoded(model, mel, zero("decoder.*.cross_attn.hook_v").in_prompt())
    assert torch.equal(always[1], in_prompt[1])


def test_beams_that_are_read_again_are_read_in_their_steps(model, mel):
    silent = zero("decoder.0.mlp").at_steps(2, 4)
    out = model.generate(
        mel[:1],
        interventions=[silent],
        max_new_tokens=8,
        num_beams=2,
        names_filter="unembed.hook_out",
    )
    logits = out.cache["unembed.hook_out"]
    tokens = out.whole_tokens[:, : logits.shape[1]]
    there = zero(Site("decoder.0.hook_mlp_out", positions=positions_of((2, 3), tokens.shape[1])))
    expected = model.run_with_hooks(mel[:1], tokens, fwd_hooks=[there])
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_each_window_is_a_decoding_of_its_own():
    model, steps = tiny.hooked(), []
    look = custom("decoder.0.mlp", lambda x, hook: steps.append(hook.clock.step)).in_prompt()
    mel = torch.randn(1, 8, 250, generator=torch.Generator().manual_seed(0))
    out = model.generate(mel, interventions=[look])
    assert len(out.windows) > 1
    assert steps == [0] * len(out.windows)


def test_a_plain_forward_is_step_0(model, mel):
    _, tokens = tiny.inputs(model)
    plain = model(mel, tokens)
    now = model.run_with_hooks(mel, tokens, fwd_hooks=[zero("decoder.0.mlp").in_prompt()])
    assert torch.equal(now, model.run_with_hooks(mel, tokens, fwd_hooks=[zero("decoder.0.mlp")]))
    assert not torch.equal(now, plain)
    later = zero("decoder.0.mlp@3").at_steps(1)
    with pytest.raises(HookError, match=r"'<zero decoder.0.mlp@3 in steps 1->'.*step 1.*0 to 0"):
        model.run_with_hooks(mel, tokens, fwd_hooks=[later])
    assert not model.has_hooks


def test_a_step_that_decoding_never_comes_to_warns(model, mel):
    with pytest.warns(UserWarning, match=r"zero decoder.0.mlp in steps 20-.*step 20.*0 to 4"):
        decoded(model, mel, zero("decoder.0.mlp").at_steps(20), limit=5)
    with pytest.warns(UserWarning, match=r"encoder.0.mlp in steps 1-.*step 1.*0 to 0"):
        decoded(model, mel, zero("encoder.0.mlp").at_steps(1), limit=5)


def test_a_position_that_passes_in_other_steps_alone_warns(model, mel):
    with pytest.warns(UserWarning, match="position 1: this run had 3 to 5 in steps 2-4"):
        decoded(model, mel, zero("decoder.0.mlp@1").at_steps(2, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded(model, mel, zero("decoder.0.mlp@4").at_steps(2, 5))


def test_steps_are_part_of_the_name(model):
    silent = zero("decoder.0.mlp@3")
    assert str(silent.at_steps(2, 6)) == "zero decoder.0.mlp@3 in steps 2-5"
    assert str(silent.in_prompt()) == "zero decoder.0.mlp@3 in steps 0"
    assert str(silent.at_steps(4)) == "zero decoder.0.mlp@3 in steps 4-"
    assert str(silent) == "zero decoder.0.mlp@3"
    assert silent.at_steps(2).at("decoder.1.mlp").steps == silent.at_steps(2).steps


@pytest.mark.parametrize("span", [(-1,), (0, -2), (2, 2), (5, 3)])
def test_no_such_steps(span):
    with pytest.raises(InterventionError, match="steps"):
        zero("decoder.0.mlp").at_steps(*span)


def test_json_keeps_steps():
    interventions = [zero("decoder.0.mlp").at_steps(2, 6), zero("decoder.0.mlp").at_steps(4)]
    text = to_json(interventions)
    assert [entry["steps"] for entry in json.loads(text)] == [[2, 6], [4, None]]
    assert [str(one) for one in from_json(text)] == [str(one) for one in interventions]
    for wrong in ("[4, 2]", "[]", "null", "[-1, null]", '"all"'):
        with pytest.raises(InterventionError):
            from_json(to_json(interventions[1:], indent=None).replace("[4, null]", wrong))


# --- Seconds --------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from(sorted(FRAMES)))
def test_positions_that_overlap_a_span_are_told_by_each_ones_own(first, length, clock):
    start, stop = first / 100, (first + length) / 100
    width = FRAMES[clock]
    expected = [p for p in range(700) if p * width < first + length and (p + 1) * width > first]
    assert list(hearing(start, stop, clock)) == expected


HEARING = {
    "hook_mel": (20, 47),
    "encoder.1.hook_resid_pre": (10, 24),
    "encoder.0.attn.hook_z": (10, 24),
    "encoder.1.attn.hook_pattern": (10, 24),
    "hook_encoder_out": (10, 24),
    "decoder.1.cross_attn.hook_k": (10, 24),
    "decoder.0.cross_attn.hook_v": (10, 24),
}


@pytest.mark.parametrize("name", HEARING)
def test_seconds_are_the_positions_that_hear_them(model, mel, name):
    _, tokens = tiny.inputs(model)
    ours = zero(Site(name, seconds=(0.2, 0.47)))
    theirs = zero(Site(name, positions=range(*HEARING[name])))
    kept = [
        model.run_with_cache(mel, tokens, names_filter=name, fwd_hooks=[one])[1][name]
        for one in (ours, theirs)
    ]
    assert torch.equal(*kept)
    assert torch.equal(*(decoded(model, mel, one)[1] for one in (ours, theirs)))


@pytest.mark.parametrize(
    ("name", "positions"),
    [("hook_encoder_pool", (5, 12)), ("projector.hook_out", (5, 12)), ("hook_mel", (20, 47))],
)
def test_seconds_of_a_clip_in_a_prompt(name, positions):
    model, inputs = tiny_qwen2.hooked(), tiny_qwen2.inputs()
    hooks = [
        zero(Site(name, seconds=(0.2, 0.47))),
        zero(Site(name, positions=range(*positions))),
    ]
    assert torch.equal(*(model.run_with_hooks(**inputs, fwd_hooks=[one]) for one in hooks))


@given(st.floats(0, 1e6), st.floats(1e-9, 1e3))
def test_seconds_are_read_as_they_are_written(start, length):
    stop = start + length
    if stop == start:
        return
    site = Site("encoder.2.hook_mlp_out", heads=None, seconds=(start, stop))
    assert Site.parse(str(site)) == site
    (back,) = from_json(to_json([zero(site)]))
    assert back.site == site


def test_seconds_have_a_short_form():
    site = Site.parse("encoder.2.mlp@0.5s-1.2s")
    assert site == Site("encoder.2.hook_mlp_out", seconds=(0.5, 1.2))
    assert str(site) == "encoder.2.mlp@0.5s-1.2s"
    assert str(Site.parse("encoder.2.attn.1@1s-2s")) == "encoder.2.attn.1@1s-2s"


def test_seconds_of_heads(model, mel):
    _, tokens = tiny.inputs(model)
    hooks = [zero("encoder.0.attn.1@0.2s-0.47s"), zero("encoder.0.attn.1@10-23")]
    assert torch.equal(*(model.run_with_hooks(mel, tokens, fwd_hooks=[one]) for one in hooks))


@pytest.mark.parametrize(
    "seconds", [(1, 1), (2, 1), (-1, 1), (0, math.inf), (math.nan, 1), (1,), (1, 2, 3)]
)
def test_no_such_seconds(seconds):
    with pytest.raises(InterventionError, match=r"as in \(0.5, 1.2\)"):
        Site("encoder.0.hook_mlp_out", seconds=seconds)


def test_positions_and_seconds_exclude_each_other():
    with pytest.raises(InterventionError, match="not both"):
        Site("encoder.0.hook_mlp_out", positions=3, seconds=(0, 1))


def refused(model, mel, intervention, message):
    _, tokens = tiny.inputs(model)
    with pytest.raises(InterventionError, match=message):
        model.run_with_hooks(mel, tokens, fwd_hooks=[intervention])
    assert not model.has_hooks


def test_seconds_beyond_the_window(model, mel):
    refused(model, mel, zero("encoder.0.mlp@0.5s-1.2s"), r"is 1 s long; asked for 0.5 to 1.2 s")
    refused(model, mel, zero("hook_mel@3s-4s"), r"is 1 s long; asked for 3 to 4 s")


@pytest.mark.parametrize("name", ["decoder.0.mlp", "decoder.0.cross_attn.1", "unembed.hook_out"])
def test_tokens_have_no_seconds(model, mel, name):
    refused(model, mel, zero(f"{name}@0.2s-0.4s"), r"counts tokens.*model\.audio_positions")


# --- Open positions -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoder.0.mlp", "decoder.1.cross_attn.3", "encoder.0.attn.1,0"])
@pytest.mark.parametrize("first", [0, 1, 5, 9])
def test_from_a_position_on(model, mel, name, first):
    open_ended, listed = zero(f"{name}@{first}-"), zero(f"{name}@{first}-49")
    tokens, logits = decoded(model, mel, open_ended)
    if name.startswith("decoder"):
        listed = zero(f"{name}@{first}-{tokens.shape[1] - 1}")
    expected = model.run_with_hooks(mel, tokens, fwd_hooks=[listed])
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    at_once = model.run_with_hooks(mel, tokens, fwd_hooks=[open_ended])
    assert torch.equal(at_once, expected)


def test_open_positions_read_a_source_where_they_stand(model, mel):
    name = "decoder.0.hook_mlp_out"
    other, tokens = tiny.inputs(model, n_pos=12, seed=3)
    _, cache = model.run_with_cache(other, tokens, names_filter=name)
    read, logits = decoded(model, mel, replace("decoder.0.mlp@4-", cache), limit=9)
    listed = replace(Site(name, positions=range(4, read.shape[1])), cache)
    assert_close(logits, model.run_with_hooks(mel, read, fwd_hooks=[listed]), rtol=1e-5, atol=1e-5)


def test_open_positions_have_a_short_form():
    site = Site("decoder.3.hook_mlp_out", positions=slice(5, None))
    assert str(site) == "decoder.3.mlp@5-"
    assert Site.parse("decoder.3.mlp@5-") == site
    assert from_json(to_json([zero(site)]))[0].site == site
    assert Site("x", positions=slice(2, 5)) == Site("x", positions=(2, 3, 4))
    assert Site("x", positions=slice(None, 3)) == Site("x", positions=(0, 1, 2))


@pytest.mark.parametrize("wrong", [slice(-2, None), slice(0, 6, 2), slice(4, 4), slice(0, -1)])
def test_slices_that_do_not_count_up_from_0(wrong):
    with pytest.raises(InterventionError, match="positions"):
        Site("decoder.3.hook_mlp_out", positions=wrong)


def test_a_first_position_that_is_never_met(model, mel):
    _, tokens = tiny.inputs(model)
    with pytest.raises(HookError, match="never met position 7: this run had 0 to 6"):
        model.run_with_hooks(mel, tokens, fwd_hooks=[zero("decoder.0.mlp@7-")])
    with pytest.warns(UserWarning, match="never met position 20"):
        decoded(model, mel, zero("decoder.0.mlp@20-"), limit=5)


# --- Sources that were kept before ----------------------------------------------------------------


@pytest.mark.parametrize("site", [*SITES, "decoder.1.attn.hook_pattern"])
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_a_cache_is_read_at_the_positions_of_decoding(model, mel, site, alpha):
    other, tokens = tiny.inputs(model, n_pos=20, seed=3)
    _, cache = model.run_with_cache(other, tokens, names_filter=Site.parse(site).hook)
    mixed = interpolate(site, cache, alpha)
    read, logits = decoded(model, mel, mixed)
    expected = model.run_with_hooks(mel, read, fwd_hooks=[mixed])
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_cache_that_is_too_short_says_where_it_ends(model, mel):
    other, tokens = tiny.inputs(model, n_pos=5, seed=3)
    _, cache = model.run_with_cache(other, tokens)
    with pytest.raises(InterventionError, match="has 5 positions; position 5 is asked for"):
        decoded(model, mel, replace("decoder.0.mlp", cache))


# --- References that no decoding runs -------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoder.0.mlp", "encoder.0.mlp", "decoder.0.cross_attn.hook_k"])
def test_a_lockstep_needs_a_decoding(model, mel, name):
    refused(model, mel, replace(name, Lockstep(mel)), r"model\.generate.*run_with_cache")


def test_a_lockstep_is_no_text(mel):
    with pytest.raises(InterventionError, match="Lockstep, whose recording is not kept"):
        to_json([replace("decoder.0.mlp", Lockstep(mel))])


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_at_the_ends_of_the_scale_the_source_must_fit_too(model, mel, alpha):
    refused(model, mel, interpolate("decoder.0.mlp", torch.zeros(2, 7, 16), alpha), "does not fit")


def test_functions_are_asleep_in_a_run_beside(model, mel):
    _, tokens = tiny.inputs(model)
    plain = model(mel, tokens)
    ones = add("decoder.0.mlp", torch.ones(32))
    with model.hooks([ones]):
        loud = model(mel, tokens)
        with model.unhooked():
            assert torch.equal(model(mel, tokens), plain)
            with model.hooks([zero("decoder.0.mlp")]):
                silent = model(mel, tokens)
        assert torch.equal(model(mel, tokens), loud)
    assert not model.has_hooks
    assert torch.equal(silent, model.run_with_hooks(mel, tokens, fwd_hooks=[zero("decoder.0.mlp")]))
