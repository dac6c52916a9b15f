"""Decoding by `generate`, token for token against Hugging Face's."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import END, NO_TIMESTAMPS, START
from torch.testing import assert_close
from transformers import (
    GenerationConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.generation.logits_process import WhisperNoSpeechDetection

from hooked_asr import HookedWhisper
from hooked_asr.cache import ActivationCache
from hooked_asr.errors import HookedASRError
from hooked_asr.generation import GenerationError
from hooked_asr.interventions import zero

# `tiny`'s ids, with a token for what came before, and times of 0.00 to 1.00 s.
PREVIOUS, NO_SPEECH, FIRST_TIME, N_VOCAB = 45, 48, NO_TIMESTAMPS + 1, NO_TIMESTAMPS + 52
N_CTX, WINDOW = 40, 100  # tokens, frames
TIMES = list(range(FIRST_TIME, N_VOCAB))
SPECIAL = [START, 42, 43, 44, PREVIOUS, 46, 47, NO_SPEECH]
MIN_MARGIN = 1e-5

# Weights drawn from these make for transcripts of many lengths, with many times in them.
SEEDS = [1, 2, 4, 5]
every_seed = pytest.mark.parametrize("seed", SEEDS)
with_and_without_times = pytest.mark.parametrize("timestamps", [False, True])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# Models, sounds and the reference


def hf_whisper(
    seed: int, layout: str = "base", multilingual: bool = False
) -> WhisperForConditionalGeneration:
    """The reference, with a window of one second, and drawn so that it has much to say."""
    config = tiny.hf_whisper(layout).config
    config.update({"vocab_size": N_VOCAB, "max_target_positions": N_CTX})
    config.tie_word_embeddings = False  # an untrained model would say its last token again
    model = WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layer_norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise)
        elif "encoder.embed_positions" in name:
            parameter.add_(0.3 * noise)
        elif "embed_" in name:
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * (0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5))
    # Sure of itself, of words more than of times, and soon at an end.
    model.proj_out.weight *= 4.0
    model.proj_out.weight[FIRST_TIME:] *= 0.8
    model.proj_out.weight[END] *= 1.2
    rules: dict[str, Any] = {
        "decoder_start_token_id": START,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "max_length": N_CTX,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": PREVIOUS,
        "max_initial_timestamp_index": 10,
        "is_multilingual": multilingual,
        "alignment_heads": [[0, 1], [model.config.decoder_layers - 1, 0]],
        "suppress_tokens": [1, 7, *SPECIAL],
        "begin_suppress_tokens": [3, END],
    }
    if multilingual:
        rules["lang_to_id"] = {"<|en|>": 42, "<|de|>": 43, "<|fr|>": 44}
        rules["task_to_id"] = {"translate": 46, "transcribe": 47}
    model.generation_config = GenerationConfig(**rules)
    return model


def tokenizer() -> WhisperTokenizer:
    """Each small letter is a token, and so is each mark up to END."""
    letters = ["Ġ", *"abcdefghijklmnopqrstuvwxyz", *"0123456789.,:"]
    made = WhisperTokenizer(
        vocab={letter: i for i, letter in enumerate(letters)},
        merges=[],
        unk_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
    )
    special = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|startofprev|>"]
    special += ["<|translate|>", "<|transcribe|>", "<|nospeech|>", "<|notimestamps|>"]
    made.add_special_tokens({"additional_special_tokens": special})
    made.add_tokens([f"<|{0.02 * step:.2f}|>" for step in range(51)])
    assert made.convert_tokens_to_ids("<|startofprev|>") == PREVIOUS
    assert made.convert_tokens_to_ids("<|1.00|>") == N_VOCAB - 1
    return made


TOKENIZER = tokenizer()


def pair(
    seed: int = 4,
    layout: str = "base",
    multilingual: bool = False,
    times: bool = True,
    **rules: Any,
) -> tuple[WhisperForConditionalGeneration, HookedWhisper]:
    """The reference and ours, with the same rules; without `times` no time is ever said."""
    hf = hf_whisper(seed, layout, multilingual)
    if not times:
        hf.generation_config.suppress_tokens += TIMES
    for name, value in rules.items():
        setattr(hf.generation_config, name, value)
    extractor = WhisperFeatureExtractor(hf.config.num_mel_bins, chunk_length=1)
    parts = SimpleNamespace(feature_extractor=extractor, tokenizer=TOKENIZER)
    model = HookedWhisper.from_hf(hf, parts)
    model.generation_config = copy.deepcopy(hf.generation_config)
    return hf, model


def sounds(clips: int, frames: int = WINDOW, seed: int = 0, n_mels: int = 8) -> torch.Tensor:
    """Log-mel frames `[clip n_mels frame]`, each clip with its own loudness."""
    generator = torch.Generator().manual_seed(seed)
    loudness = torch.linspace(1.0, 3.0, clips)[:, None, None]
    return loudness * torch.randn(clips, n_mels, frames, generator=generator)


def mask_of(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def unequal(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Long clips of these lengths, and which of their frames are real."""
    mask = mask_of(lengths)
    return sounds(len(lengths), max(lengths), seed) * mask[:, None], mask


