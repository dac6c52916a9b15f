"""Many interventions in one batch: each row is what decoding it by itself gives."""

import functools

import pytest
import tiny
import torch
from test_generation import pair, sounds

from hooked_asr import HookedWhisper
from hooked_asr.generation import GenerationError
from hooked_asr.interventions import InterventionError, Lockstep, add, custom, mean, replace, zero
from hooked_asr.nano.bundle import clip


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def heads(model):
    stack = model.config.decoder
    return [
        zero(f"decoder.{layer}.{attention}.{head}")
        for layer in range(stack.n_layers)
        for attention in ("attn", "cross_attn")
        for head in range(stack.n_heads)
    ]


def quiet(x, hook):
    return x * 0.3


def others(model, mel):
    """Interventions of every other kind."""
    _, cache = model.run_with_cache(mel.flip(2), torch.arange(12)[None])
    direction = torch.linspace(-1, 1, model.config.decoder.d_model)
    return [
        zero("encoder.1.attn.1"),
        zero("decoder.0.cross_attn.hook_v"),
        replace("decoder.1.mlp@4-9", cache),
        add("decoder.0.resid_post", direction),
        mean("decoder.1.attn", cache),
        custom("decoder.0.mlp", quiet),
        ("decoder.1.hook_mlp_out", quiet),
        [zero("decoder.0.mlp@7"), zero("encoder.0.mlp@10-20"), ("decoder.1.attn.hook_z", quiet)],
        zero("decoder.0.mlp").at_steps(3, 6),
        zero("decoder.1.cross_attn").in_prompt(),
        zero("unembed.hook_out@5"),
        [],
    ]


def alone(model, audio, row, **options):
    row = row if isinstance(row, list) else [row]
    (heard,) = model.generate(audio, interventions=row, **options)
    return heard


def assert_same(rows, expected):
    for row, one in zip(rows, expected, strict=True):
        assert row.tokens == one.tokens
        assert (row.language, row.text) == (one.language, one.text)
        assert [(s.start, s.end) for s in row.segments] == [(s.start, s.end) for s in one.segments]
        assert row.avg_logprob == pytest.approx(one.avg_logprob, abs=1e-5)
        assert row.no_speech_prob == pytest.approx(one.no_speech_prob, abs=1e-5)
        assert row.compression_ratio == one.compression_ratio


@functools.cache
def by_themselves(timestamps):
    """A model, a sound, rows of every kind, and what each row is by itself."""
    _, model = pair(4, multilingual=True)
    mel = sounds(1)
    rows = [*heads(model)[::2], *others(model, mel)]
    return model, mel, rows, [alone(model, mel, row, timestamps=timestamps) for row in rows]


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("batch_size", [3, 64])
def test_each_row_is_what_it_is_by_itself(timestamps, batch_size):
    model, mel, rows, expected = by_themselves(timestamps)
    heard = model.generate_rows(mel, rows, timestamps=timestamps, batch_size=batch_size)
    assert_same(heard, expected)
    assert len({tuple(one.tokens) for one in heard}) > 5


@pytest.mark.parametrize("name", ["english", "chant"])
def test_heads_of_a_trained_model(name):
    model = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    rows = [*heads(model)[::4], zero("encoder.2.attn.3"), custom("decoder.1.mlp", quiet)]
    heard = model.generate_rows(clip(name).path, rows, timestamps=True)
    assert_same(heard, [alone(model, clip(name).path, row, timestamps=True) for row in rows])


def test_a_long_recording_goes_on_row_by_row():
    _, model = pair(4)
    mel = sounds(1, 230)
    rows = heads(model)[::5]
    assert_same(model.generate_rows(mel, rows), [alone(model, mel, row) for row in rows])


def test_the_recording_is_encoded_and_read_once_for_all_rows_that_leave_it_alone():
    _, model = pair(4, times=False)
    seen = []
    watch = ("hook_embed", lambda x, hook: seen.append(hook.name))
    read = ("decoder.*.cross_attn.hook_k", lambda x, hook: seen.append((hook.name, len(x))))
    model.generate_rows(sounds(1), heads(model), language="en", fwd_hooks=[watch, read])
    assert seen.count("hook_embed") == 1
    keys = [one for one in seen if one != "hook_embed"]
    assert {rows for _, rows in keys} == {1}


def test_hooks_of_all_rows_are_alive_in_each():
    _, model = pair(4)
    mel, rows, hooks = sounds(1), heads(model)[:3], [("decoder.0.hook_mlp_out", quiet)]
    heard = model.generate_rows(mel, rows, fwd_hooks=hooks)
    expected = [model.generate(mel, interventions=[row], fwd_hooks=hooks)[0] for row in rows]
    assert_same(heard, expected)


def test_a_limit_and_what_came_before_hold_for_rows():
    _, model = pair(4, times=False)
    mel, rows = sounds(1), heads(model)[::3]
    options = {"max_new_tokens": 6, "prompt": [5, 6, 7]}
    heard = model.generate_rows(mel, rows, **options)
    assert_same(heard, [alone(model, mel, row, **options) for row in rows])


def test_a_row_that_had_nothing_to_do_is_named():
    _, model = pair(4, times=False)
    rows = [zero("decoder.0.mlp@3"), zero("decoder.0.mlp@38")]
    with pytest.warns(UserWarning, match=r"row 1: zero decoder.0.mlp@38 .* never met position 38"):
        model.generate_rows(sounds(1), rows, max_new_tokens=5)


def test_positions_of_the_encoder_are_not_taken_for_tokens():
    _, model = pair(4, times=False)
    last = model.config.encoder.n_ctx - 1
    rows = [zero(f"encoder.0.mlp@{last}"), zero("decoder.0.mlp@3")]
    assert len(model.generate_rows(sounds(1), rows, max_new_tokens=5)) == 2  # and no warning


def test_rows_are_of_one_recording():
    _, model = pair(4)
    with pytest.raises(GenerationError, match="one recording; got 2"):
        model.generate_rows(sounds(2), [zero("decoder.0.mlp")])


def test_a_reference_in_lockstep_is_for_generate():
    _, model = pair(4)
    with pytest.raises(InterventionError, match="generate"):
        model.generate_rows(sounds(1), [replace("decoder.0.mlp", Lockstep(sounds(1)))])


def test_no_rows_are_no_transcripts():
    assert tiny.hooked().generate_rows(sounds(1), []) == []
