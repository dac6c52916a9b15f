"""The encoder lens: against the reference decoded from its own hidden states, layer by layer."""

import json
from dataclasses import replace as replace_field

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_qwen2
import torch
from tiny import END, N_VOCAB, NO_TIMESTAMPS
from transformers.modeling_outputs import BaseModelOutput

from hooked_asr import HookedWhisper
from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.errors import HookedASRError
from hooked_asr.interventions import replace
from hooked_asr.lenses.encoder import encoder_lens
from hooked_asr.lenses.encoder_inputs import EncoderLensError
from hooked_asr.lenses.encoder_result import ClipLens, EncoderLens, LayerTranscript
from hooked_asr.models.whisper_prompt import PromptError
from hooked_asr.patching.loops import RepeatedText
from hooked_asr.patching.saving import ResultError

# Without time stamps, behind which a decoding of the reference would begin another window.
TIMES = list(range(NO_TIMESTAMPS + 1, N_VOCAB))
layouts = pytest.mark.parametrize("layout", ["distilled", "multilingual"])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def pair(layout):
    """The reference and ours."""
    hf = tiny.hf_whisper(layout)
    rules = hf.generation_config
    rules.suppress_tokens = [*rules.suppress_tokens, *TIMES]
    return hf, HookedWhisper.from_hf(hf)


def encoder_outputs(hf, mel):
    """The reference's encoder stopped behind each layer; its last hidden state is normed."""
    *streams, last = hf.model.encoder(mel, output_hidden_states=True).hidden_states
    return [*map(hf.model.encoder.layer_norm, streams), last]


def said_by(hf, output, language=None):
    """What the reference says to an encoder's output."""
    asked = {"language": language, "task": "transcribe"} if language else {}
    out = hf.generate(
        encoder_outputs=BaseModelOutput(output),
        return_segments=True,
        return_timestamps=False,
        **asked,
    )
    tokens = [token for segment in out["segments"][0] for token in segment["tokens"].tolist()]
    return tokens[:-1] if tokens[-1:] == [END] else tokens


def language_by(hf, output):
    """The language that the reference tells from an encoder's output."""
    (token,) = hf.detect_language(encoder_outputs=BaseModelOutput(output)).tolist()
    names = {i: name for name, i in hf.generation_config.lang_to_id.items()}
    return names[token].strip("<|>")


def tokens_of(clip):
    return [one.tokens for one in clip.layers]


# --- Whisper --------------------------------------------------------------------------------------


@layouts
def test_each_layer_is_the_reference_decoded_from_its_hidden_state(layout):
    hf, model = pair(layout)
    mel, _ = tiny.inputs(model, batch=3)
    lens = encoder_lens(model, mel)
    assert len(lens.clips) == 3
    for clip, own in zip(lens.clips, mel.split(1), strict=True):
        outputs = encoder_outputs(hf, own)
        language = language_by(hf, outputs[-1]) if layout == "multilingual" else None
        assert [one.layer for one in clip.layers] == ["embed", *map(str, range(len(outputs) - 1))]
        assert tokens_of(clip) == [said_by(hf, output, language) for output in outputs]
        assert {one.language for one in clip.layers} == {language or "en"}
    every = [tuple(tokens) for clip in lens.clips for tokens in tokens_of(clip)]
    assert len(set(every)) > 4


def test_each_layer_in_the_language_that_it_tells():
    hf, model = pair("multilingual")
    mel, _ = tiny.inputs(model, batch=4)
    lens = encoder_lens(model, mel, language="each")
    for clip, own in zip(lens.clips, mel.split(1), strict=True):
        outputs = encoder_outputs(hf, own)
        told = [language_by(hf, output) for output in outputs]
        assert [one.told for one in clip.layers] == told
        assert [one.language for one in clip.layers] == told
        assert tokens_of(clip) == [
            said_by(hf, output, language) for output, language in zip(outputs, told, strict=True)
        ]
    assert any(len({one.told for one in clip.layers}) > 1 for clip in lens.clips)


def test_a_language_and_a_task_that_are_given():
    _, model = pair("multilingual")
    mel, _ = tiny.inputs(model, batch=1)
    asked = {"language": "german", "task": "translate", "max_new_tokens": 5}
    (clip,) = encoder_lens(model, mel, **asked).clips
    (expected,) = model.generate(mel, **asked)
    assert clip.layers[-1].tokens == expected.tokens
    assert {one.language for one in clip.layers} == {"de"}
    assert max(map(len, tokens_of(clip))) == 5


