"""Bootstrap intervals against scipy's, binomial quantiles, and loops written out."""

import numpy as np
import pytest
from scipy import stats

from hooked_asr.bootstrap import BootstrapError, bootstrap_means

RNG = np.random.default_rng(0)
SKEWED = RNG.exponential(size=(40, 3)) ** 2
N = 999


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_are_scipys(method, level):
    ours = bootstrap_means(SKEWED, level=level, method=method, n_resamples=N, seed=3)
    for column in range(3):
        theirs = stats.bootstrap(
            (SKEWED[:, column],),
            np.mean,
            confidence_level=level,
            method=method,
            n_resamples=N,
            rng=np.random.default_rng(3),  # the same resamples
        ).confidence_interval
        found = ours.low[column], ours.high[column]
        np.testing.assert_allclose(found, (theirs.low, theirs.high), rtol=1e-9)
    np.testing.assert_allclose(ours.mean, SKEWED.mean(0))


def test_shares_of_hits_have_binomial_intervals():
    """A resample of `n` hits and misses has a binomial number of hits."""
    n, hits = 50, 15
    values = np.repeat([1.0, 0.0], [hits, n - hits])
    ours = bootstrap_means(values, level=0.98, method="percentile", n_resamples=100_000)
    exact = stats.binom.ppf([0.01, 0.99], n, hits / n) / n
    assert [ours.low.item(), ours.high.item()] == pytest.approx(exact)


def test_a_group_of_copies_is_one_sample():
    copies = np.repeat(SKEWED, 5, axis=0)
    ours = bootstrap_means(copies, [f"group {i // 5}" for i in range(200)])
    alone = bootstrap_means(SKEWED)
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(getattr(ours, name), getattr(alone, name))
    assert (ours.high - ours.low > 1.5 * (lambda m: m.high - m.low)(bootstrap_means(copies))).all()


def test_groups_of_unequal_sizes_against_a_loop():
    values = SKEWED[:9, 0]
    names = list("abbcccddd")
    groups = [values[[i for i, one in enumerate(names) if one == name]] for name in "abcd"]
    drawn = np.random.default_rng(1).integers(0, 4, (N, 4))
    means = [np.concatenate([groups[i] for i in row]).mean() for row in drawn]
    ours = bootstrap_means(values, names, method="percentile", n_resamples=N, seed=1)
    np.testing.assert_allclose(
        [ours.low.item(), ours.high.item()], np.quantile(means, [0.025, 0.975])
    )

    # BCa over groups, as the book has it: the jackknife leaves out a group.
    bias = stats.norm.ppf((np.mean(means < values.mean()) + np.mean(means <= values.mean())) / 2)
    without = [np.concatenate([g for j, g in enumerate(groups) if j != i]).mean() for i in range(4)]
    apart = np.mean(without) - without
    skew = (apart**3).sum() / (6 * (apart**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf([0.025, 0.975])
    ends = np.quantile(means, stats.norm.cdf(bias + shifted / (1 - skew * shifted)))
    ours = bootstrap_means(values, names, n_resamples=N, seed=1)
    np.testing.assert_allclose([ours.low.item(), ours.high.item()], ends)


def test_missing_values_are_as_if_not_there():
    values = SKEWED[:12].copy()
    values[[2, 7], 1] = np.nan
    values[:, 2] = np.nan
    ours = bootstrap_means(values)
    whole, part = bootstrap_means(values[:, 0]), bootstrap_means(np.delete(values[:, 1], [2, 7]))
    assert ours.n.tolist() == [12, 10, 0]
    for name in ("mean", "low", "high"):
        found = getattr(ours, name)
        np.testing.assert_allclose(found[:2], [getattr(whole, name), getattr(part, name)])
        assert np.isnan(found[2])


def test_what_has_no_spread_has_none_and_one_sample_says_nothing():
    same = bootstrap_means(np.full((6, 2), 0.3))
    np.testing.assert_allclose([same.low, same.high], 0.3)
    for values, groups in [(np.array([1.0]), None), (np.array([1.0, 5.0]), ["a", "a"])]:
        alone = bootstrap_means(values, groups)
        assert alone.mean == values.mean()
        assert np.isnan([alone.low, alone.high]).all()
    endless = bootstrap_means(np.array([1.0, -np.inf, 2.0]))
    assert endless.mean == -np.inf
    assert np.isnan(endless.low)


def test_blocks_change_nothing(monkeypatch):
    values = RNG.normal(size=(30, 4, 5))
    whole = bootstrap_means(values, n_resamples=N)
    monkeypatch.setattr("hooked_asr.bootstrap._BLOCK", 7 * N)
    parts = bootstrap_means(values, n_resamples=N)
    assert parts.low.shape == (4, 5)
    np.testing.assert_allclose(parts.low, whole.low, rtol=1e-12)
    np.testing.assert_allclose(parts.high, whole.high, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": ["a"]}, "3 samples have as many groups; got 1"),
        ({"level": 95.0}, "between 0 and 1"),
        ({"method": "basic"}, "'bca' and 'percentile'; got 'basic'"),
        ({"n_resamples": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(BootstrapError, match=said):
        bootstrap_means(np.ones(3), **options)
