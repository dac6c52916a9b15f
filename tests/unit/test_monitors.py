"""Monitors, against one plain forward for each window over what was said in it."""

import numpy as np
import pytest
import soundfile
import tiny
import tiny_qwen2
import torch
from numpy.testing import assert_allclose
from tiny_checkpoint import save_checkpoint
from torch.testing import assert_close

from hooked_asr import HookedWhisper, UnknownHookError
from hooked_asr.generation import end_tokens
from hooked_asr.interventions import zero
from hooked_asr.monitors import Monitor, MonitorError, generate_monitored
from hooked_asr.probes import LinearProbe, ProbeError, ProbeOrigin
from hooked_asr.timing import encoder_length, pooled_length

LATE, EARLY = "decoder.1.hook_resid_post", "encoder.0.hook_resid_post"
FRAMES = [180, 61, 230]  # of a window of 100
WAYS = {
    "greedy": {},
    "timestamps": {"timestamps": True},
    "beams": {"num_beams": 3},
    "drawn": {"temperature": 1.0, "seed": 1},
    "fallback": {"temperature": (0.0, 0.7, 1.2), "logprob_threshold": -2.0, "seed": 0},
    "left_out": {"no_speech_threshold": 0.0, "logprob_threshold": 0.0},
    "told_before": {"condition_on_prev_tokens": True, "timestamps": True},
}


def a_probe(site, d, pool="last", classes=("no", "yes"), seed=0, origin=None):
    draw = torch.Generator().manual_seed(seed)
    n_out = 1 if classes is None or len(classes) == 2 else len(classes)
    return LinearProbe(
        torch.randn(n_out, d, generator=draw) / d**0.5,
        torch.randn(n_out, generator=draw),
        None if classes is None else list(classes),
        "loops",
        site,
        origin or ProbeOrigin(pool=pool),
    )


@pytest.fixture(scope="module")
def model():
    made = tiny.hooked("multilingual")
    # As in published checkpoints: what begins a text, and no other special token, is forbidden.
    made.generation_config.suppress_tokens = [1, 7, 9, *range(tiny.START, tiny.NO_TIMESTAMPS + 1)]
    made.generation_config.no_speech_token_id = 48
    return made


def clips():
    mel = torch.randn(3, 8, max(FRAMES), generator=torch.Generator().manual_seed(3))
    return mel, (torch.arange(max(FRAMES)) < torch.tensor(FRAMES)[:, None]).long()


def forced(model, window, mel, clip, start, row, site):
    """What one plain forward has at a site, for one window's row without its padding."""
    seek = round(100 * start)
    piece = mel[clip : clip + 1, :, seek : min(seek + 100, FRAMES[clip])]
    piece = torch.nn.functional.pad(piece, (0, 100 - piece.shape[2]))
    tokens = window.whole_tokens[row].tolist()
    starts = [i for i, token in enumerate(tokens) if token == tiny.START]
    n_prompt = starts[-1] + 3 + (tiny.NO_TIMESTAMPS in tokens)
    padding = next(i for i, token in enumerate(tokens) if token != tiny.END)
    ends = [i for i in range(n_prompt, len(tokens)) if tokens[i] == tiny.END]
    tokens, n_prompt = tokens[padding : (ends or [None])[0]], n_prompt - padding
    read = tokens if ends else tokens[:-1]  # the token behind a limit is never read in
    _, cache = model.run_with_cache(piece, torch.tensor([read]), names_filter=[site])
    return cache[site][0], tokens, n_prompt


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_each_token_and_window_is_scored_as_by_a_forward_over_it(model, way, pool, monkeypatch):
    monkeypatch.setattr("hooked_asr.monitors.watch._AT_ONCE", 3)
    mel, mask = clips()
    monitor = Monitor(a_probe(LATE, 32, pool))
    options = {"mel_mask": mask, **WAYS[way]}
    plain = model.generate(mel, **options)
    heard = monitor.generate(model, mel, **options)
    assert heard.said.said == plain.said
    assert all(window.cache is None for window in heard.said.windows)
    seen = [[] for _ in FRAMES]
    for window in heard.said.windows:
        for row, (clip, start) in enumerate(zip(window.clips, window.start, strict=True)):
            own, tokens, n_prompt = forced(model, window, mel, clip, start, row, LATE)
            logits = (own @ monitor.probe.weights[0] + monitor.probe.bias).double()
            seen[clip].append((start, logits[n_prompt - 1 :], tokens[n_prompt:]))
    n_segments = 0
    for scores, said, windows in zip(heard.scores, heard.said, seen, strict=True):
        assert [one.start for one in scores.windows] == [start for start, _, _ in windows]
        for one, (_, logits, tokens) in zip(scores.windows, windows, strict=True):
            text = [i + 1 for i, token in enumerate(tokens) if token < tiny.END]
            text = [i for i in text if i < len(logits)]
            expected = logits[[text[-1]]] if pool == "last" else logits[text].mean()
            assert one.score == pytest.approx(expected.sigmoid().item(), abs=1e-5)
            assert one.flagged == (one.score >= 0.5)
        assert scores.final == scores.windows[-1].score
        assert len(scores.tokens) == len(said.tokens)
        assert [one.start for one in scores.segments] == [one.start for one in said.segments]
        n_segments += len(said.segments)
        known = {round(x, 4) for _, logits, _ in windows for x in logits.sigmoid().tolist()}
        for score in scores.tokens:
            assert score is None or any(abs(score - one) < 2e-4 for one in known)
    assert (n_segments == 0) == (way == "left_out")