def reference(hf: Any, mel: torch.Tensor, **options: Any) -> SimpleNamespace:
    """What the reference makes of `generate`'s options.

    `rows`: the tokens of each clip; `segments`: of each clip, with the scores of each step; `tries`
    and what came of each, in order (row of those still to decode, its temperature, mean log
    probability, compression, chance of silence, and whether to try again).
    """
    if "prompt" in options:
        prompt = options.pop("prompt")
        text = isinstance(prompt, str)
        options["prompt_ids"] = torch.tensor(TOKENIZER.get_prompt_ids(prompt) if text else prompt)
    if hf.generation_config.is_multilingual:
        options.setdefault("task", "transcribe")
    options["return_timestamps"] = options.pop("timestamps", False) or mel.shape[-1] > WINDOW
    options["attention_mask"] = options.pop("mel_mask", None)
    options.setdefault("temperature", 0.0)
    options.setdefault("logprob_threshold", -1e9)  # it keeps scores for the sake of a threshold
    tries: list[SimpleNamespace] = []
    judge = type(hf)._need_fallback

    def noted(tokens, outputs, row, processors, rules, d_vocab, temperature):
        again, skip = judge(hf, tokens, outputs, row, processors, rules, d_vocab, temperature)
        silence = [p for p in processors or [] if isinstance(p, WhisperNoSpeechDetection)]
        probs = silence[0].no_speech_prob if silence else None
        one = SimpleNamespace(row=row, temperature=temperature, again=again, skip=skip)
        one.logprob = float(hf._retrieve_avg_logprobs(outputs[row]["scores"], tokens, temperature))
        one.compression = hf._retrieve_compression_ratio(tokens, d_vocab)
        one.silence = None if probs is None else float(probs[row])
        tries.append(one)
        return again, skip

    hf._need_fallback = noted
    try:
        out = hf.generate(mel, return_segments=True, **options)
    finally:
        del hf._need_fallback
    segments = out["segments"]
    rows = [[token for one in clip for token in one["tokens"].tolist()] for clip in segments]
    for row, padded in zip(rows, out["sequences"].long().tolist(), strict=True):
        assert padded == row + [END] * (len(padded) - len(row))
    return SimpleNamespace(rows=rows, segments=segments, tries=tries)


def margin(theirs: SimpleNamespace) -> float:
    """By how much the likeliest token was ahead, where it was least."""
    scores = [
        score
        for clip in theirs.segments
        for one in clip
        for score in one["result"]["scores"][: len(one["result"]["sequences"]) - one["idxs"][0]]
    ]
    # What a row says behind its end is not its own; there the scores may be anything.
    best = torch.stack(scores).topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def accepted(theirs: SimpleNamespace, clips: int) -> list[SimpleNamespace]:
    """The last try at each clip, of those that are one window long."""
    left, last, tries = list(range(clips)), {}, list(theirs.tries)
    while tries and left:
        batch, tries = tries[: len(left)], tries[len(left) :]
        last.update(zip(left, batch, strict=True))
        left = [clip for clip, one in zip(left, batch, strict=True) if one.again]
    return [last[clip] for clip in range(clips)]


def between(values: list[float], rank: int) -> float:
    """A threshold that `rank` of the values are below."""
    low, high = sorted(values)[rank - 1 : rank + 1]
    assert high - low > 1e-3
    return (low + high) / 2


def same(ours: Any, theirs: SimpleNamespace) -> None:
    """The same tokens, in the same segments, at the same times."""
    assert [one.tokens for one in ours] == theirs.rows
    for one, segments in zip(ours, theirs.segments, strict=True):
        assert [list(s.tokens) for s in one.segments] == [s["tokens"].tolist() for s in segments]
        times = [time for s in one.segments for time in (s.start, s.end)]
        expected = [float(time) for s in segments for time in (s["start"], s["end"])]
        assert times == pytest.approx(expected, abs=1e-9)
        assert one.text == spelt(one.tokens)
        assert [s.text.strip() for s in one.segments] == [spelt(s.tokens) for s in one.segments]


def spelt(tokens: Any) -> str:
    return TOKENIZER.decode([token for token in tokens if token < END]).strip()


def compare(hf: Any, model: Any, mel: torch.Tensor, **options: Any) -> SimpleNamespace:
    """Both sides with the same options, drawing from the same state; gives the reference's."""
    torch.manual_seed(0)
    theirs = reference(hf, mel, **options)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    same(model.generate(mel, **options), theirs)
    assert torch.equal(torch.get_rng_state(), state)  # not one draw more, nor less
    return theirs


# Greedy


@with_and_without_times
@every_seed
def test_greedy_transcripts_are_the_references(seed, timestamps):
    hf, model = pair(seed, times=timestamps)
    theirs = compare(hf, model, sounds(4), timestamps=timestamps)
    assert margin(theirs) > MIN_MARGIN
    assert len({tuple(row) for row in theirs.rows}) > 1
    assert max(map(len, theirs.rows)) > 8


@with_and_without_times
@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_every_layout_says_what_the_reference_says(layout, timestamps):
    hf, model = pair(2, layout, multilingual=layout == "multilingual", times=timestamps)
    mel = sounds(2, n_mels=hf.config.num_mel_bins)
    theirs = compare(hf, model, mel, timestamps=timestamps)
    assert margin(theirs) > MIN_MARGIN
    assert min(map(len, theirs.rows)) > 1


def test_a_clip_says_the_same_alone_as_among_others():
    _, model = pair(5)
    mel = sounds(4)
    together = model.generate(mel, timestamps=True)
    assert len({len(one.tokens) for one in together}) > 1
    alone = [model.generate(clip[None], timestamps=True)[0] for clip in mel]
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert [one.text for one in alone] == [one.text for one in together]


