"""Sweeps over all kinds of sites, with all kinds of operations, measured on logits or on texts."""

import math

import pytest
import tiny_qwen2
import torch
from tiny import hooked, inputs
from tiny_checkpoint import tiny_tokenizer

from hooked_asr.interventions import Add, Custom, Lockstep, Mean, Site, replace, zero
from hooked_asr.patching import (
    Sites,
    SitesError,
    SweepError,
    TextMetric,
    components,
    heads,
    logit_diff,
    neurons,
    parse_sites,
    sweep,
)

METRIC = logit_diff(11, 23)


@pytest.fixture(scope="module")
def model():
    return hooked("base")


@pytest.fixture(scope="module")
def runs(model):
    return [tuple(x[:1] for x in inputs(model, seed=seed)) for seed in (0, 1)]


def values(model, clean, sites, **options):
    return sweep(model, clean=clean, sites=sites, metric=METRIC, progress=False, **options).values


@torch.no_grad()
def by_hand(model, run, name, edit):
    """The metric with one activation edited by a plain hook."""
    return float(METRIC(model.run_with_hooks(*run, fwd_hooks=[(name, lambda x, hook: edit(x))])))


def zeroed(*index):
    def edit(x):
        x[index] = 0.0

    return edit


EVERY = slice(None)


def test_neurons(model, runs):
    found = values(model, runs[0], neurons("encoder", layers=[1], neurons=[3, 40]))
    expected = [
        by_hand(model, runs[0], "encoder.1.mlp.hook_post", zeroed(EVERY, EVERY, n)) for n in (3, 40)
    ]
    assert found.tolist() == [pytest.approx(expected, abs=1e-5)]
    result = sweep(
        model, clean=runs[0], sites=neurons(positions=[2]), metric=METRIC, progress=False
    )
    assert list(result.axes) == ["layer", "neuron", "position"]
    assert result.values.shape == (2, 48, 1)
    assert result.sites[49] == "decoder.1.mlp.1@2"
    name = "decoder.1.mlp.hook_post"
    one = by_hand(model, runs[0], name, zeroed(EVERY, 2, 1))
    assert float(result.values[1, 1, 0]) == pytest.approx(one, abs=1e-5)


def test_spans_of_time(model, runs):
    result = sweep(
        model,
        clean=runs[0],
        sites=heads("encoder.attn", seconds=0.3),
        metric=METRIC,
        progress=False,
    )
    assert result.axes["seconds"] == ["0-0.3 s", "0.3-0.6 s", "0.6-0.9 s", "0.9-1 s"]
    one = by_hand(model, runs[0], "encoder.0.attn.hook_z", zeroed(EVERY, slice(45, 50), 2))
    assert float(result.values[0, 2, 3]) == pytest.approx(one, abs=1e-5)
    chosen = components("encoder", "mlp", seconds=[(0.1, 0.2), (0.5, 1)], layers=[1])
    expected = [
        by_hand(model, runs[0], "encoder.1.hook_mlp_out", zeroed(EVERY, span))
        for span in (slice(5, 10), slice(25, 50))
    ]
    found = values(model, runs[0], chosen)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_some_layers_and_heads(model, runs):
    every = values(model, runs[0], heads("decoder.attn"))
    some = values(model, runs[0], heads("decoder.attn", layers=[1], heads=[0, 3]))
    torch.testing.assert_close(some, every[1:, [0, 3]])


def test_a_list_of_sites(model, runs):
    sites = ["decoder.0.cross_attn.1", Site("encoder.1.hook_mlp_out"), "decoder.1.attn.hook_q.2"]
    result = sweep(model, clean=runs[0], sites=sites, metric=METRIC, progress=False)
    assert result.sites == result.axes["site"] == list(map(str, sites))
    expected = [
        by_hand(model, runs[0], "decoder.0.cross_attn.hook_z", zeroed(EVERY, EVERY, 1)),
        by_hand(model, runs[0], "encoder.1.hook_mlp_out", zeroed()),
        by_hand(model, runs[0], "decoder.1.attn.hook_q", zeroed(EVERY, EVERY, 2)),
    ]
    assert result.values.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert len(result.to_pandas()) == 3
    result.plot()


def halved(x, hook):
    return x / 2


def test_operations_of_ones_own(model, runs):
    direction = torch.linspace(-1, 1, 32)
    mlps = components("decoder", "mlp")
    shifted = values(model, runs[0], mlps, operation=Add(direction, 3.0))
    expected = [
        by_hand(model, runs[0], f"decoder.{i}.hook_mlp_out", lambda x: x + 3 * direction)
        for i in range(2)
    ]
    assert shifted.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    for operation in (halved, Custom(halved)):
        found = values(model, runs[0], mlps, operation=operation)
        expected = [
            by_hand(model, runs[0], f"decoder.{i}.hook_mlp_out", lambda x: x / 2) for i in range(2)
        ]
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-5)
    named = sweep(model, clean=runs[0], sites=mlps, metric=METRIC, operation=halved, progress=False)
    assert (named.operation, named.plain) == ("halved", [])
    assert values(model, runs[0], mlps, operation=Mean()).shape == (2, 1)