@layouts
def test_the_last_layer_is_the_ordinary_transcript(layout):
    _, model = pair(layout)
    mel, _ = tiny.inputs(model, batch=3, seed=1)
    for clip, expected in zip(encoder_lens(model, mel).clips, model.generate(mel), strict=True):
        last = clip.layers[-1]
        assert (last.tokens, last.language) == (expected.tokens, expected.language)
        assert last.compression_ratio == expected.compression_ratio
        assert last.avg_logprob == pytest.approx(expected.avg_logprob, abs=1e-5)


def test_layers_together_are_the_layers_by_themselves():
    _, model = pair("distilled")
    mel, _ = tiny.inputs(model, batch=1)
    (together,) = encoder_lens(model, mel).clips
    (in_parts,) = encoder_lens(model, mel, batch_size=2).clips
    assert tokens_of(in_parts) == tokens_of(together)
    for asked, one in zip(["embed", 0, 1, 2], together.layers[:-1], strict=True):
        (alone,) = encoder_lens(model, mel, layers=[asked], batch_size=1).clips
        assert [own.layer for own in alone.layers] == [str(asked), "3"]
        assert alone.layers[0].tokens == one.tokens
        assert alone.layers[0].avg_logprob == pytest.approx(one.avg_logprob, abs=1e-5)


def test_the_encoder_runs_once_for_each_clip():
    _, model = pair("distilled")
    mel, _ = tiny.inputs(model, batch=2)
    calls = []
    for i, block in enumerate(model.encoder):
        block.register_forward_pre_hook(lambda _, args, i=i: calls.append((i, len(args[0]))))
    encoder_lens(model, mel)
    assert calls == [(i, 1) for i in range(4)] * 2


def test_hooks_of_the_model_act_in_the_lens():
    _, model = pair("distilled")
    mel, _ = tiny.inputs(model, batch=1)
    hooks = [("encoder.1.attn.hook_z", lambda z, hook: 0 * z)]
    with model.hooks(hooks):
        (clip,) = encoder_lens(model, mel).clips
    (expected,) = model.generate(mel, fwd_hooks=hooks)
    (untouched,) = encoder_lens(model, mel).clips
    assert clip.layers[-1].tokens == expected.tokens
    assert tokens_of(clip)[:2] == tokens_of(untouched)[:2]
    assert tokens_of(clip)[2:] != tokens_of(untouched)[2:]


# --- Qwen2-Audio ----------------------------------------------------------------------------------


def qwen2_streams(hf, batch):
    """The stream that enters each layer of the reference's encoder, as a short decoding runs it."""
    streams = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
        for layer in hf.model.audio_tower.layers
    ]
    hf.generate(**tiny_qwen2.hf_inputs(batch), do_sample=False, max_new_tokens=1)
    for hook in hooks:
        hook.remove()
    return streams


def qwen2_said(hf, batch, stream=None):
    """What the reference says, its last encoder layer made to put out a stream."""

    def other(_, __, out):
        return (stream, *out[1:]) if isinstance(out, tuple) else stream

    hooks = [] if stream is None else [hf.model.audio_tower.layers[-1].register_forward_hook(other)]
    out = hf.generate(**tiny_qwen2.hf_inputs(batch), do_sample=False)[0]
    for hook in hooks:
        hook.remove()
    said = out[batch["tokens"].shape[1] :].tolist()
    return said[:-1] if said[-1] in {tiny_qwen2.END, tiny_qwen2.IM_END} else said


@pytest.mark.parametrize("frames", [[[61]], [[tiny_qwen2.N_FRAMES]]], ids=["short", "whole"])
def test_qwen2_audio_is_the_reference_with_its_last_layer_replaced(frames):
    hf, model = tiny_qwen2.hf_qwen2_audio("deep"), tiny_qwen2.hooked("deep")
    batch = tiny_qwen2.inputs(frames)
    (clip,) = encoder_lens(model, batch).clips
    streams = qwen2_streams(hf, batch)
    assert len(streams) == 3
    assert tokens_of(clip) == [qwen2_said(hf, batch, one) for one in (*streams, None)]
    assert [one.layer for one in clip.layers] == ["embed", "0", "1", "2"]
    assert len({tuple(tokens) for tokens in tokens_of(clip)}) > 1
    assert {one.told for one in clip.layers} == {one.language for one in clip.layers} == {None}


def test_qwen2_audio_is_a_loop_of_decodings_with_a_hook():
    model = tiny_qwen2.hooked("deep")
    batch = tiny_qwen2.inputs([[40]])
    names = [f"encoder.{layer}.hook_resid_post" for layer in range(3)]
    _, cache = model.run_with_cache(**batch, names_filter=names)
    (clip,) = encoder_lens(model, batch, layers=[0, 1], max_new_tokens=7).clips
    for layer, one in enumerate(clip.layers):
        source = {names[-1]: cache[names[layer]]}
        (expected,) = model.generate(
            **batch, max_new_tokens=7, interventions=[replace("encoder.2.resid_post", source)]
        )
        assert one.tokens == expected.tokens