@every_seed
def test_a_window_is_heard_again_from_its_last_pair_of_times(seed):
    """Short clips too, as long as there is something left behind the pair."""
    hf, model = pair(seed)
    theirs = compare(hf, model, sounds(4), timestamps=True)
    offsets = [one["start"] for clip in theirs.segments for one in clip]
    assert len(theirs.tries) > 4 or max(map(len, theirs.segments)) == 1
    assert all(0 <= start <= 1.5 * len(theirs.tries) for start in offsets)


@pytest.mark.parametrize("seed", [1, 2])
def test_times_said_unasked_are_followed_as_well(seed):
    # Said twice, a time of 0.00 would have the reference hear the same window for ever.
    hf, model = pair(seed, suppress_tokens=[*SPECIAL, FIRST_TIME])
    theirs = compare(hf, model, sounds(3))
    assert any(token in TIMES for row in theirs.rows for token in row)


@pytest.mark.parametrize("limit", [1, 5, 12])
@with_and_without_times
def test_new_tokens_are_no_more_than_asked_for(limit, timestamps):
    hf, model = pair(4, times=timestamps)
    theirs = compare(hf, model, sounds(2), timestamps=timestamps, max_new_tokens=limit)
    assert timestamps or max(map(len, theirs.rows)) == limit


@with_and_without_times
def test_the_checkpoints_own_limit_counts_as_the_references(timestamps):
    hf, model = pair(4, times=timestamps, max_length=9)
    theirs = compare(hf, model, sounds(2), timestamps=timestamps)
    assert timestamps or max(map(len, theirs.rows)) == 9


@pytest.mark.parametrize("rule", ["suppress_tokens", "begin_suppress_tokens"])
@with_and_without_times
def test_what_is_suppressed_is_not_said(rule, timestamps):
    hf, model = pair(4, times=timestamps)
    free = reference(hf, sounds(2), timestamps=timestamps)
    banned = {row[timestamps] for row in free.rows}  # the first word
    silenced = sorted(banned | set(getattr(hf.generation_config, rule)))
    hf, model = pair(4, times=timestamps, **{rule: silenced})
    theirs = compare(hf, model, sounds(2), timestamps=timestamps)
    first = {row[timestamps] for row in theirs.rows}
    if rule == "suppress_tokens":
        assert not banned & {token for row in theirs.rows for token in row}
    else:  # which is where no word stands, but a time
        assert bool(first & banned) == timestamps


@pytest.mark.parametrize("latest", [0, 3, None])
def test_the_first_time_is_no_later_than_the_checkpoint_allows(latest):
    hf, model = pair(5, max_initial_timestamp_index=latest)
    theirs = compare(hf, model, sounds(3), timestamps=True)
    first = [row[0] - FIRST_TIME for row in theirs.rows]
    assert max(first) > 3 if latest is None else max(first) <= latest


# Languages and tasks


@pytest.mark.parametrize("language", ["en", "german", "French", ["de", "french", "en"]])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
@with_and_without_times
def test_language_and_task_steer_as_in_the_reference(language, task, timestamps):
    hf, model = pair(4, multilingual=True, times=timestamps)
    options = {"language": language, "task": task, "timestamps": timestamps}
    compare(hf, model, sounds(3), **options)
    codes = {"en": "en", "german": "de", "French": "fr", "de": "de", "french": "fr"}
    named = language if isinstance(language, list) else [language] * 3
    out = model.generate(sounds(3), **options)
    assert [one.language for one in out] == [codes[name] for name in named]


def test_languages_and_tasks_make_a_difference():
    _, model = pair(4, multilingual=True, times=False)
    said = {
        (language, task): model.generate(sounds(1), language=language, task=task)[0].text
        for language in ("en", "de", "fr")
        for task in ("transcribe", "translate")
    }
    assert len(set(said.values())) > 4


@pytest.mark.parametrize("frames", [WINDOW, 250])
def test_a_language_that_is_not_given_is_told_from_each_clip(frames):
    hf, model = pair(2, multilingual=True)
    mel = torch.cat([sounds(1, frames, seed) * (1 + seed) for seed in range(8)])
    ids = hf.detect_language(mel, num_segment_frames=WINDOW).tolist()
    assert len(set(ids)) > 1
    mask = torch.ones(8, frames, dtype=torch.long)
    options = {"mel_mask": mask} if frames > WINDOW else {"timestamps": True}
    compare(hf, model, mel, **options)
    codes = {42: "en", 43: "de", 44: "fr"}
    assert [one.language for one in model.generate(mel, **options)] == [codes[i] for i in ids]


def test_a_checkpoint_for_english_hears_english():
    _, model = pair(4, times=False)
    (plain,) = model.generate(sounds(1))
    (named,) = model.generate(sounds(1), language="English")
    assert plain.language == named.language == "en"
    assert plain.tokens == named.tokens


# What came before


@with_and_without_times
@pytest.mark.parametrize("seed", [2, 4])
def test_what_came_before_steers_as_in_the_reference(seed, timestamps):
    hf, model = pair(seed, times=timestamps)
    plain = reference(hf, sounds(3), timestamps=timestamps)
    theirs = compare(hf, model, sounds(3), timestamps=timestamps, prompt="so it was.")
    assert theirs.rows != plain.rows


