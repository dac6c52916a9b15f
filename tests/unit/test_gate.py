"""Gated interventions, against the same ones told beforehand in which steps to act."""

import pytest
import tiny
import tiny_qwen2
import torch

from hooked_asr.interventions import Lockstep, add, replace, zero
from hooked_asr.monitors import Monitor, MonitorError, gate
from hooked_asr.probes import LinearProbe, ProbeError, ProbeOrigin

SITE = "decoder.0.hook_resid_post"
# Behind the monitor's site, at it, and before it: there a flag counts from the next step on.
FIRST_STEP = {"decoder.1.cross_attn": 0, "decoder.1.attn.2": 0, SITE: 0, "decoder.0.mlp": 1}
N_CLIPS, LIMIT = 6, 14


@pytest.fixture(scope="module")
def model():
    made = tiny.hooked("multilingual")
    # No time stamps, which would part the recordings into windows.
    made.generation_config.suppress_tokens = [1, 7, 9, *range(tiny.START, tiny.N_VOCAB)]
    return made


@pytest.fixture(scope="module")
def mel():
    return torch.randn(N_CLIPS, 8, 100, generator=torch.Generator().manual_seed(3))


def a_probe(d=32, site=SITE, origin=None):
    weights = torch.randn(1, d, generator=torch.Generator().manual_seed(1)) / d**0.5
    origin = origin or ProbeOrigin(pool="tokens")
    return LinearProbe(weights, torch.zeros(1), ["no", "yes"], "loops", site, origin)