# --- What cannot be asked -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"layers": [2]}, EncoderLensError, "layers 0 to 1, and 'embed'"),
        ({"layers": ["first"]}, EncoderLensError, "'first'"),
        ({"said": ["one", "two"]}, EncoderLensError, "1 clips take as many texts; got 2"),
        ({"prompt": "What is said?"}, EncoderLensError, "language and task; got prompt"),
        ({"batch_size": 0}, EncoderLensError, "batch_size=0"),
        ({"language": "klingon"}, PromptError, "klingon"),
        ({"max_new_tokens": 99}, HookedASRError, "24 positions"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, says):
    _, model = pair("multilingual")
    mel, _ = tiny.inputs(model, batch=1)
    with pytest.raises(error, match=says):
        encoder_lens(model, mel, **options)


def test_no_clips_and_prompts_of_several_are_refused():
    _, model = pair("base")
    with pytest.raises(EncoderLensError, match="no clips"):
        encoder_lens(model, [])
    qwen2 = tiny_qwen2.hooked()
    with pytest.raises(EncoderLensError, match="one clip in it"):
        encoder_lens(qwen2, tiny_qwen2.inputs([[40, 61]]))
    with pytest.raises(EncoderLensError, match="asked by prompt; got language"):
        encoder_lens(qwen2, tiny_qwen2.inputs([[40]]), language="en")


# --- What is kept and shown -----------------------------------------------------------------------


def heard(layer, text, wer, loop=None, **fields):
    return LayerTranscript(
        **{
            "layer": layer,
            "text": text,
            "tokens": [1, 2],
            "ended": True,
            "empty": not text,
            "loop": loop,
            "language": "en",
            "told": "en",
            "avg_logprob": -0.5,
            "compression_ratio": 1.0,
            "wer": wer,
            "cer": wer if wer is None else wer / 2,
            **fields,
        }
    )


@pytest.fixture
def lens():
    stock, loop = "Thank you.", RepeatedText("no", 4)
    texts = [
        [heard("embed", "", 1.0), heard("0", "The cat.", 0.0)],
        [heard("embed", stock, 0.5), heard("0", "No no no no", float("inf"), loop)],
        [heard("embed", stock, 3.0), heard("0", "", 0.25)],
    ]
    clips = [ClipLens(f"{i}.wav", "The cat.", "said", one) for i, one in enumerate(texts)]
    return EncoderLens(clips, 3, "folder/whisper")


def test_layers_are_counted_over_clips(lens):
    expected = pd.DataFrame(
        {
            "layer": ["embed", "0"],
            "clips": [3, 3],
            "empty": [1, 1],
            "loops": [0, 1],
            "wer": [1.5, 0.125],  # of the clips for which it is finite
            "cer": [0.75, 0.0625],
            "avg_logprob": [-0.5, -0.5],
        }
    )
    pd.testing.assert_frame_equal(lens.counts(), expected)


def test_stock_phrases_are_the_most_frequent_transcripts(lens):
    rows = lens.phrases(1).to_dict("records")
    assert rows[0] == {"layer": "embed", "text": "Thank you.", "count": 2, "of": 3}
    assert [row["layer"] for row in rows] == ["embed", "0"]
    assert len(lens.phrases(9)) == 5


def test_shares_are_the_counts_with_intervals(lens):
    table, counts = lens.rates(), lens.counts()
    for name in ("empty", "loops"):
        np.testing.assert_allclose(table[name], counts[name] / counts["clips"])
    for name in ("wer", "cer"):
        np.testing.assert_allclose(table[name], counts[name])
    about = bootstrap_means(np.array([1.0, 0.5, 3.0]), level=0.9)
    assert tuple(lens.rates(level=0.9).loc[0, ["wer_low", "wer_high"]]) == (about.low, about.high)
    assert table["mistold"].tolist() == [0, 0]
    grouped = lens.rates(["a", "b", "a"])
    assert grouped["group"].tolist() == ["a", "a", "b", "b"]
    assert grouped["clips"].tolist() == [2, 2, 1, 1]
    spoken = EncoderLens([replace_field(lens.clips[0], language="de")], 3, "whisper")
    assert spoken.rates("language")["mistold"].tolist() == [1, 1]
    assert spoken.rates("language")["language"].tolist() == ["de", "de"]