def test_what_cannot_be_placed_is_run_plainly_and_named(model, runs):
    sites = ["decoder.*.cross_attn.1", "decoder.0.mlp"]
    result = sweep(
        model, clean=runs[0], sites=sites, metric=METRIC, operation=halved, progress=False
    )
    assert result.plain == ["decoder.*.cross_attn.1"]
    with torch.no_grad():
        hooks = [("decoder.*.cross_attn.hook_z", _half_of_head_1)]
        expected = METRIC(model.run_with_hooks(*runs[0], fwd_hooks=hooks))
    assert float(result.values[0, 0]) == pytest.approx(float(expected), abs=1e-5)


def _half_of_head_1(x, hook):
    x[:, :, 1] /= 2


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (lambda: heads("decoder.attn", seconds=0.5), "tokens, which no clock"),
        (lambda: heads("encoder.attn", "each", seconds=0.5), "positions or which seconds"),
        (lambda: neurons("deocder"), "no stack 'deocder'"),
        (lambda: parse_sites("encoder.attn@soon"), "a time as in 0.5s; got 'soon'"),
    ],
)
def test_wishes_that_are_none(wish, message):
    with pytest.raises(SitesError, match=message):
        wish()


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (heads("decoder.attn", layers=[2]), "layers 0 to 1; asked for 2"),
        (heads("decoder.attn", heads=[4]), "heads 0 to 3; asked for 4"),
        (neurons(neurons=[48]), "neurons 0 to 47; asked for 48"),
        (heads("encoder.attn", seconds=2.0), "at most 1 s; got 2"),
        ([], "no sites"),
    ],
)
def test_sites_that_are_not_there(model, runs, sites, message):
    with pytest.raises(SitesError, match=message):
        values(model, runs[0], sites)


def test_sites_in_words():
    assert parse_sites("encoder.attn@0.5s") == heads("encoder.attn", seconds=0.5)
    assert parse_sites("decoder.neurons@each") == neurons("decoder", "each")
    assert parse_sites("encoder.mlp@2s") == components("encoder", "mlp", seconds=2.0)
    assert isinstance(parse_sites("decoder"), Sites)


# --- Measured on texts ----------------------------------------------------------------------------

# Another number for every text there is.
LENGTH = TextMetric("letters", lambda text: float(sum(map(ord, text))), {"max_new_tokens": 6})


@pytest.fixture(scope="module")
def speaker(model):
    speaker = hooked("base")
    speaker.tokenizer = tiny_tokenizer()
    return speaker


def measured(model, run, **hooks):
    heard = model.generate(run[0], **LENGTH.options, **hooks)
    return LENGTH(heard[0].text)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "sites", [heads("decoder.cross_attn"), heads("encoder.attn"), components("decoder", "mlp")]
)
def test_transcripts_under_ablation(speaker, runs, sites):
    result = sweep(speaker, clean=runs[0], sites=sites, metric=LENGTH, progress=False)
    expected = [measured(speaker, runs[0], interventions=[zero(one)]) for one in result.sites]
    assert result.values.flatten().tolist() == expected
    assert result.clean == measured(speaker, runs[0])
    assert math.isnan(result.reference)
    assert (result.metric, result.plain) == ("letters", [])


@pytest.mark.usefixtures("unchecked")
def test_transcripts_with_a_reference_beside(speaker, runs):
    result = sweep(
        speaker,
        clean=runs[0],
        reference=runs[1],
        sites=heads("decoder.cross_attn"),
        metric=LENGTH,
        progress=False,
    )
    expected = [
        measured(speaker, runs[0], interventions=[replace(one, Lockstep(runs[1][0]))])
        for one in result.sites
    ]
    assert result.values.flatten().tolist() == expected
    assert result.reference == measured(speaker, runs[1])
    assert result.plain == result.sites
    with torch.no_grad():
        _, cache = speaker.run_with_cache(*runs[1], names_filter="encoder.*.hook_mlp_out")
    heard = sweep(
        speaker,
        clean=runs[0],
        reference=runs[1],
        sites=components("encoder", "mlp"),
        metric=LENGTH,
        progress=False,
    )
    expected = [
        measured(speaker, runs[0], interventions=[replace(one, cache)]) for one in heard.sites
    ]
    assert heard.values.flatten().tolist() == expected
    assert heard.plain == []


@pytest.mark.usefixtures("unchecked")
def test_answers_of_a_qwen2_audio():
    model = tiny_qwen2.hooked("gqa")
    model.tokenizer = tiny_tokenizer()
    clean, reference = (tiny_qwen2.inputs([[61]], seed=seed) for seed in (0, 1))
    reference = clean | {"mel": reference["mel"]}
    for other in (None, reference):
        result = sweep(
            model,
            clean=clean,
            reference=other,
            sites=heads("decoder.attn"),
            metric=LENGTH,
            progress=False,
        )
        make = (lambda site: zero(site)) if other is None else _replaced_by(reference)
        expected = [
            LENGTH(model.generate(**clean, **LENGTH.options, interventions=[make(one)])[0].text)
            for one in result.sites
        ]
        assert result.values.flatten().tolist() == expected


def _replaced_by(reference):
    return lambda site: replace(site, Lockstep(reference))


def test_transcripts_are_measured_one_by_one(speaker):
    with pytest.raises(SweepError, match="clip by clip; got 2"):
        sweep(speaker, clean=inputs(speaker), sites=heads(), metric=LENGTH, progress=False)