def test_tokens_and_segments_get_the_scores_of_their_own_places(model):
    mel, mask = clips()
    heard = Monitor(a_probe(LATE, 32)).generate(model, mel, mel_mask=mask, timestamps=True)
    window = heard.said.windows[0]
    monitor = Monitor(a_probe(LATE, 32))
    assert max(len(one.segments) for one in heard.said) > 1
    for row, clip in enumerate(window.clips):
        own, tokens, n_prompt = forced(model, window, mel, clip, 0.0, row, LATE)
        expected = monitor.score(monitor.probe.decision(own))[n_prompt:].tolist()
        first = 0
        for segment, one in zip(
            heard.said[clip].segments, heard.scores[clip].segments, strict=True
        ):
            if segment.tokens != tokens[n_prompt + first :][: len(segment.tokens)]:
                break  # the next window's
            places = range(first, first + len(segment.tokens))
            text = [i for i in places if tokens[n_prompt + i] < tiny.END and i < len(expected)]
            places = [i for i in places if i < len(expected)]
            got = heard.scores[clip].tokens[first : first + len(segment.tokens)]
            assert_allclose(got[: len(places)], [expected[i] for i in places], atol=1e-5)
            if text:
                assert one.score == pytest.approx(expected[text[-1]], abs=1e-5)
            else:
                assert (one.score, one.flagged) == (None, False)
            first += len(segment.tokens)
        assert first


