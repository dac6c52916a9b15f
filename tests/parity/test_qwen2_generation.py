"""How Qwen2-Audio answers: drawn, in beams, and with what it computed kept."""

import pytest
import tiny_qwen2 as tiny
import torch
from torch.testing import assert_close

from hooked_asr import HookedQwen2Audio
from hooked_asr.generation import GenerationError
from hooked_asr.interventions import Lockstep, replace, zero

BATCHES = ("one_clip", "left_padded", "text_only", "mixed_left")
DRAWN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9}


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def pair(layout="gqa", **rules):
    hf = tiny.hf_qwen2_audio(layout, **rules)
    return hf, HookedQwen2Audio.from_hf(hf)


def theirs(hf, inputs, **options):
    """The new tokens of each row, by the reference, up to the end."""
    out = hf.generate(**tiny.hf_inputs(inputs), **options)
    rows = out[:, inputs["tokens"].shape[1] :].tolist()
    ends = set(hf.generation_config.eos_token_id)
    return [row[: next((i for i, t in enumerate(row) if t in ends), len(row))] for row in rows]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_by_default_the_likeliest_is_said_and_on_request_it_is_drawn(batch, penalty):
    hf, model = pair(**DRAWN, repetition_penalty=penalty)
    inputs = tiny.inputs(**tiny.BATCHES[batch])
    greedy = [one.tokens for one in model.generate(**inputs)]
    assert greedy == theirs(hf, inputs, do_sample=False)
    torch.manual_seed(3)
    expected = theirs(hf, inputs)
    torch.manual_seed(3)
    drawn = [one.tokens for one in model.generate(**inputs, temperature=None)]
    assert drawn == expected != greedy
    seeded = [model.generate(**inputs, temperature=None, seed=3)[0].tokens for _ in range(2)]
    assert seeded[0] == seeded[1] == drawn[0]


# Where a prompt holds several clips, the reference's beams hear those of other prompts.
@pytest.mark.parametrize("batch", ["one_clip", "left_padded", "text_only"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_beams_are_the_references(batch, penalty):
    hf, model = pair(repetition_penalty=penalty, pad_token_id=tiny.IM_START)
    inputs = tiny.inputs(**tiny.BATCHES[batch])
    expected = theirs(hf, inputs, do_sample=False, num_beams=3)
    assert [one.tokens for one in model.generate(**inputs, num_beams=3)] == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_what_was_computed_is_what_one_run_over_the_whole_computes(beams):
    _, model = pair()
    inputs = tiny.inputs([[61, 23]])
    out = model.generate(**inputs, num_beams=beams, names_filter="*", max_new_tokens=6)
    whole = {**inputs, "tokens": out.whole_tokens[:, :-1]}
    whole["attention_mask"] = torch.ones_like(whole["tokens"])
    _, expected = model.run_with_cache(**whole)
    assert out.cache.keys() == expected.keys()
    for name, activation in expected.items():
        assert_close(out.cache[name], activation, rtol=1e-5, atol=1e-5, msg=name)


def test_interventions_are_alive_however_it_is_decoded():
    _, model = pair()
    inputs = tiny.inputs([[61]])
    silent = [zero("decoder.*.attn.hook_z")]
    for options in ({}, {"num_beams": 3}, {"temperature": 0.8, "seed": 1}):
        plain, changed = (
            model.generate(**inputs, interventions=hooks, **options)[0] for hooks in ([], silent)
        )
        assert plain.tokens != changed.tokens, options


def test_a_reference_in_lockstep_cannot_follow_beams():
    _, model = pair()
    inputs = tiny.inputs([[61]])
    beside = replace("decoder.0.mlp", Lockstep(inputs))
    with pytest.raises(GenerationError, match="num_beams"):
        model.generate(**inputs, num_beams=2, interventions=[beside])
