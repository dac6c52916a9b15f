"""Times, words and heads of whole models, tiny and trained, are those of transformers' decoding."""

import pytest
import torch
from tiny import END, N_VOCAB, hf_whisper, inputs
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hooked_asr.audio import load_audio
from hooked_asr.speech import combine_into_words, find_alignment_heads, token_times


def listed_heads(model):
    return model.generation_config.alignment_heads


def patterns_of(model, mel, tokens):
    """The listed heads' cross-attention when the tokens are run in one pass; `[head pos audio]`."""
    with torch.no_grad():
        out = model(mel, decoder_input_ids=tokens, output_attentions=True)
    return torch.stack(
        [out.cross_attentions[layer][0, head] for layer, head in listed_heads(model)]
    )


# transformers repeats a tensor of lengths by numpy, which warns of it.
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize("frames", [[100, 100, 100], [100, 71, 40]])
@pytest.mark.parametrize("layout", ["untied", "deep_decoder"])
def test_times_of_a_tiny_models_decoding(layout, frames):
    model = hf_whisper(layout)
    model.set_attn_implementation("eager")
    model.generation_config.alignment_heads = [[0, 1], [0, 0], [0, 3]]
    # Text alone: at a time stamp the reference would start another window there.
    model.generation_config.suppress_tokens = list(range(END, N_VOCAB))
    mel, _ = inputs(model, batch=3)
    mask = (torch.arange(mel.shape[-1]) < torch.tensor(frames)[:, None]).long()
    options = {"return_token_timestamps": True, "return_dict_in_generate": True}
    out = model.generate(mel, attention_mask=mask, max_new_tokens=12, **options)
    times = out["token_timestamps"]
    assert times.unique().numel() > 5
    n_prompt = out["sequences"].shape[1] - 12  # nothing ends: the end token is suppressed
    for i, n_frames in enumerate(frames):
        patterns = patterns_of(model, mel[i : i + 1], out["sequences"][i : i + 1, :-1])
        ends = token_times(patterns, n_prompt, n_audio=n_frames // 2)[:, 1].float()
        # Theirs has 0.0 for the prompt, and for the last token the time of the one before.
        assert torch.equal(times[i, n_prompt:-1], ends)
        assert times[i, :n_prompt].tolist() == [0.0] * n_prompt
        assert times[i, -1] == ends[-1]


@pytest.fixture(scope="module")
def trained(refit, shared):
    """A trained model, its processor, and eleven seconds of speech as log-mel frames."""
    model = WhisperForConditionalGeneration.from_pretrained(
        refit, attn_implementation="eager", dtype=torch.float32
    ).eval()
    processor = WhisperProcessor.from_pretrained(refit)
    audio = load_audio(shared / "audio" / "speech_en" / "jfk.flac")
    features = processor(
        audio.numpy(), sampling_rate=16000, return_tensors="pt", return_attention_mask=True
    )
    return model, processor.tokenizer, features


@pytest.fixture(scope="module")
def transcribed(trained):
    """The trained model's own tokens and their times, by itself and by us."""
    model, _, features = trained
    mel, mask = features.input_features, features.attention_mask
    options = {"return_token_timestamps": True, "return_timestamps": True}
    out = model.generate(mel, attention_mask=mask, **options)
    # Neither the prompt (the start token) nor the end token is in what this way of decoding gives.
    start = torch.tensor([model.generation_config.decoder_start_token_id])
    patterns = patterns_of(model, mel, torch.cat([start, out["sequences"][0]])[None])
    return out, token_times(patterns, n_prompt=1, n_audio=int(mask.sum()) // 2)


def test_times_of_a_trained_models_decoding(transcribed):
    out, times = transcribed
    assert torch.equal(times[:, 1].float(), out["token_timestamps"][0])
    assert times.max() > 10


def test_words_are_those_of_transformers_pipeline(trained, transcribed):
    _, tokenizer, _ = trained
    out, times = transcribed
    options = {"return_timestamps": "word", "return_language": False, "time_precision": 0.02}
    outputs = [{"tokens": out["sequences"], "token_timestamps": out["token_timestamps"]}]
    _, theirs = tokenizer._decode_asr(outputs, **options)
    is_text = out["sequences"][0] < tokenizer.eos_token_id
    tokens = out["sequences"][0][is_text].tolist()
    ours = combine_into_words(tokenizer, tokens, times[is_text])
    assert len(ours) > 20
    for word, chunk in zip(ours, theirs["chunks"], strict=True):
        assert word.text == chunk["text"]
        assert (word.start, word.end) == pytest.approx(chunk["timestamp"], abs=1e-6)


def test_most_of_the_heads_found_are_those_that_openai_lists(trained):
    model, tokenizer, features = trained
    text = " And so my fellow Americans ask not what your country can do for you"
    text += " ask what you can do for your country."
    start, no_times = model.generation_config.decoder_start_token_id, 50362
    tokens = [start, no_times, *tokenizer.encode(text, add_special_tokens=False)]
    with torch.no_grad():
        out = model(
            features.input_features,
            decoder_input_ids=torch.tensor([tokens]),
            output_attentions=True,
        )
    patterns = torch.cat(out.cross_attentions)[:, :, 1:, :550]
    listed = {tuple(head) for head in listed_heads(model)}
    found = [(head.layer, head.head) for head in find_alignment_heads(patterns)]
    assert len(listed & set(found[: len(listed)])) >= 6
