"""A trained checkpoint on real speech, against Hugging Face's model and a published value."""

import functools

import pytest
import reference
import torch
from torch.testing import assert_close
from transformers import AutoProcessor, WhisperForConditionalGeneration

from hooked_asr import HookedWhisper, load_audio
from hooked_asr.generation import greedy
from hooked_asr.models.whisper_prompt import prompt_tokens

TEXT = "And so, my fellow Americans, ask not what your country can do for you."
CLIPS = [
    "jfk.flac",
    "LJ001-0002.wav",
    "1221-135766-0002.wav",
    "5703-47212-0000.hq.ogg",
    "no_1000ms.wav",
    "test.wav",
]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(refit):
    """The reference and ours in one type, loaded by each on its own."""

    @functools.cache
    def load(dtype):
        hf = WhisperForConditionalGeneration.from_pretrained(
            refit, dtype=dtype, attn_implementation="sdpa"
        )
        return hf, HookedWhisper.from_pretrained(refit, dtype=dtype)

    return load


@pytest.fixture(scope="module")
def model(models):
    return models(torch.float32)[1]


@pytest.fixture(scope="module")
def jfk(shared):
    return shared / "audio" / "speech_en" / "jfk.flac"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_activation_is_the_references(models, jfk, dtype):
    hf, model = models(dtype)
    mel, tokens = model.to_mel(jfk), model.to_tokens(TEXT)
    expected = reference.activations(hf, mel, tokens)
    logits, cache = model.run_with_cache(mel, tokens)
    for name, tensor in expected.items():
        assert torch.equal(cache[name], tensor.reshape(cache[name].shape)), name
    assert torch.equal(logits, expected["unembed.hook_out"])
    assert torch.equal(model(mel, tokens), logits)


def test_the_encoder_gives_the_published_values(model):
    out = model.encode(torch.ones(1, 80, 3000))
    published = torch.tensor([-0.21382, -0.48528, 0.42348, -1.33874, -0.14191])
    assert_close(out[0, 0, :5], published, rtol=0, atol=1e-3)


def test_patterns_are_the_eager_references(refit, model, jfk):
    eager = WhisperForConditionalGeneration.from_pretrained(
        refit, dtype=torch.float32, attn_implementation="eager"
    )
    mel, tokens = model.to_mel(jfk), model.to_tokens(TEXT)
    encoded = model.encode(mel)
    _, cache = model.run_with_cache(
        audio=encoded, tokens=tokens, names_filter="decoder.*.hook_pattern"
    )
    out = eager.model.decoder(tokens, encoder_hidden_states=encoded, output_attentions=True)
    for i in range(model.config.decoder.n_layers):
        ours = cache["pattern", i, "attn"], cache["pattern", i, "cross_attn"]
        theirs = out.attentions[i], out.cross_attentions[i]
        assert_close(ours, theirs, rtol=0, atol=1e-5, msg=f"layer {i}")


@pytest.mark.parametrize("clip", CLIPS)
def test_transcripts_are_the_references(refit, shared, models, clip):
    hf, model = models(torch.float32)
    path = shared / "audio" / "speech_en" / clip
    processor = AutoProcessor.from_pretrained(refit)
    features = processor(load_audio(path).numpy(), sampling_rate=16_000, return_tensors="pt")
    mel = features.input_features
    assert torch.equal(model.to_mel(path), mel)
    expected = hf.generate(mel, do_sample=False, num_beams=1)[0].tolist()
    audio, prompt = model.encode(mel), torch.tensor([prompt_tokens(model.generation_config)])
    (row,) = greedy(model, {"audio": audio, "tokens": prompt})
    assert row == [token for token in expected if token not in processor.tokenizer.all_special_ids]
    text = processor.decode(expected, skip_special_tokens=True).strip()
    assert model.to_string(row, special=False).strip() == text
    assert len(text) > 1
    # All at once, the transcript is what the model finds likeliest after each of its words.
    tokens = torch.tensor([[*prompt[0].tolist(), *row]])
    theirs = hf(mel, decoder_input_ids=tokens).logits
    assert torch.equal(model.decode(tokens, audio), theirs)
    allowed = torch.ones(model.config.d_vocab, dtype=torch.bool)
    allowed[model.generation_config.suppress_tokens or []] = False
    likeliest = theirs[0].masked_fill(~allowed, -torch.inf).argmax(-1).tolist()
    assert likeliest[prompt.shape[1] :][:-1] == row[1:]


def test_a_clip_is_transcribed_from_its_file(model, jfk):
    text = model.transcribe(jfk)
    assert text.startswith("And so my follow America.")
    assert text.endswith("Ask what you can do for your country.")