def test_the_token_behind_a_limit_has_no_score(model):
    mel, _ = clips()
    heard = Monitor(a_probe(LATE, 32)).generate(
        model, mel[:1, :, :100], language="en", max_new_tokens=3
    )
    assert len(heard.said[0].tokens) == 3
    assert [one is None for one in heard.scores[0].tokens] == [False, False, True]
    beams = Monitor(a_probe(LATE, 32)).generate(
        model, mel[:1, :, :100], language="en", max_new_tokens=3, num_beams=2
    )
    assert [one is None for one in beams.scores[0].tokens] == [False, False, True]


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_the_encoder_is_read_over_the_real_frames_of_each_window(model, pool, num_beams):
    mel, mask = clips()
    monitor = Monitor(a_probe(EARLY, 32, pool, classes=None), threshold=-0.1)
    heard = monitor.generate(model, mel, mel_mask=mask, num_beams=num_beams)
    assert heard.said.said == model.generate(mel, mel_mask=mask, num_beams=num_beams).said
    for clip, scores in enumerate(heard.scores):
        assert len(scores.windows) == -(-FRAMES[clip] // 100) or scores.windows[-1].start > 1
        for one in scores.windows:
            seek = round(100 * one.start)
            n = min(FRAMES[clip] - seek, 100)
            piece = torch.nn.functional.pad(mel[clip : clip + 1, :, seek : seek + n], (0, 100 - n))
            _, cache = model.run_with_cache(piece, torch.tensor([[1]]), names_filter=[EARLY])
            own = cache[EARLY][0, : encoder_length(n)]
            pooled = own.mean(0) if pool == "mean" else own[-1]
            expected = monitor.probe.decision(pooled).item()
            assert one.score == pytest.approx(expected, abs=1e-5)
            assert one.flagged == (one.score >= -0.1)
        assert set(scores.tokens) == {None}
        assert {one.score for one in scores.segments} <= {one.score for one in scores.windows}


def test_files_are_measured_as_they_are_decoded(tmp_path):
    model = HookedWhisper.from_pretrained(save_checkpoint(tmp_path / "tiny"))
    draw = np.random.default_rng(0)
    paths = []
    for i, n in enumerate((7_001, 12_000, 16_000)):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], 0.1 * draw.normal(size=n), 16_000)
    monitor = Monitor(a_probe(EARLY, 32, "mean", classes=None))
    heard = monitor.generate(model, paths)
    assert heard.said.said == model.generate(paths).said
    for path, scores, n_frames in zip(paths, heard.scores, (44, 75, 100), strict=True):
        _, cache = model.run_with_cache(
            model.to_mel(path), torch.tensor([[1]]), names_filter=[EARLY]
        )
        expected = monitor.probe.decision(cache[EARLY][0, : encoder_length(n_frames)].mean(0))
        assert scores.final == pytest.approx(expected.item(), abs=1e-5)


def test_what_interventions_leave_is_what_is_read(model):
    mel, _ = clips()
    gone = zero(LATE)
    monitor = Monitor(a_probe(LATE, 32))
    for beams in (1, 2):
        heard = monitor.generate(
            model, mel[:1, :, :100], language="en", interventions=[gone], num_beams=beams
        )
        expected = monitor.score(monitor.probe.bias).item()
        assert heard.scores[0].final == pytest.approx(expected)


def test_what_others_edit_behind_it_in_place_is_not_read(model):
    mel, mask = clips()
    site = "decoder.0.hook_resid_post"  # the very tensor that the next layer's hook gets

    def spoil(x, hook):
        x.mul_(0.5)

    options = {"mel_mask": mask, "fwd_hooks": [("decoder.1.hook_resid_pre", spoil)]}
    monitor = Monitor(a_probe(site, 32))
    heard = monitor.generate(model, mel, **options)
    window = model.generate(mel, **options, names_filter=[site]).windows[0]
    steps = window.cache[site][0, -1:] @ monitor.probe.weights[0] + monitor.probe.bias
    assert heard.scores[window.clips[0]].windows[0].score == pytest.approx(
        steps.sigmoid().item(), abs=1e-5
    )


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("layout", ["mha", "gqa"])
def test_prompts_of_unequal_length_with_audio_among_them(layout, num_beams):
    model = tiny_qwen2.hooked(layout, suppress_tokens=[tiny_qwen2.AUDIO])
    inputs = tiny_qwen2.inputs([[100], [40], [61]])
    kinds = ("a", "b", "c")
    late = Monitor(a_probe(LATE, 48, classes=kinds), alarm="b")
    pooled = Monitor(a_probe("projector.hook_out", 48, "mean", classes=None))
    early = Monitor(a_probe(EARLY, 32, "mean", classes=None))
    heard = generate_monitored(model, [late, pooled, early], **inputs, num_beams=num_beams)
    plain = model.generate(**inputs, num_beams=num_beams, names_filter=[LATE])
    assert heard.said.said == plain.said
    n_prompt, ends = inputs["tokens"].shape[1], end_tokens(model.generation_config)
    for row, n in enumerate((100, 40, 61)):
        new = plain.whole_tokens[row, n_prompt:].tolist()
        n_said = next((i for i, token in enumerate(new) if token in ends), len(new))
        read = plain.cache[LATE][row, n_prompt:][:n_said]
        expected = (read @ late.probe.weights.T + late.probe.bias).softmax(-1)[:, 1].tolist()
        assert_allclose(heard.by_monitor[0][row].tokens[: len(expected)], expected, atol=1e-5)
        assert heard.by_monitor[0][row].final == pytest.approx(expected[-1], abs=1e-5)
        own = slice(row, row + 1)
        mel, mask = inputs["mel"][own], inputs["mel_mask"][own]
        for monitor, scores, length in (
            (pooled, heard.by_monitor[1], pooled_length(n)),
            (early, heard.by_monitor[2], encoder_length(n)),
        ):
            kept = {}
            site = monitor.probe.site
            with model.hooks([(site, lambda x, hook, kept=kept: kept.update(x=x.clone()))]):
                model.projector(model.encode(mel, mask))
            expected_one = monitor.probe.decision(kept["x"][0, :length].mean(0)).item()
            assert scores[row].final == pytest.approx(expected_one, abs=1e-4)


