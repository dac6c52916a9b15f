"""The cross-attention lens on trained checkpoints: where words truly are, and listed heads."""

from statistics import median

import pytest
import soundfile
import torch
from scipy.stats import spearmanr

from hooked_asr import HookedWhisper
from hooked_asr.lenses import cross_attention_lens
from hooked_asr.nano import bundle
from hooked_asr.patching import find_alignment_heads
from hooked_asr.speech.words import word_spans

CLIPS = [bundle.clip(name) for name in ("english", "scottish", "likely")]
PATHS, TEXTS = [clip.path for clip in CLIPS], [clip.text for clip in CLIPS]
MARGIN = 0.1  # seconds


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def lens(model):
    """Of three clips in one batch, each cut to its frames."""
    run = model.to_inputs(PATHS, TEXTS, language="en")
    frames = torch.tensor([soundfile.info(path).frames // 160 for path in PATHS])
    mask = (torch.arange(model.config.n_frames) < frames[:, None]).long()
    return cross_attention_lens(model, run | {"mel_mask": mask}, progress=False)


def looks(model, lens):
    """For each word that is truly said: the positions that predict its tokens, and when it is."""
    for i, clip in enumerate(CLIPS):
        said = lens.tokens[i][lens.text[i]].tolist()
        first = int(lens.text[i].int().argmax()) - 1
        spans = word_spans(model.tokenizer, said, "en")
        for (_, start, stop), word in zip(spans, clip.words, strict=True):
            yield i, slice(first + start, first + stop), word


def test_the_best_heads_look_where_the_words_are(model, lens):
    layer, head = lens.alignment_heads(1)[0]
    peaks, errors = [], []
    for clip, places, word in looks(model, lens):
        moments = lens.peak[layer, head, clip, places]
        peaks += ((moments > word.start - MARGIN) & (moments < word.end + MARGIN)).tolist()
        middle = lens.centre[layer, head, clip, places].mean().item()
        errors.append(abs(middle - (word.start + word.end) / 2))
    assert len(errors) == 25
    assert sum(peaks) / len(peaks) > 0.9
    assert median(errors) < 0.06  # 0.04 s measured


def test_heads_rank_as_they_find_the_words(model, lens):
    found = []
    for clip, places, word in looks(model, lens):
        peaks = lens.peak[:, :, clip, places]
        inside = (peaks > word.start - MARGIN) & (peaks < word.end + MARGIN)
        found.append(inside.float().mean(-1))
    hits = torch.stack(found).mean(0).flatten()
    assert hits.min() < 0.3
    for scores in (lens.alignment, lens.monotonicity):
        assert spearmanr(scores.mean(-1).flatten(), hits).statistic > 0.6


def test_alignment_heads_are_those_that_recordings_tell(model, lens):
    heads = lens.alignment_heads(10)
    assert heads == find_alignment_heads(model, PATHS, TEXTS, language="en")
    timed = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    timed.generation_config.alignment_heads = heads
    (heard,) = timed.generate(PATHS[0], words=True)
    errors = [abs(w.start - t.start) for w, t in zip(heard.words, CLIPS[0].words, strict=True)]
    assert median(errors) < 0.06


def test_nobody_speaks_and_a_whole_window(model, tmp_path):
    hiss = bundle.clip("hiss")
    lens = cross_attention_lens(
        model, model.to_inputs(hiss.path, language="en"), progress=False, fwd_hooks=[]
    )
    assert lens.n_audio == [300]
    assert not lens.text.any()
    assert lens.monotonicity.isnan().all()
    assert lens.centre.isfinite().all()
    for suffix in (".json", ".csv", ".png"):
        lens.save(tmp_path / f"lens{suffix}")


def test_the_heads_that_a_checkpoint_lists_are_among_the_best(refit, shared):
    model = HookedWhisper.from_pretrained(refit, dtype=torch.float32)
    path = shared / "audio" / "speech_en" / "jfk.flac"
    duration = soundfile.info(path).duration
    run = model.to_inputs(path, model.transcribe(path))
    lens = cross_attention_lens(model, run, durations=duration, progress=False)
    listed = model.generation_config.alignment_heads
    assert len(listed) == 8
    both = [head for head in lens.alignment_heads(10) if head in listed]
    assert len(both) >= 6  # of 10, where chance gives 3.3
    cells = lens.plot(*both[0]).to_dict()["data"]["values"]
    assert len({cell["seconds"] for cell in cells}) <= 300
    shown = sum(cell["attention"] for cell in cells)
    place = lens.layers.index(both[0][0]), lens.heads.index(both[0][1])
    assert shown == pytest.approx(lens.share[place].sum().item(), rel=1e-4)