def test_what_came_before_can_be_token_ids():
    _, model = pair(4, multilingual=True, times=False)
    ids = TOKENIZER.get_prompt_ids("so it was.").tolist()
    assert ids[0] == PREVIOUS
    said = [
        [one.tokens for one in model.generate(sounds(2), language="de", prompt=prompt)]
        for prompt in ("so it was.", ids)
    ]
    assert said[0] == said[1]


def test_silence_is_told_behind_what_came_before():
    hf, model = pair(4, multilingual=True, times=False)
    options = {"language": "de", "prompt": "so it was.", "no_speech_threshold": 2.0}
    theirs = reference(hf, sounds(3), **options)
    ours = model.generate(sounds(3), logprob_threshold=-1e9, **options)
    expected = [one.silence for one in theirs.tries]
    assert [one.no_speech_prob for one in ours] == pytest.approx(expected, rel=1e-4)


# Beams


@pytest.mark.parametrize("num_beams", [2, 5])
@with_and_without_times
@every_seed
def test_beams_end_where_the_references_do(seed, timestamps, num_beams):
    hf, model = pair(seed, times=timestamps)
    theirs = compare(hf, model, sounds(3), timestamps=timestamps, num_beams=num_beams)
    assert theirs.rows != reference(hf, sounds(3), timestamps=timestamps).rows


@pytest.mark.parametrize("limit", [1, 2, 7])
@with_and_without_times
def test_beams_that_reach_the_limit_are_the_references(limit, timestamps):
    hf, model = pair(5, times=timestamps)
    options = {"timestamps": timestamps, "num_beams": 3, "max_new_tokens": limit}
    compare(hf, model, sounds(3), **options)


@pytest.mark.parametrize("rule", [{"length_penalty": -2.0}, {"early_stopping": True}])
def test_beams_follow_the_checkpoints_rules(rule):
    hf, model = pair(2, times=False, **rule)
    theirs = compare(hf, model, sounds(4), num_beams=3)
    hf, _ = pair(2, times=False)
    assert theirs.rows != reference(hf, sounds(4), num_beams=3).rows


def test_beams_know_languages_and_what_came_before():
    hf, model = pair(4, multilingual=True)
    options = {"language": ["de", "en"], "task": "translate", "prompt": "so.", "num_beams": 3}
    compare(hf, model, sounds(2), timestamps=True, **options)


def test_beams_are_scored_as_the_reference_scores_them():
    hf, model = pair(1, times=False)
    theirs = reference(hf, sounds(4), num_beams=3, no_speech_threshold=2.0)
    ours = model.generate(sounds(4), num_beams=3)
    expected = [one.logprob for one in theirs.tries]
    assert [one.avg_logprob for one in ours] == pytest.approx(expected, rel=1e-4)


# Drawing


@with_and_without_times
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("seed", [2, 4])
def test_drawn_tokens_are_the_references(seed, temperature, timestamps):
    hf, model = pair(seed, times=timestamps)
    theirs = compare(hf, model, sounds(3), timestamps=timestamps, temperature=temperature)
    assert theirs.rows != reference(hf, sounds(3), timestamps=timestamps).rows


@pytest.mark.parametrize("rule", [{"top_k": 3}, {"top_p": 0.8}])
def test_tokens_are_drawn_by_the_checkpoints_rules(rule):
    hf, model = pair(4, times=False, **rule)
    theirs = compare(hf, model, sounds(3), temperature=5.0)
    hf, _ = pair(4, times=False)
    torch.manual_seed(0)
    assert theirs.rows != reference(hf, sounds(3), temperature=5.0).rows


def test_a_seed_draws_as_torchs_own_generator_does_from_it():
    _, model = pair(4, times=False)

    def said(**options):
        return [one.tokens for one in model.generate(sounds(3), temperature=1.0, **options)]

    seeded = said(seed=7)
    assert seeded == said(seed=7)
    assert seeded != said(seed=8)
    torch.manual_seed(7)
    assert seeded == said()


# Trying again


def test_only_what_compresses_too_well_is_drawn_again():
    hf, model = pair(2, times=False)
    mel = sounds(6)
    threshold = between([one.compression for one in reference(hf, mel).tries], 3)
    options = {"temperature": (0.0, 0.4, 0.8), "compression_ratio_threshold": threshold}
    theirs = compare(hf, model, mel, **options)
    last = accepted(theirs, 6)
    assert len({one.temperature for one in last}) > 1
    torch.manual_seed(0)
    ours = model.generate(mel, **options)
    assert [one.temperature for one in ours] == [one.temperature for one in last]


def test_only_what_is_too_unlikely_is_drawn_again():
    hf, model = pair(4, times=False)
    mel = sounds(6)
    threshold = between([one.logprob for one in reference(hf, mel).tries], 3)
    options = {"temperature": (0.0, 0.4, 0.8), "logprob_threshold": threshold}
    theirs = compare(hf, model, mel, **options)
    last = accepted(theirs, 6)
    assert len({one.temperature for one in last}) > 1
    torch.manual_seed(0)
    ours = model.generate(mel, **options)
    assert [one.temperature for one in ours] == [one.temperature for one in last]


