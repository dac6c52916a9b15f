"""Attributions against finite differences, and against AtP* done by hand."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.stats
import tiny
import tiny_qwen2
import torch

from hooked_asr.components.norm import RMSNorm
from hooked_asr.interventions import Intervention, Replace, Site, add
from hooked_asr.names import select
from hooked_asr.patching import (
    AttributionError,
    SitesError,
    SweepError,
    SweepResult,
    attribution,
    compare,
    components,
    heads,
    kl,
    logit_diff,
    sweep,
    word_error_rate,
)
from hooked_asr.patching.atp_star import fixed_estimates
from hooked_asr.patching.gradients import GradientRun, changes
from hooked_asr.patching.query_key_fix import beside
from hooked_asr.patching.result import ResultError
from hooked_asr.patching.site_sums import SiteSums

A, B = 11, 23  # two tokens


def difference(logits):
    """A user's own metric, in the logits' own precision, and not linear in them."""
    chosen = logits.log_softmax(-1)
    return chosen[:, -1, A] - 0.5 * chosen[:, 2, B]


class Case:
    """A model in double precision, and two runs of two clips."""

    def __init__(self, model, clean, reference):
        self.model = model.double()
        self.clean, self.reference = clean, reference

    def estimate(self, sites, **options):
        options = {"reference": self.reference, "metric": difference, **options}
        return attribution(self.model, clean=self.clean, sites=sites, progress=False, **options)

    def sweep(self, sites, **options):
        options = {"reference": self.reference, "metric": difference, **options}
        return sweep(self.model, clean=self.clean, sites=sites, progress=False, **options)

    @torch.no_grad()
    def patched(self, site, action):
        hooks = [Intervention(site, action)]
        return float(difference(self.model.run_with_hooks(**self.clean, fwd_hooks=hooks)).mean())

    @torch.no_grad()
    def cached(self, run, names):
        return self.model.run_with_cache(**run, names_filter=names)[1]


def whisper():
    model = tiny.hooked("unequal_heads")
    runs = [
        {"mel": mel.double(), "tokens": tokens}
        for mel, tokens in (tiny.inputs(model, n_pos=5, seed=seed) for seed in (0, 1))
    ]
    return Case(model, *runs)


def qwen2_audio():
    clean, other = (
        tiny_qwen2.inputs([[61], [40]], n_text=2, n_said=3, seed=seed) for seed in (0, 1)
    )
    clean["mel"] = clean["mel"].double()
    return Case(tiny_qwen2.hooked("gqa"), clean, clean | {"mel": other["mel"].double()})


MODELS = {"whisper": whisper, "qwen2_audio": qwen2_audio}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def whisper_case():
    return whisper()


# --- The derivative of patching, by finite differences --------------------------------------------

BOTH = [
    Site("hook_mel", neurons=3),
    Site("conv1.hook_post", positions=range(5, 9)),
    Site("hook_embed", seconds=(0.1, 0.3)),
    Site("encoder.0.ln1.hook_scale"),
    Site("encoder.0.attn.hook_q", heads=1),
    Site("encoder.1.attn.hook_k", heads=0, positions=[3, 8]),
    Site("encoder.1.attn.hook_pattern", heads=1),
    Site("encoder.0.attn.hook_z", heads=[0, 1], seconds=(0.2, 0.9)),
    Site("encoder.0.hook_mlp_out", positions=7, neurons=[1, 30]),
    Site("encoder.1.hook_resid_post"),
    Site("decoder.0.hook_resid_pre", positions=slice(2, None)),
    Site("decoder.0.attn.hook_q", heads=[0, 3], positions=[1, 2]),
    Site("decoder.1.attn.hook_v", heads=1),
    Site("decoder.1.attn.hook_attn_scores", heads=2),
    Site("decoder.1.attn.hook_z", heads=2, positions=4),
    Site("decoder.0.attn.hook_result", heads=3),
    Site("decoder.0.mlp.hook_post", neurons=[0, 7, 39]),
    Site("decoder.1.mlp.hook_pre", positions=4, neurons=range(5)),
    Site("decoder.1.ln2.hook_normalized"),
    Site("decoder.*.hook_mlp_out"),
    Site("*coder.1.hook_resid_mid", positions=4),
    Site("unembed.hook_out", neurons=A),
]
OWN = {
    "whisper": [
        Site("hook_pos_embed"),  # the same in both runs: nothing to replace
        Site("hook_encoder_out", seconds=(0.0, 0.5)),
        Site("decoder.0.cross_attn.hook_k", heads=5, seconds=(0.4, 0.6)),
        Site("decoder.1.cross_attn.hook_v"),
        Site("decoder.0.cross_attn.hook_q", heads=7, positions=[0, 4]),
        Site("decoder.1.cross_attn.hook_pattern", heads=4, positions=4),
        Site("decoder.1.hook_cross_attn_out", positions=[2, 4]),
    ],
    "qwen2_audio": [
        Site("projector.hook_out", seconds=(0.0, 0.2)),
        Site("decoder.0.attn.hook_rot_k", heads=1),
        Site("decoder.1.attn.hook_rot_q", heads=2, positions=range(10)),
        Site("decoder.1.attn.hook_k", heads=0, positions=slice(3, None)),
        Site("decoder.0.mlp.hook_pre_linear", neurons=4),
    ],
}


def every_site(case):
    return BOTH + OWN["whisper" if case.model.config.prefix is None else "qwen2_audio"]


def source_of(case, operation, names):
    """What each operation moves a site towards, in the shape of the activations."""
    clean, reference = (case.cached(run, names) for run in (case.clean, case.reference))

    def mean(x, name, axes):
        return x.mean(axes, keepdim=True).expand_as(clean[name])

    axis = {name: case.model.hook_table[name].position_axis for name in names}
    return {
        name: {
            "replace": lambda name: reference[name],
            "zero": lambda name: torch.zeros_like(clean[name]),
            "mean": lambda name: mean(reference[name], name, (0, axis[name])),
            "own mean": lambda name: mean(clean[name], name, axis[name]),
        }[operation](name)
        for name in names
    }


def exact_norm(norm, x):
    return norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()


OPERATIONS = {
    "replace": {},
    "zero": {"operation": "zero"},
    "mean": {"operation": "mean"},
    "own mean": {"operation": "mean", "reference": None},
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_change_is_the_slope_of_patching(case, operation, monkeypatch):
    # The reference's norm rounds to single precision, which is too coarse for small differences.
    monkeypatch.setattr(RMSNorm, "_fused", exact_norm)
    sites = every_site(case)
    if operation != "replace":  # no way leads from -inf, of masked scores, to a number
        sites = [site for site in sites if "scores" not in site.hook]
    names = select([site.hook for site in sites], case.model.hook_table)
    source, h = source_of(case, operation, names), 1e-5
    slopes = [
        (case.patched(site, Replace(source, h)) - case.patched(site, Replace(source, -h))) / (2 * h)
        for site in sites
    ]
    result = case.estimate(sites, **OPERATIONS[operation])
    assert result.sites == list(map(str, sites))
    assert np.count_nonzero(np.abs(slopes) > 1e-4) > len(sites) - 6
    np.testing.assert_allclose(result.change.flatten(), slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_grids_are_a_sweeps_and_share_their_passes(case, operation):
    parts = [heads("encoder.attn"), heads("decoder.attn", [0, (2, 3)]), components("encoder")]
    parts += [components("decoder", positions="each")]
    forwards = []
    with case.model.hooks([("unembed.hook_out", lambda x, hook: forwards.append(hook))]):
        results = case.estimate(parts, **OPERATIONS[operation])
    assert len(forwards) == (1 if operation == "own mean" else 2)
    for part, result in zip(parts, results, strict=True):
        exact = case.sweep(part, **OPERATIONS[operation])
        assert (result.axes, result.sites) == (exact.axes, exact.sites)
        assert result.values.shape == exact.values.shape
        assert result.clean == pytest.approx(exact.clean, abs=1e-6)
        assert result.reference == pytest.approx(exact.reference, abs=1e-6, nan_ok=True)
        assert (result.metric, result.model) == (exact.metric, exact.model)
        assert result.operation == f"attribution {exact.operation}"
        alone = case.estimate(part, **OPERATIONS[operation])
        torch.testing.assert_close(alone.values, result.values)


def test_a_share_of_the_way_makes_a_share_of_the_change(case):
    sites = components("decoder", positions="each")
    half, whole = (case.estimate(sites, alpha=alpha) for alpha in (0.5, 1.0))
    torch.testing.assert_close(half.change, 0.5 * whole.change)
    assert half.alpha == 0.5
    assert not case.estimate(sites, alpha=0.0).change.any()


def test_what_the_metric_is_linear_in_is_exact(case):
    sites = [Site("unembed.hook_out", positions=p) for p in range(3)]
    result = case.estimate(sites, metric=logit_diff(A, B, pos=1))
    clean, reference = (
        case.cached(run, "unembed.hook_out")["unembed.hook_out"]
        for run in (case.clean, case.reference)
    )
    moved = (reference - clean).mean(0)[1, A] - (reference - clean).mean(0)[1, B]
    torch.testing.assert_close(result.change[0], torch.tensor([0.0, moved, 0.0]).double())


# --- Integrated gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_integrated_gradients_are_complete(case, stack):
    """Where a site is the whole of its hook, the changes along its way add up to the exact one."""
    sites = [Site(f"{stack}.0.hook_{name}") for name in ("resid_pre", "attn_out", "mlp_out")]
    sites += [Site(f"{stack}.1.attn.hook_z"), Site(f"{stack}.1.attn.hook_q")]
    cache = case.cached(case.reference, [site.hook for site in sites])
    clean = case.patched(sites[0], Replace(cache, 0.0))
    exact = np.array([case.patched(site, Replace(cache)) - clean for site in sites])

    def error(**options):
        return np.abs(case.estimate(sites, **options).change[0].numpy() - exact).max()

    assert error() > 0.02
    coarse, fine = (error(method="integrated", steps=steps) for steps in (8, 32))
    assert fine < 5e-3
    assert fine < coarse / 8  # the midpoint rule's error falls with the square of the steps


def test_integrated_heads_add_up_to_their_hook(whisper_case):
    parts = heads("decoder.cross_attn", "each")
    each = whisper_case.estimate(parts, method="integrated", steps=3)
    whole = whisper_case.estimate(
        [Site(f"decoder.{layer}.cross_attn.hook_z") for layer in range(2)],
        method="integrated",
        steps=3,
    )
    torch.testing.assert_close(each.change.sum((1, 2)), whole.change[0])


# --- AtP* by hand ---------------------------------------------------------------------------------

QUERIES_AND_KEYS = ("hook_q", "hook_k", "hook_rot_q", "hook_rot_k")
STAR = {
    "whisper": [
        Site("encoder.0.attn.hook_q", heads=1, positions=[3, 7]),
        Site("encoder.1.attn.hook_k", heads=0),
        Site("encoder.1.attn.hook_k", positions=[3, 8]),
        Site("decoder.1.attn.hook_q", heads=2),
        Site("decoder.0.attn.hook_k", heads=[1, 6], positions=1),
        Site("decoder.0.cross_attn.hook_q", heads=[2, 3], positions=range(3)),
        Site("decoder.1.cross_attn.hook_k", heads=4, seconds=(0.1, 0.4)),
        Site("decoder.*.cross_attn.hook_k", heads=4, seconds=(0.1, 0.4)),
    ],
    "qwen2_audio": [
        Site("encoder.0.attn.hook_q", heads=1, positions=[3, 7]),
        Site("encoder.1.attn.hook_k", heads=0, positions=4),
        Site("decoder.1.attn.hook_q", heads=2),
        Site("decoder.1.attn.hook_rot_q", heads=1, positions=slice(4, None)),
        Site("decoder.0.attn.hook_k", heads=1),
        Site("decoder.0.attn.hook_k", heads=0, positions=[2, 5, 6]),
        Site("decoder.1.attn.hook_rot_k", positions=[5]),
        Site("decoder.0.attn.hook_rot_k", heads=0),
    ],
}


def in_queries_and_keys(case):
    return STAR["whisper" if case.model.config.prefix is None else "qwen2_audio"]


def pattern_of(name):
    return name.rpartition(".")[0] + ".hook_pattern"


def writes(layer):
    return [f"{layer}.hook_{part}_out" for part in ("attn", "cross_attn", "mlp")]


def gradients_by_hand(case, names, dropped=None):
    """Of a plain run, zeroed where the dropped layer writes to the stream."""
    table = case.model.hook_table
    drops = [
        (name, lambda grad, hook: torch.zeros_like(grad))
        for name in (writes(dropped) if dropped else [])
        if name in table
    ]
    return case.model.run_with_cache(
        **case.clean,
        names_filter=names,
        bwd_hooks=drops,
        incl_bwd=lambda logits: difference(logits).mean(),
    )[1]


def estimate_by_hand(case, site, gradients, reference):
    """Site by site and hook by hook, queries and keys by a run in which they are patched."""
    total = 0.0
    for name in select(site.hook, case.model.hook_table):
        watched = pattern_of(name) if name.endswith(QUERIES_AND_KEYS) else name
        own = Site(name, site.heads, site.positions, site.seconds, site.neurons)
        patch = Intervention(own, Replace(reference))
        with torch.no_grad():
            _, cache = case.model.run_with_cache(
                **case.clean, names_filter=watched, fwd_hooks=[patch]
            )
        move = cache[watched] - gradients[watched]
        total += float((move * gradients[f"{watched}_grad"]).sum())
    return total


def names_by_hand(case, sites):
    names = select([site.hook for site in sites], case.model.hook_table)
    return [pattern_of(name) if name.endswith(QUERIES_AND_KEYS) else name for name in names]


def test_queries_and_keys_go_through_the_softmax(case):
    sites = in_queries_and_keys(case)
    names = select([site.hook for site in sites], case.model.hook_table)
    cache = case.cached(case.reference, names)
    gradients = gradients_by_hand(case, names_by_hand(case, sites))
    expected = [estimate_by_hand(case, site, gradients, cache) for site in sites]
    run = GradientRun(case.model, case.clean, difference, [*names, *beside(names)])
    moves = changes(run, Replace(cache), names)
    sums = SiteSums(sites, case.model.hook_table, run.hooks)
    found = fixed_estimates(case.model, case.clean, run, moves, sums, progress=False)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    plain = case.estimate(sites).change[0]
    assert ((found - plain).abs() > 1e-4).sum() > len(sites) / 2


def test_a_layers_gradient_is_dropped_for_each_layer(case):
    sites = [
        *in_queries_and_keys(case),
        Site("hook_embed", seconds=(0.1, 0.3)),
        Site("encoder.0.attn.hook_z", heads=0),
        Site("encoder.1.mlp.hook_post", neurons=5),
        Site("decoder.0.hook_attn_out", positions=slice(1, None)),
        Site("decoder.0.hook_resid_post"),
        Site("decoder.1.attn.hook_z", heads=3, positions=slice(4, None)),
    ]
    in_stream = [False] * len(in_queries_and_keys(case)) + [True, False, False, False, True, False]
    layers = [f"{stack}.{i}" for stack, i in product(("encoder", "decoder"), range(2))]
    cache = case.cached(case.reference, [site.hook for site in sites])
    expected = []
    names = names_by_hand(case, sites)
    by_layer = [gradients_by_hand(case, names, dropped) for dropped in (None, *layers)]
    for site, beside_layers in zip(sites, in_stream, strict=True):
        first, *each = (estimate_by_hand(case, site, one, cache) for one in by_layer)
        within_one = not beside_layers and "*" not in site.hook
        if within_one:
            assert each[layers.index(site.hook[:9])] == 0
        size = sum(map(abs, each)) / (len(layers) - within_one)
        expected.append(math.copysign(size, first))
    result = case.estimate(sites, method="atp*")
    np.testing.assert_allclose(result.change[0], expected, rtol=1e-8, atol=1e-12)
    assert result.operation == "AtP* replace"
    # Layers before all of the sites are as good as dropped: they are not differentiated.
    behind = case.estimate(sites[-2:], method="atp*")
    np.testing.assert_allclose(behind.change[0], expected[-2:], rtol=1e-8, atol=1e-12)


def test_one_query_at_a_time_adds_up_and_keys_do_not(whisper_case):
    def changes_of(side, positions):
        name = f"decoder.1.attn.hook_{side}"
        sites = [Site(name, 2, position) for position in positions]
        names = [name]
        cache = whisper_case.cached(whisper_case.reference, names)
        run = GradientRun(
            whisper_case.model, whisper_case.clean, difference, [*names, *beside(names)]
        )
        sums = SiteSums(sites, whisper_case.model.hook_table, run.hooks)
        moves = changes(run, Replace(cache), names)
        return fixed_estimates(
            whisper_case.model, whisper_case.clean, run, moves, sums, progress=False
        )[0].sum()

    each, together = range(5), [range(5)]
    torch.testing.assert_close(changes_of("q", each), changes_of("q", together))
    assert abs(changes_of("k", each) - changes_of("k", together)) > 1e-4


# --- What is left behind, and what cannot be done -------------------------------------------------


@pytest.mark.parametrize("method", ["plain", "integrated", "atp*"])
def test_nothing_is_left_behind(whisper_case, method):
    model = whisper_case.model
    learning = [weight.requires_grad for weight in model.parameters()]
    with torch.no_grad():
        inside = whisper_case.estimate(heads(), method=method, steps=2)
        assert not torch.is_grad_enabled()
    outside = whisper_case.estimate(heads(), method=method, steps=2)
    assert torch.equal(inside.values, outside.values)
    assert [weight.requires_grad for weight in model.parameters()] == learning
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.has_hooks


def test_the_users_own_hooks_stay(whisper_case):
    steer = add("decoder.0.resid_post", torch.linspace(-1, 1, 32).double())
    before = whisper_case.estimate(heads())
    with whisper_case.model.hooks([steer]):
        steered = whisper_case.estimate(heads())
    assert steered.clean != pytest.approx(before.clean, abs=1e-3)
    assert (steered.change - before.change).abs().max() > 1e-3


@pytest.mark.parametrize(
    "metric",
    [
        lambda logits: logits[0, -1, A].item(),
        lambda logits: logits[:, -1].argmax(-1) == A,
        lambda logits: torch.ones(2),
    ],
)
def test_a_metric_without_a_gradient(whisper_case, metric):
    with pytest.raises(AttributionError, match="the metric cannot be differentiated"):
        whisper_case.estimate(heads(), metric=metric)


def test_kl_from_the_clean_run_has_no_slope(whisper_case):
    with torch.no_grad():
        clean = whisper_case.model(**whisper_case.clean)
    assert whisper_case.estimate(heads(), metric=kl(clean)).change.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "exact"}, r"methods are 'plain', 'integrated', 'atp\*'; got 'exact'"),
        ({"method": "integrated", "steps": 0}, "one step or more; got steps=0"),
        ({"operation": "ablate"}, "operations are 'replace', 'zero' and 'mean'.*'ablate'"),
        ({"operation": "zero", "alpha": 0.5}, "alpha is for 'replace' alone"),
        ({"operation": "replace", "reference": None}, "needs a reference"),
        ({"reference": "longer"}, "clean has 5 tokens and reference 7"),
        ({"sites": []}, "there are no sites"),
        ({"metric": word_error_rate("no")}, "a transcript has no gradient"),
        ({"sites": [heads(), Site("decoder.0.attn.hook_z")]}, "got a mixture"),
    ],
)
def test_what_cannot_be_estimated(whisper_case, options, says):
    if options.get("reference") == "longer":
        options = options | {"reference": tiny.inputs(whisper_case.model, n_pos=7)}
    with pytest.raises((SweepError, SitesError), match=says):
        whisper_case.estimate(**{"sites": heads(), **options})


def test_results_are_shown_and_kept_as_a_sweeps(whisper_case, tmp_path):
    grid = whisper_case.estimate(heads())
    single = whisper_case.estimate([Site("decoder.0.mlp.hook_post", neurons=n) for n in range(3)])
    for result in (grid, single):
        result.plot().to_dict()
        assert len(result.top(2)) == 2
        result.save(tmp_path / "result.json")
        again = SweepResult.load(tmp_path / "result.json")
        torch.testing.assert_close(again.values, result.values.float())
        assert result.normalized.isfinite().all()


# --- Agreement with a sweep -----------------------------------------------------------------------


def test_agreement_is_scipys(whisper_case, tmp_path):
    parts = [heads("encoder.attn", "each"), heads("decoder.attn")]
    exact = [whisper_case.sweep(part) for part in parts]
    estimate = whisper_case.estimate(parts)
    one = compare(exact[1], estimate[1])
    pooled = compare(exact, estimate)
    for agreement, ours, theirs in (
        (one, exact[1].change, estimate[1].change),
        (pooled, *(torch.cat([r.change.flatten() for r in rs]) for rs in (exact, estimate))),
    ):
        a, b = ours.flatten().double().numpy(), theirs.flatten().double().numpy()
        assert agreement.pearson == pytest.approx(scipy.stats.pearsonr(a, b)[0])
        assert agreement.spearman == pytest.approx(scipy.stats.spearmanr(a, b)[0])
        assert list(agreement.table["exact"]) == list(a)
        assert agreement.plot().to_dict()["title"]["text"].startswith("attribution replace: diff")
    for name in ("agreement.csv", "agreement.json", "agreement.html"):
        pooled.save(tmp_path / name)
    assert set(pooled.table["run"]) == {0, 1}


def test_ranks_of_ties_and_what_never_varies(whisper_case):
    exact = whisper_case.sweep(components("encoder", "mlp", [0, 1, 2]))
    tied = whisper_case.estimate(components("encoder", "mlp", [0, 1, 2]))
    tied.values[0] = tied.values[0, 0, 0]
    agreement = compare(exact, tied)
    theirs = scipy.stats.spearmanr(exact.change.flatten(), tied.change.flatten())[0]
    assert agreement.spearman == pytest.approx(theirs)
    tied.values[:] = 1.0
    assert math.isnan(compare(exact, tied).pearson)


def test_other_sites_are_not_compared(whisper_case):
    exact, other = whisper_case.sweep(heads()), whisper_case.estimate(heads("encoder.attn"))
    with pytest.raises(ResultError, match="compare results of the same sites"):
        compare(exact, other)
    with pytest.raises(ResultError, match="got 2 and 1"):
        compare([exact, exact], other)