@pytest.fixture(scope="module")
def monitor(model, mel):
    """It fires in half of the clips."""
    scores = Monitor(a_probe()).generate(model, mel, language="en", max_new_tokens=LIMIT).scores
    highest = sorted(max(s for s in one.tokens[1:] if s is not None) for one in scores)
    return Monitor(a_probe(), highest[N_CLIPS // 2] - 1e-4)


class AtToken(Monitor):
    """Fires when one token of one row is read in, and never else."""

    def flags(self, score):
        object.__setattr__(self, "n", getattr(self, "n", -1) + 1)
        return self.n == 3


def said(heard):
    return [one.tokens for one in heard]


# --- What is switched on, and when ----------------------------------------------------------------


@pytest.mark.parametrize("site", FIRST_STEP)
def test_each_row_is_decoded_as_if_it_had_been_told_when_to_begin(model, mel, monitor, site):
    options = {"language": "en", "max_new_tokens": LIMIT}
    plain = monitor.generate(model, mel, **options)
    inner = zero(site)
    guard = gate(model, monitor, [inner])
    heard = said(model.generate(mel, interventions=guard, **options))
    n_fired = 0
    for i, (one, scores) in enumerate(zip(plain.said, plain.scores, strict=True)):
        flagged = [monitor.flags(score) for score in scores.tokens]
        expected = one.tokens
        if any(flagged):
            at = flagged.index(True)
            assert guard.fired == [[*guard.fired[0][:i], at, *guard.fired[0][i + 1 :]]]
            told = inner.at_steps(at + 1 + FIRST_STEP[site])
            (own,) = model.generate(mel[i : i + 1], interventions=[told], **options)
            expected = own.tokens
            n_fired += 1
        else:
            assert guard.fired[0][i] is None or guard.fired[0][i] >= len(one.tokens)
        assert heard[i] == expected
    assert 0 < n_fired < N_CLIPS
    assert heard != said(plain.said)


@pytest.mark.parametrize("hold", [1, 3])
@pytest.mark.parametrize("site", FIRST_STEP)
def test_what_is_held_for_some_tokens_is_let_go_again(model, mel, site, hold):
    options = {"language": "en", "max_new_tokens": LIMIT}
    inner = add(site, torch.full((8,), 3.0)) if site[-1].isdigit() else zero(site)
    guard = gate(model, AtToken(a_probe()), [inner], hold=hold)
    heard = model.generate(mel[:1], interventions=guard, **options)
    start = 4 + FIRST_STEP[site]
    told = inner.at_steps(start, start + hold)
    assert said(heard) == said(model.generate(mel[:1], interventions=[told], **options))
    assert guard.fired == [[3]]


def test_where_nothing_is_flagged_not_a_bit_is_another(model, mel):
    pattern, q = "decoder.*.cross_attn.hook_pattern", "decoder.1.attn.hook_q"
    inner = [zero(pattern), zero(q), zero("decoder.*.mlp"), (SITE, lambda x, hook: x * 0)]
    guard = gate(model, Monitor(a_probe(), 2.0), inner)
    kept = {"names_filter": ["unembed.hook_out"], "max_new_tokens": LIMIT}
    plain, gated = (model.generate(mel, interventions=one, **kept) for one in ([], guard))
    assert said(gated) == said(plain)
    for a, b in zip(plain.windows, gated.windows, strict=True):
        assert torch.equal(a.cache["unembed.hook_out"], b.cache["unembed.hook_out"])
    assert guard.fired == [[None] * N_CLIPS]


def test_rows_that_are_not_flagged_keep_every_bit(model, mel, monitor):
    options = {"language": "en", "max_new_tokens": LIMIT, "names_filter": ["unembed.hook_out"]}
    guard = gate(model, monitor, [zero("decoder.1.cross_attn"), zero("decoder.1.attn.0")])
    plain, gated = (model.generate(mel, interventions=one, **options) for one in ([], guard))
    a, b = (one.windows[0].cache["unembed.hook_out"] for one in (plain, gated))
    calm = [i for i, at in enumerate(guard.fired[0]) if at is None]
    assert calm
    n = min(a.shape[1], b.shape[1])
    assert torch.equal(a[calm, :n], b[calm, :n])
    flagged = next(i for i, at in enumerate(guard.fired[0]) if at is not None)
    assert not torch.equal(a[flagged, :n], b[flagged, :n])


def test_every_window_begins_unflagged_and_functions_and_references_are_gated_too(model, mel):
    longer = torch.cat([mel[:1], mel[1:2], mel[2:3]], dim=2)
    seen = []
    guard = gate(
        model,
        Monitor(a_probe(), 0.0),  # every token is flagged
        [
            ("decoder.1.hook_mlp_out", lambda x, hook: seen.append(hook.clock.step)),
            replace("decoder.1.cross_attn", Lockstep(mel[3:4].repeat(1, 1, 3))),
        ],
    )
    model.generate(longer, interventions=guard, language="en", max_new_tokens=3)
    assert guard.fired == [[0]] * 3
    assert seen.count(1) == 3
    assert 0 not in seen


def test_a_qwen_is_gated_alike():
    model = tiny_qwen2.hooked("gqa", suppress_tokens=[tiny_qwen2.AUDIO])
    inputs = tiny_qwen2.inputs([[100], [40]])
    probe = a_probe(48, "decoder.0.hook_resid_post")
    inner = zero("decoder.1.mlp")
    plain = Monitor(probe, 2.0).generate(model, **inputs)
    scores = [one.tokens for one in plain.scores]
    monitor = Monitor(probe, max(s for s in scores[0] if s is not None))
    heard = model.generate(**inputs, interventions=gate(model, monitor, [inner]))
    at = [monitor.flags(score) for score in scores[0]].index(True)
    told = model.generate(**inputs, interventions=[inner.at_steps(at + 1)])
    assert heard[0].tokens == told[0].tokens


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "inner", "options", "error", "message"),
    [
        (a_probe(site="encoder.0.hook_resid_post"), "decoder.0.mlp", {}, MonitorError, "before an"),
        (a_probe(), "decoder.0.cross_attn.hook_k", {}, MonitorError, "never act there"),
        (a_probe(), "decoder.0.mlp", {"hold": 0}, MonitorError, "at least 1 token"),
        (a_probe(origin=ProbeOrigin("other", "x", "last")), SITE, {}, ProbeError, "other weights"),
    ],
)
def test_what_cannot_be_gated_is_refused(model, made, inner, options, error, message):
    with pytest.raises(error, match=message):
        gate(model, Monitor(made), [zero(inner)], **options)


def test_no_intervention_and_beams_are_refused(model, mel):
    with pytest.raises(MonitorError, match="at least one"):
        gate(model, Monitor(a_probe()), [])
    guard = gate(model, Monitor(a_probe()), [zero("decoder.1.mlp")])
    with pytest.raises(MonitorError, match="without beams"):
        model.generate(mel, interventions=guard, num_beams=2, max_new_tokens=4)