@pytest.mark.parametrize("seed", [2, 4])
def test_times_are_drawn_again_window_by_window(seed):
    hf, model = pair(seed)
    mel = sounds(4)
    tries = reference(hf, mel, timestamps=True).tries
    threshold = between([one.logprob for one in tries], len(tries) // 2)
    options = {"temperature": (0.0, 0.4, 0.8), "logprob_threshold": threshold}
    theirs = compare(hf, model, mel, timestamps=True, **options)
    assert len({one.temperature for one in theirs.tries}) > 1
    assert len(theirs.tries) > len(tries)


def test_drawing_alone_can_be_tried_again():
    hf, model = pair(4, times=False)
    compare(hf, model, sounds(3), temperature=(0.5, 1.0), logprob_threshold=-0.2)


def test_beams_are_for_temperature_zero():
    hf, model = pair(4, times=False)
    mel = sounds(4)
    threshold = between([one.logprob for one in reference(hf, mel, num_beams=3).tries], 2)
    options = {"temperature": (0.0, 0.6), "logprob_threshold": threshold, "num_beams": 3}
    theirs = compare(hf, model, mel, **options)
    assert {one.temperature for one in accepted(theirs, 4)} == {0.0, 0.6}


def test_nothing_is_tried_again_without_a_threshold():
    hf, model = pair(4, times=False)
    theirs = compare(hf, model, sounds(3), temperature=(0.0, 0.5))
    assert len(theirs.tries) == 3
    assert [one.temperature for one in model.generate(sounds(3), temperature=(0.0, 0.5))] == [0] * 3


# Silence


@with_and_without_times
@pytest.mark.parametrize("multilingual", [False, True])
def test_clips_that_seem_silent_are_skipped(multilingual, timestamps):
    hf, model = pair(4, multilingual=multilingual, times=timestamps)
    mel = sounds(6)
    options = {"timestamps": timestamps, "max_new_tokens": 6}
    options |= {"language": "en"} if multilingual else {}
    first = reference(hf, mel, **options, no_speech_threshold=2.0).tries[:6]
    threshold = _apart([one.silence for one in first])
    options |= {"no_speech_threshold": threshold, "logprob_threshold": 0.0}
    theirs = compare(hf, model, mel, **options)
    assert {one.skip for one in theirs.tries[:6]} == {True, False}
    assert [] in theirs.rows
    (silent, *_) = [one for one in model.generate(mel, **options) if not one.tokens]
    assert silent.text == ""
    assert list(silent.segments) == []


def test_a_clip_that_is_likely_enough_is_not_silent():
    hf, model = pair(4, times=False)
    mel = sounds(6)
    tries = reference(hf, mel).tries
    likely = between([one.logprob for one in tries], 3)
    options = {"no_speech_threshold": 0.0, "logprob_threshold": likely}
    theirs = compare(hf, model, mel, **options)
    assert sum(row == [] for row in theirs.rows) == 3


def test_a_silent_clip_is_not_tried_again():
    hf, model = pair(4, times=False)
    options = {"no_speech_threshold": 0.0, "logprob_threshold": 0.0, "temperature": (0.0, 0.5)}
    theirs = compare(hf, model, sounds(1), **options)
    assert theirs.rows == [[]]
    options["no_speech_threshold"] = 1.0
    assert len(compare(hf, model, sounds(1), **options).tries) == 2


def _apart(values: list[float]) -> float:
    """A threshold in the widest gap (as a ratio) between values."""
    ordered = sorted(values)
    low, high = max(itertools.pairwise(ordered), key=lambda two: two[1] / two[0])
    assert high > 1.01 * low
    return (low * high) ** 0.5


# Long clips


@every_seed
def test_a_long_clip_is_decoded_as_by_the_reference(seed):
    hf, model = pair(seed)
    theirs = compare(hf, model, sounds(1, 370))
    assert margin(theirs) > MIN_MARGIN
    assert len(theirs.tries) > 3
    starts = [float(one["start"]) for one in theirs.segments[0]]
    assert starts[-1] > 2.0


def test_a_long_clip_has_times_whether_asked_for_or_not():
    _, model = pair(4)
    (plain,), (timed,) = (
        model.generate(sounds(1, 250), timestamps=timestamps) for timestamps in (False, True)
    )
    assert plain.tokens == timed.tokens
    assert set(timed.tokens) & set(TIMES)


@pytest.mark.parametrize("frames", [101, 199, 201, 250])
def test_the_last_window_is_padded_as_in_the_reference(frames):
    hf, model = pair(5)
    compare(hf, model, sounds(1, frames))


@every_seed
def test_long_clips_of_unequal_length_end_at_their_own_time(seed):
    hf, model = pair(seed)
    mel, mask = unequal([150, 370, 80, 260])
    theirs = compare(hf, model, mel, mel_mask=mask)
    assert margin(theirs) > MIN_MARGIN
    ends = [float(clip[-1]["end"]) for clip in theirs.segments]
    assert ends[2] < 1.3 < max(ends[1], ends[3])


@every_seed
@pytest.mark.parametrize("frames", [300])
def test_windows_know_what_came_before_them(seed, frames):
    hf, model = pair(seed)
    mel = sounds(1, frames)
    theirs = compare(hf, model, mel, condition_on_prev_tokens=True)
    assert margin(theirs) > MIN_MARGIN
    if seed != 1:
        assert theirs.rows != reference(hf, mel).rows


@every_seed
def test_windows_of_a_batch_know_what_came_before_them(seed):
    hf, model = pair(seed)
    mel, mask = unequal([150, 370, 80, 260])
    theirs = compare(hf, model, mel, mel_mask=mask, condition_on_prev_tokens=True)
    lengths = {one["idxs"][0] for clip in theirs.segments for one in clip}
    assert len(lengths) > 1


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("prompt", ["so it was.", "so it was, and so it is, and will be."])
def test_a_long_clip_takes_what_came_before(prompt, conditioned):
    """Before every window; only before the first where windows know each other, and no more of it
    than the context has room for.
    """
    hf, model = pair(4)
    if len(prompt) > 20 and not conditioned:
        prompt = prompt[:20]
    mel, mask = unequal([230, 150])
    options = {"prompt": prompt, "condition_on_prev_tokens": conditioned}
    theirs = compare(hf, model, mel, mel_mask=mask, **options)
    assert theirs.rows != reference(hf, mel, mel_mask=mask).rows
    compare(hf, model, mel[:1], **options)


def test_text_before_a_window_is_marked_by_the_last_but_one_suppressed_token():
    """Where a checkpoint does not name the mark."""
    hf, model = pair(4)
    for rules in (hf.generation_config, model.generation_config):
        del rules.prev_sot_token_id
        rules.suppress_tokens = [1, 7, PREVIOUS, START]
    compare(hf, model, sounds(1, 300), condition_on_prev_tokens=True)


def test_text_drawn_at_a_high_temperature_is_not_what_came_before():
    hf, model = pair(4)
    mel, mask = unequal([300, 220])
    for temperature in (0.3, 0.7):
        options = {"condition_on_prev_tokens": True, "temperature": temperature}
        theirs = compare(hf, model, mel, mel_mask=mask, **options)
        lengths = {one["idxs"][0] for clip in theirs.segments for one in clip}
        assert (max(lengths) > 10 or len(lengths) > 3) or temperature > 0.5


def test_a_long_clip_can_be_in_any_language():
    hf, model = pair(4, multilingual=True)
    mel, mask = unequal([230, 150])
    options = {"language": ["de", "french"], "task": "translate", "mel_mask": mask}
    compare(hf, model, mel, **options)
    compare(hf, model, mel, condition_on_prev_tokens=True, **options)


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_limit_of_a_window_grows_as_the_references(conditioned):
    """Its own limit counts no prompt, and takes each window's into its count."""
    hf, model = pair(4, max_length=8)
    options = {"condition_on_prev_tokens": conditioned}
    theirs = compare(hf, model, sounds(1, 370), **options)
    hf.generation_config.max_length = None
    fixed = reference(hf, sounds(1, 370), max_new_tokens=8, **options)
    assert theirs.rows != fixed.rows


@pytest.mark.parametrize("num_beams", [2, 3])
@pytest.mark.parametrize("conditioned", [False, True])
def test_long_clips_can_be_decoded_in_beams(num_beams, conditioned):
    hf, model = pair(4)
    mel, mask = unequal([230, 120])
    options = {"num_beams": num_beams, "condition_on_prev_tokens": conditioned}
    theirs = compare(hf, model, mel, mel_mask=mask, **options)
    assert theirs.rows != reference(hf, mel, mel_mask=mask).rows


def test_once_drawn_a_long_clip_has_no_more_beams():
    hf, model = pair(4)
    mel = sounds(1, 370)
    tries = reference(hf, mel, num_beams=3).tries
    options = {"temperature": (0.0, 0.6), "num_beams": 3}
    options["logprob_threshold"] = tries[0].logprob + 1e-3  # the first window fails
    theirs = compare(hf, model, mel, **options)
    assert [one.temperature for one in theirs.tries[:2]] == [0.0, 0.6]
    assert 0.0 in [one.temperature for one in theirs.tries[2:]]


@pytest.mark.parametrize("conditioned", [False, True])
def test_windows_of_a_long_clip_are_tried_again(conditioned):
    hf, model = pair(4)
    mel = sounds(1, 370)
    options = {"condition_on_prev_tokens": conditioned}
    tries = reference(hf, mel, **options).tries
    tried = []
    for k in range(1, len(tries)):
        options["logprob_threshold"] = between([one.logprob for one in tries], k)
        theirs = compare(hf, model, mel, temperature=(0.0, 0.4, 0.8), **options)
        tried.append(len({one.temperature for one in theirs.tries}))
    assert max(tried) == 3


def test_silent_windows_of_a_long_clip_are_skipped():
    hf, model = pair(4)
    mel = sounds(1, 420)
    tries = reference(hf, mel, no_speech_threshold=2.0).tries
    options = {"no_speech_threshold": _apart([one.silence for one in tries])}
    theirs = compare(hf, model, mel, logprob_threshold=0.0, **options)
    assert {one.skip for one in theirs.tries} == {True, False}


# Sound


def test_sound_of_any_length_is_the_references():
    hf, model = pair(4)
    rng = np.random.default_rng(0)
    clips = [rng.standard_normal(n).astype(np.float32) for n in (9_000, 41_000, 22_222)]
    extractor = model.feature_extractor
    short = extractor(clips[0], sampling_rate=16_000, return_tensors="pt").input_features
    same(model.generate(clips[0]), reference(hf, short))
    asked = {"sampling_rate": 16_000, "return_tensors": "pt", "return_attention_mask": True}
    for some in ([clips[1]], clips[1:]):
        long = extractor(some, truncation=False, padding="longest", **asked)
        mask = {"mel_mask": long.attention_mask} if len(some) > 1 else {}
        same(model.generate(some), reference(hf, long.input_features, **mask))


def test_a_short_recording_is_the_same_among_long_ones():
    """The reference cuts its padding off there, and hears something else than it does alone."""
    _, model = pair(4)
    rng = np.random.default_rng(0)
    short, long = (rng.standard_normal(n).astype(np.float32) for n in (9_000, 41_000))
    (alone,) = model.generate(short, timestamps=True)
    assert model.generate([long, short])[1].tokens == alone.tokens


def test_a_file_is_one_transcript(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    _, model = pair(4, times=False)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", samples, 8_000, subtype="FLOAT")
    (one,) = model.generate(tmp_path / "clip.wav")
    (other,) = model.generate(samples, sample_rate=8_000)
    both = model.generate([tmp_path / "clip.wav"] * 2)
    assert len(both) == 2
    assert {one.text, other.text, both[0].text, both[-1].text} == {one.text}


# What a transcript holds


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@with_and_without_times
def test_measures_are_those_the_reference_judges_by(timestamps, temperature):
    hf, model = pair(4, times=timestamps)
    # Cut short, so that no window is followed by another.
    mel, options = sounds(5), {"timestamps": timestamps, "temperature": temperature}
    options["max_new_tokens"] = 3 if timestamps else 20
    torch.manual_seed(0)
    theirs = reference(hf, mel, no_speech_threshold=2.0, **options).tries
    assert len(theirs) == 5
    torch.manual_seed(0)
    ours = model.generate(mel, **options)
    for name, expected in (
        ("avg_logprob", [one.logprob for one in theirs]),
        ("no_speech_prob", [one.silence for one in theirs]),
        ("compression_ratio", [one.compression for one in theirs]),
        ("temperature", [temperature] * 5),
    ):
        assert [getattr(one, name) for one in ours] == pytest.approx(expected, rel=1e-4), name


def test_without_times_there_is_one_segment():
    _, model = pair(4, times=False)
    for one in model.generate(sounds(2)):
        (segment,) = one.segments
        assert list(segment.tokens) == one.tokens
        assert (segment.start, segment.text.strip()) == (0.0, one.text)
        assert one.words is None


def test_words_make_up_the_transcript():
    _, model = pair(4, suppress_tokens=SPECIAL)
    mel, mask = unequal([230, 90])
    for mel_, options in ((mel[..., :WINDOW], {}), (mel, {"mel_mask": mask})):
        out = model.generate(mel_, timestamps=True, words=True, **options)
        for one, length in zip(out, options.get("mel_mask", torch.ones(2, WINDOW)), strict=True):
            assert "".join(word.text for word in one.words).strip() == one.text
            spoken = [token for word in one.words for token in word.tokens]
            assert spoken == [token for token in one.tokens if token < END]
            assert all(0 < word.probability <= 1 for word in one.words)
            assert all(word.start <= word.end <= length.sum() / 100 + 0.02 for word in one.words)
        plain = model.generate(mel_, timestamps=True, **options)
        assert [one.tokens for one in plain] == [one.tokens for one in out]


# Hooks


def keep(x, hook):
    return x


@with_and_without_times
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"temperature": 0.9, "seed": 0}],
    ids=["greedy", "beams", "drawn"],
)
def test_hooks_that_change_nothing_change_nothing(options, timestamps):
    _, model = pair(4, times=timestamps)
    plain = model.generate(sounds(3), timestamps=timestamps, **options)
    hooks = [("*", keep)]
    hooked = model.generate(sounds(3), timestamps=timestamps, fwd_hooks=hooks, **options)
    for one, other in zip(plain, hooked, strict=True):
        assert one.tokens == other.tokens
        assert one.avg_logprob == other.avg_logprob
        assert one.no_speech_prob == other.no_speech_prob