# --- What a monitor is made of --------------------------------------------------------------------


def test_alarms_and_thresholds(model):
    probe = a_probe(LATE, 32)
    logits = torch.tensor([[-1.0], [0.0], [2.0]])
    second, first = Monitor(probe), Monitor(probe, 0.9, alarm="no")
    assert_close(second.score(logits), logits[:, 0].sigmoid())
    assert_close(first.score(logits), 1 - logits[:, 0].sigmoid())
    assert [second.flags(one) for one in (0.49, 0.5, None)] == [False, True, False]
    assert [first.flags(one) for one in (0.89, 0.9)] == [False, True]
    numbers = a_probe(LATE, 32, classes=None)
    assert not Monitor(numbers).flags(1e9)
    assert Monitor(numbers, 3.0).flags(3.0)


def test_a_probe_of_another_model_is_refused_by_both_names(model, tmp_path):
    origin = ProbeOrigin.of(model, "last")
    path = tmp_path / "probe.safetensors"
    a_probe(LATE, 32, origin=origin).save(path)
    monitor = Monitor.load(path, model, threshold=0.7)
    assert (monitor.threshold, monitor.name) == (0.7, "loops")
    other = tiny.hooked("relu")
    other.name, names = "another", (model.name, "another")
    with pytest.raises(ProbeError, match="fitted to") as told:
        Monitor.load(path, other)
    assert all(name in str(told.value) for name in names)


@pytest.mark.parametrize(
    ("site", "pool", "classes", "alarm", "error", "told"),
    [
        ("", "last", ("a", "b"), None, MonitorError, "names no site"),
        (LATE, "max", ("a", "b"), None, MonitorError, "'max'"),
        (LATE, "last", ("a", "b"), "c", MonitorError, "'a', 'b'; got alarm='c'"),
        (LATE, "last", ("a", "b", "c"), None, MonitorError, "say which"),
        (LATE, "last", None, "a", MonitorError, "tells numbers"),
        ("decoder.9.hook_resid_post", "last", ("a", "b"), None, UnknownHookError, "decoder.9"),
        ("decoder.0.attn.hook_pattern", "last", ("a", "b"), None, MonitorError, "query"),
        ("decoder.0.cross_attn.hook_k", "mean", ("a", "b"), None, MonitorError, "once for each"),
    ],
)
def test_what_cannot_be_read_is_refused(model, site, pool, classes, alarm, error, told):
    with pytest.raises(error, match=told):
        Monitor(a_probe(site, 32, pool, classes), alarm=alarm).spec(model)


def test_what_a_decoding_does_not_pass_is_refused(model):
    with pytest.raises(MonitorError, match="at least one"):
        generate_monitored(model, [], clips()[0])
    with pytest.raises(ProbeError, match="16 wide"):
        Monitor(a_probe(LATE, 16)).generate(model, clips()[0])
    qwen = tiny_qwen2.hooked()
    monitor = Monitor(a_probe(EARLY, 32, "mean"))
    with pytest.raises(MonitorError, match="hold no audio"):
        monitor.generate(qwen, **tiny_qwen2.inputs([[]]))