def test_speakers_are_resampled_whole(lens):
    clips = [
        replace_field(clip, group=group)
        for clip, group in zip(lens.clips, ("a", "a", "b"), strict=True)
    ]
    found = EncoderLens(clips, 3, "whisper").rates()
    about = bootstrap_means(np.array([1.0, 0.5, 3.0]), ["a", "a", "b"])
    assert tuple(found.loc[0, ["wer_low", "wer_high"]]) == (about.low, about.high)
    assert found.loc[0, "wer_low"] != lens.rates().loc[0, "wer_low"]


def test_curves_of_shares_hold_the_table(lens):
    spec = lens.plot_rates().to_dict()
    table = lens.rates()
    for panel, name in zip(spec["concat"], ("empty", "loops", "mistold", "wer"), strict=True):
        label = panel["layer"][1]["encoding"]["y"]["field"]
        points = panel.get("data", panel["layer"][1].get("data"))["values"]
        assert [one[label] for one in points] == table[name].tolist()
        assert [one["encoder stops behind layer"] for one in points] == ["embed", "0"]
    asked_in_words = [
        ClipLens(
            one.name,
            one.reference,
            one.against,
            [replace_field(own, told=None, language=None) for own in one.layers],
        )
        for one in lens.clips
    ]
    assert len(EncoderLens(asked_in_words, 3, "qwen").plot_rates().to_dict()["concat"]) == 3
    assert len(lens.plot_rates(of=("empty", "loops")).to_dict()["concat"]) == 2
    with pytest.raises(ResultError, match=r"are empty, loops, mistold, wer; got .'cer'"):
        lens.plot_rates(of=("cer",))


def test_stock_sentences_are_those_that_nobody_says():
    loop = "No, no, no, no."
    texts = [f"Thank you. The cat. Thank you. {loop}", f"The cat! {loop} thank, you!"]
    texts.append("THANK you. Bye.")
    said = ["The cat.", "A dog.", "He said: thank you, bye."]
    clips = [
        ClipLens(f"{i}.wav", true, "said", [heard("0", text, 1.0)])
        for i, (text, true) in enumerate(zip(texts, said, strict=True))
    ]
    rows = EncoderLens(clips, 3, "whisper").stock_sentences().to_dict("records")
    # "The cat" is said in the first clip, and "Bye" in the last: one clip each is left.
    assert rows == [{"layer": "0", "sentence": "Thank you.", "clips": 2, "of": 3}]
    unknown = [replace_field(clip, against="last layer") for clip in clips]
    rows = EncoderLens(unknown, 3, "whisper").stock_sentences(1).to_dict("records")
    assert rows == [{"layer": "0", "sentence": "Thank you.", "clips": 3, "of": 3}]


def test_the_curve_holds_the_counts(lens):
    spec = lens.plot().to_dict()
    points = spec["data"]["values"]
    drawn = {(one["line"], one["encoder stops behind layer"]): one["error rate"] for one in points}
    counts = lens.counts().set_index("layer")
    assert drawn == {
        (line, layer): counts.loc[layer, column]
        for line, column in (("words", "wer"), ("characters", "cer"))
        for layer in ("embed", "0")
    }
    assert spec["title"]["text"] == "whisper: 3 clips, against said"


def test_a_lens_is_saved_and_read_again(lens, tmp_path):
    for suffix in (".json", ".csv", ".html"):
        lens.save(tmp_path / f"lens{suffix}")
    read = EncoderLens.load(tmp_path / "lens.json")
    assert read.clips[0] == lens.clips[0]
    assert read.clips[1].layers[1].loop == RepeatedText("no", 4)
    assert read.clips[1].layers[1].wer is None  # JSON has no infinity
    pd.testing.assert_frame_equal(read.counts(), lens.counts())
    table = pd.read_csv(tmp_path / "lens.csv", keep_default_na=False)
    assert table["text"].tolist() == lens.to_pandas()["text"].tolist()
    assert table["count"].tolist() == [0, 0, 0, 4, 0, 0]
    (tmp_path / "other.json").write_text(json.dumps({"clips": [{"layers": 3}]}))
    with pytest.raises(ResultError, match="no saved encoder lens"):
        EncoderLens.load(tmp_path / "other.json")


def test_without_a_tokenizer_there_are_tokens_alone():
    _, model = pair("base")
    mel, _ = tiny.inputs(model, batch=1)
    lens = encoder_lens(model, mel)
    assert {(one.text, one.wer, one.empty) for one in lens.clips[0].layers} == {("", None, False)}
    assert lens.counts()["wer"].isna().all()
    with pytest.raises(ResultError, match="no error rates"):
        lens.plot()