def test_hooks_see_each_position_once():
    _, model = pair(4, times=False)
    seen: dict[str, list[int]] = {}

    def count(x, hook):
        seen.setdefault(hook.name, []).extend(hook.positions)

    (one,) = model.generate(sounds(1), fwd_hooks=[("*coder.1.hook_resid_pre", count)])
    read = 2 + len(one.tokens)  # the prompt's two
    assert seen["encoder.1.hook_resid_pre"] == list(range(WINDOW // 2))
    assert seen["decoder.1.hook_resid_pre"] in (list(range(read)), list(range(read - 1)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timestamps": True},
        {"num_beams": 3},
        {"temperature": 0.8},
        {"frames": 230},
        {"frames": 230, "condition_on_prev_tokens": True, "num_beams": 2},
    ],
    ids=["greedy", "times", "beams", "drawn", "long", "long_beams"],
)
def test_a_part_that_is_silenced_is_silenced_throughout(options):
    hf, model = pair(4)
    mel = sounds(2, options.pop("frames", WINDOW))
    mel = mel if mel.shape[-1] == WINDOW else mel[:1]
    free = compare(hf, model, mel, **options)
    layer = hf.model.decoder.layers[1].encoder_attn
    handle = layer.register_forward_hook(lambda module, args, out: (out[0] * 0.0, *out[1:]))
    torch.manual_seed(0)
    theirs = reference(hf, mel, **options)
    handle.remove()
    assert theirs.rows != free.rows
    silent = zero("decoder.1.cross_attn")
    for given in ({"fwd_hooks": [silent]}, {"interventions": [silent]}):
        torch.manual_seed(0)
        same(model.generate(mel, **options, **given), theirs)
    assert [one.tokens for one in model.generate(mel[:1], **options, seed=0)]  # hooks are gone
    compare(hf, model, mel, **options)


def test_a_position_that_decoding_never_reaches_warns():
    _, model = pair(4, times=False)
    far = zero("decoder.0.mlp@30")
    with pytest.warns(UserWarning, match="position 30"):
        model.generate(sounds(2), max_new_tokens=5, interventions=[far])
    model.generate(sounds(2), max_new_tokens=5, interventions=[zero("decoder.0.mlp@4")])


# The cache

NAMES = [
    "hook_encoder_out",
    "encoder.1.hook_resid_pre",
    "decoder.0.hook_resid_pre",
    "decoder.1.attn.hook_k",
    "decoder.0.attn.hook_z",
    "decoder.1.cross_attn.hook_k",
    "decoder.1.hook_mlp_out",
    "decoder.1.cross_attn.hook_pattern",
    "decoder.1.attn.hook_pattern",
]


def rows_read(out: Any, prompt: int, limit: int) -> list[int]:
    """How many tokens of each row the decoder read: all but the end token, or the last one."""
    lengths = [prompt + len(one.tokens) for one in out]
    return [length - (length == limit) for length in lengths]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_is_that_of_teacher_forcing(name, batch):
    _, model = pair(1, times=False)
    mel = sounds(batch)
    out = model.generate(mel, names_filter=name)
    read = rows_read(out, 2, N_CTX)
    assert batch == 1 or len(set(read)) > 1
    assert isinstance(out.cache, ActivationCache)
    tokens = out.whole_tokens
    for row, one in zip(tokens.tolist(), out, strict=True):
        assert row[:2] == [START, NO_TIMESTAMPS]
        assert row[2:] == one.tokens + [END] * (len(row) - 2 - len(one.tokens))
    _, expected = model.run_with_cache(mel, tokens[:, : max(read)], names_filter=name)
    assert set(out.cache) == set(expected) == {name}
    assert_close(out.cache[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 6},
        {"prompt": "so."},
        {"num_beams": 3},
        {"temperature": 1.0, "seed": 0},
        {"num_beams": 2, "max_new_tokens": 6},
        {"language": ["de", "en", "fr"], "task": "translate"},
    ],
    ids=["limit", "prompt", "beams", "drawn", "beams_limit", "languages"],
)
def test_the_cache_is_of_what_was_said_in_the_end(options):
    _, model = pair(1, multilingual=True, times=False)
    mel, names = sounds(3), ["decoder.1.hook_resid_post", "decoder.0.attn.hook_v"]
    plain = model.generate(mel, **options)
    out = model.generate(mel, names_filter=names, **options)
    assert [one.tokens for one in out] == [one.tokens for one in plain]
    tokens = out.whole_tokens
    prompt = tokens[0].tolist().index(NO_TIMESTAMPS) + 1
    limit = prompt + options.get("max_new_tokens", N_CTX)
    read = rows_read(out, prompt, min(limit, N_CTX))
    for i, one in enumerate(out):
        assert tokens[i, prompt : prompt + len(one.tokens)].tolist() == one.tokens
    _, expected = model.run_with_cache(mel, tokens[:, : max(read)], names_filter=names)
    for name in names:
        # Behind its own end a row read no token of its own.
        for row, length in enumerate(read):
            ours, theirs = out.cache[name][row, :length], expected[name][row, :length]
            assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_without_names_nothing_is_kept():
    _, model = pair(4, times=False)
    with pytest.raises(GenerationError, match="no activations were kept"):
        _ = model.generate(sounds(1)).cache


# What cannot be decoded


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"language": "klingon"}, "klingon"),
        ({"language": "zh"}, "zh"),
        ({"task": "sing"}, "sing"),
        ({"language": ["de"]}, "1"),
        ({"language": ["de", "en", "fr"]}, "3"),
        ({"prompt": "so it was, and so it is, and will be for ever and ever."}, "prompt"),
        ({"max_new_tokens": N_CTX}, str(N_CTX)),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 0.5, "num_beams": 3}, "num_beams"),
        ({"temperature": (0.2, 0.5), "num_beams": 3}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": ()}, "temperature"),
    ],
    ids=str,
)
def test_what_cannot_be_decoded_is_refused(options, says):
    _, model = pair(4, multilingual=True)
    with pytest.raises(HookedASRError, match=says):
        model.generate(sounds(2), **options)


@pytest.mark.parametrize("options", [{"language": "de"}, {"task": "translate"}], ids=str)
def test_a_checkpoint_for_english_takes_nothing_else(options):
    _, model = pair(4)
    with pytest.raises(HookedASRError, match="English"):
        model.generate(sounds(1), **options)


def test_words_without_alignment_heads_say_how_to_find_some():
    _, model = pair(4)
    del model.generation_config.alignment_heads
    with pytest.raises(HookedASRError, match="find_alignment_heads"):
        model.generate(sounds(1), words=True)


def test_without_a_mask_all_frames_of_a_batch_are_real():
    _, model = pair(4)
    mel = sounds(2, 250)
    together = [one.tokens for one in model.generate(mel)]
    assert together == [model.generate(one[None])[0].tokens for one in mel]
