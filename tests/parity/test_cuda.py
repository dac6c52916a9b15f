"""On a GPU: the same bits as Hugging Face's model there. Skipped where there is none."""

import pytest
import reference
import tiny
import torch

from hooked_asr import HookedWhisper, patching
from hooked_asr.generation import greedy
from hooked_asr.interventions import zero

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def pair(layout, dtype):
    hf = tiny.hf_whisper(layout, dtype).to("cuda")
    return hf, HookedWhisper.from_hf(hf)


@every_dtype
@pytest.mark.parametrize("layout", tiny.LAYOUTS)
@torch.no_grad()
def test_logits_and_activations_are_the_references(layout, dtype):
    hf, model = pair(layout, dtype)
    mel, tokens = (x.to("cuda") for x in tiny.inputs(model))
    expected = hf(mel, decoder_input_ids=tokens).logits
    assert torch.equal(model(mel, tokens), expected)
    logits, cache = model.run_with_cache(mel, tokens)
    assert torch.equal(logits, expected)
    for name, activation in reference.activations(hf, mel, tokens).items():
        assert torch.equal(cache[name], activation.reshape(cache[name].shape)), name


@torch.no_grad()
def test_inputs_come_to_the_model():
    _, model = pair("base", torch.float32)
    mel, tokens = tiny.inputs(model)
    assert torch.equal(model(mel, tokens), model(mel.to("cuda"), tokens.to("cuda")))


def test_a_sweep_gives_the_numbers_of_the_cpu():
    _, model = pair("base", torch.float32)
    runs = [tiny.inputs(model, batch=1, seed=seed) for seed in (0, 1)]
    there, here = (
        patching.sweep(
            each,
            clean=runs[0],
            reference=(runs[1][0], runs[0][1]),
            sites=patching.heads("decoder.cross_attn"),
            metric=patching.transcript_log_prob(runs[0][1]),
            progress=False,
        )
        for each in (model, tiny.hooked())
    )
    torch.testing.assert_close(there.values, here.values, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cached_decoding_with_hooks():
    _, model = pair("base", torch.float32)
    mel, _ = tiny.inputs(model)
    prompt = torch.tensor([model.prompt()] * 2, device="cuda")
    inputs = {"audio": model.encode(mel), "tokens": prompt}
    plain = greedy(model, inputs)
    with model.hooks([zero("decoder.*.cross_attn.hook_z")]):
        assert greedy(model, inputs) != plain
    assert greedy(model, inputs) == plain
