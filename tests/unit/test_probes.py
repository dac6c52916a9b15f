"""Linear probes, against scikit-learn's pipelines written out by hand, and planted directions."""

import warnings

import numpy as np
import pytest
import soundfile
import tiny
import tiny_qwen2
import torch
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.testing import assert_close

from hooked_asr.bootstrap import bootstrap_means
from hooked_asr.features import harvest
from hooked_asr.patching.saving import ResultError
from hooked_asr.probes import (
    LinearProbe,
    ProbeError,
    ProbeOrigin,
    ProbeResult,
    estimators,
    fit_probes,
    fit_stored,
    folds,
    log_mel_features,
    random_weights,
    scores,
)
from hooked_asr.probes.question import as_question
from hooked_asr.probes.shuffling import shuffled

KINDS = ["cat", "dog", "owl"]
QUICK = {"progress": False, "n_permutations": 2, "n_resamples": 50}


def rows(n=120, d=12, n_classes=2, n_groups=24, seed=0, strength=1.0):
    """Noisy features along a planted direction for each class; a group has rows of all classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    directions = np.linalg.qr(rng.normal(size=(d, n_classes)))[0].T
    features = rng.normal(size=(n, d)) + strength * directions[targets]
    groups = rng.permutation(n) % n_groups
    return features * rng.uniform(0.1, 10, d), [KINDS[one] for one in targets], groups.tolist()


def searched(estimator, grid, scoring, x, y, groups, cv):
    """The hand-written one: scaler and penalty are seen to inside every inner fold."""
    inner = list(cv.split(x, y, groups))
    pipeline = make_pipeline(StandardScaler(), estimator)
    return GridSearchCV(pipeline, grid, scoring=scoring, cv=inner).fit(x, y)


# --- Against scikit-learn -------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n_classes"), [(12, 2), (150, 2), (12, 3)])
def test_classes_are_told_as_by_a_pipeline_written_out(d, n_classes) -> None:
    x, labels, groups = rows(d=d, n_classes=n_classes, strength=1.5)
    found = fit_probes({"a": x}, labels, groups=groups, folds=4, **QUICK)
    y, groups = np.array(labels), np.array(groups)
    names = sorted(set(labels))
    told, shares = np.empty(len(y), object), np.zeros((len(y), n_classes))
    _, numbers = np.unique(groups.astype(str), return_inverse=True)
    penalties = []
    for train, test in StratifiedGroupKFold(4, shuffle=True, random_state=0).split(x, y, numbers):
        best = searched(
            LogisticRegression(max_iter=5000, tol=1e-8),
            {"logisticregression__C": estimators.CS},
            "neg_log_loss",
            *(x[train], y[train], np.unique(numbers[train], return_inverse=True)[1]),
            StratifiedGroupKFold(5, shuffle=True, random_state=0),
        )
        told[test], shares[test] = best.predict(x[test]), best.predict_proba(x[test])
        penalties.append(best.best_params_["logisticregression__C"])
    assert found.penalties["a"] == penalties
    assert found.predicted["a"] == told.tolist()
    score = {name: one.value for name, one in found.scores["a"].items()}
    assert score["accuracy"] == pytest.approx((told == y).mean())
    assert score["balanced_accuracy"] == pytest.approx(
        metrics.balanced_accuracy_score(y, told.astype(str))
    )
    average = {"average": "macro"} if n_classes > 2 else {"pos_label": names[1]}
    assert score["f1"] == pytest.approx(metrics.f1_score(y, told.astype(str), **average))
    ranked = shares if n_classes > 2 else shares[:, 1]
    auc = metrics.roc_auc_score(y, ranked, multi_class="ovr")
    assert score["auc"] == pytest.approx(auc, abs=2e-3)
    np.testing.assert_array_equal(
        found.confusion("a"), metrics.confusion_matrix(y, told.astype(str), labels=names)
    )


def test_numbers_are_told_as_by_a_pipeline_written_out() -> None:
    x, _, groups = rows(d=40)
    y = x @ np.random.default_rng(1).normal(size=40) + np.random.default_rng(2).normal(size=120)
    found = fit_probes({"a": x}, y, groups=groups, task="regression", folds=4, **QUICK)
    told = np.zeros(len(y))
    _, numbers = np.unique([str(one) for one in groups], return_inverse=True)
    for train, test in GroupKFold(4, shuffle=True, random_state=0).split(x, y, numbers):
        best = searched(
            Ridge(),
            {"ridge__alpha": estimators.ALPHAS},
            "neg_mean_squared_error",
            *(x[train], y[train], np.unique(numbers[train], return_inverse=True)[1]),
            GroupKFold(5, shuffle=True, random_state=0),
        )
        told[test] = best.predict(x[test])
    np.testing.assert_allclose(found.predicted["a"], told, rtol=1e-6, atol=1e-6)
    score = {name: one.value for name, one in found.scores["a"].items()}
    assert score["r2"] == pytest.approx(metrics.r2_score(y, told))
    assert score["mae"] == pytest.approx(metrics.mean_absolute_error(y, told))
    assert score["pearson"] == pytest.approx(np.corrcoef(y, told)[0, 1])


def test_every_resample_is_scored_as_scikit_learn_scores_weighted_rows() -> None:
    rng = np.random.default_rng(0)
    y, outputs = rng.integers(0, 3, 60), rng.normal(size=(60, 3)).round(1)
    outputs[np.arange(60), y] += 1
    counts = rng.integers(0, 4, (5, 60)).astype(float)
    found = scores._scores("classification", outputs, y, counts)
    told = outputs.argmax(1)
    shares = torch.from_numpy(outputs).softmax(-1).numpy()
    for i, weights in enumerate(counts):
        how = {"sample_weight": weights}
        assert found["accuracy"][i] == pytest.approx(metrics.accuracy_score(y, told, **how))
        balanced = metrics.balanced_accuracy_score(y, told, **how)
        assert found["balanced_accuracy"][i] == pytest.approx(balanced)
        f1 = metrics.f1_score(y, told, average="macro", **how)
        assert found["f1"][i] == pytest.approx(f1)
        areas = [metrics.roc_auc_score(y == k, shares[:, k], **how) for k in range(3)]
        assert found["auc"][i] == pytest.approx(np.mean(areas))
    numbers, guessed = rng.normal(size=60) + 1e4, rng.normal(size=(60, 1)) + 1e4
    found = scores._scores("regression", guessed, numbers, counts)
    for i, weights in enumerate(counts):
        pair = (numbers, guessed[:, 0])
        assert found["r2"][i] == pytest.approx(metrics.r2_score(*pair, sample_weight=weights))
        mae = metrics.mean_absolute_error(*pair, sample_weight=weights)
        assert found["mae"][i] == pytest.approx(mae)
        covariance = np.cov(*pair, fweights=weights.astype(int))
        pearson = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        assert found["pearson"][i] == pytest.approx(pearson)


def test_intervals_are_those_of_resampled_groups() -> None:
    x, labels, groups = rows()
    settings = {**QUICK, "n_resamples": 500}
    found = fit_probes({"a": x}, labels, groups=groups, folds=4, seed=3, **settings)
    right = np.array(
        [told == true for told, true in zip(found.predicted["a"], labels, strict=True)]
    )
    # In the order of their names, as groups are numbered.
    order = np.argsort([str(one) for one in groups], kind="stable")
    about = bootstrap_means(
        right[order].astype(float),
        np.array(groups)[order].tolist(),
        method="percentile",
        n_resamples=500,
        seed=3,
    )
    score = found.scores["a"]["accuracy"]
    assert (score.low, score.high) == pytest.approx((about.low.item(), about.high.item()))
    assert score.low < score.value < score.high


# --- Groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("n_folds", [2, 5, 24])
def test_no_group_is_on_both_sides(task, n_folds) -> None:
    _, labels, groups = rows()
    question = as_question(labels if task == "classification" else range(120), groups, task)
    parts = folds.outer_folds(question, n_folds, seed=0)
    assert sorted(row for _, test in parts for row in test) == list(range(120))
    for train, test in parts:
        assert not set(np.array(groups)[train]) & set(np.array(groups)[test])
        inside = question.of(train)
        for fitted, scored in folds.inner_folds(inside, seed=0):
            names = np.array(inside.groups)
            assert not set(names[fitted]) & set(names[scored])


def test_who_speaks_tells_nothing_of_another_speaker() -> None:
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(20), 6)
    sexes = np.where(rng.permutation(20) < 10, "F", "M")[speakers]
    alone = np.eye(20)[speakers] + 0.01 * rng.normal(size=(120, 20))
    leaky = fit_probes({"a": alone}, sexes, folds=5, **QUICK).scores["a"]["accuracy"].value
    found = fit_probes({"a": alone}, sexes, groups=speakers, folds=5, **QUICK)
    assert leaky == 1
    assert found.scores["a"]["accuracy"].value < 0.6


def test_a_split_that_leaks_is_refused() -> None:
    x, labels, groups = rows()
    groups = [f"speaker {one}" for one in groups]
    split = ["test" if one in ("speaker 3", "speaker 5") else "train" for one in groups]
    found = fit_probes({"a": x}, labels, groups=groups, split=split, **QUICK)
    assert [groups[row] for row in found.rows] == found.groups
    assert set(found.groups) == {"speaker 3", "speaker 5"}
    split[groups.index("speaker 5")] = "train"
    with pytest.raises(ProbeError, match="group 'speaker 5' is on both sides"):
        fit_probes({"a": x}, labels, groups=groups, split=split, **QUICK)


def test_a_given_split_fits_the_final_probe_to_its_training_rows() -> None:
    x, labels, _ = rows(n=80)
    split = ["train"] * 60 + ["test"] * 20
    found = fit_probes({"a": x}, labels, split=split, **QUICK)
    x[60:] = 7 * x[60:] + 3  # what is held out has no part in it
    again = fit_probes({"a": x}, labels, split=split, **QUICK)
    assert_close(found.probe("a").weights, again.probe("a").weights)
    told = found.probe("a").predict(torch.tensor(rows(n=80)[0][60:]))
    assert told.tolist() == found.predicted["a"]


def test_shuffled_labels_are_chance() -> None:
    x, labels, groups = rows(n=240, n_groups=40, strength=3.0)
    found = fit_probes({"a": x}, labels, groups=groups, folds=5, progress=False)
    assert found.scores["a"]["accuracy"].value > 0.9
    chance = found.baselines["shuffled"]["a"]["accuracy"]
    assert chance.low < 0.5 < chance.high
    assert chance.high < 0.62
    assert found.baselines["majority"]["a"]["accuracy"].value < 0.56


def test_labels_of_whole_groups_are_shuffled_as_wholes() -> None:
    groups = np.repeat(np.arange(10), 3)
    of_groups = as_question(groups < 5, groups, "classification")
    mixed = as_question(np.arange(30) % 2 == 0, groups, "classification")
    rng = np.random.default_rng(0)
    moved = shuffled(of_groups, rng).reshape(10, 3)
    assert (moved == moved[:, :1]).all()
    assert moved[:, 0].sum() == 5
    assert (moved[:, 0] != of_groups.targets.reshape(10, 3)[:, 0]).any()
    moved = shuffled(mixed, rng)
    assert moved.sum() == mixed.targets.sum()
    assert (moved != mixed.targets).any()


# --- Probes ---------------------------------------------------------------------------------------


def test_planted_directions_are_found() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(800, 10))
    planted = rng.normal(size=10)
    planted /= np.linalg.norm(planted)
    expected = torch.from_numpy(planted).float()
    told = fit_probes({"a": x}, x @ planted + 0.3 > 0, **QUICK).probe()
    assert told.classes == [False, True]
    assert torch.cosine_similarity(told.direction, expected, dim=0) > 0.98
    told = fit_probes({"a": x}, x @ planted + 5, task="regression", **QUICK).probe()
    assert_close(told.direction, expected, rtol=0, atol=1e-2)
    two = np.stack([x[:, 0], x[:, 1], -x[:, 0] - x[:, 1]], 1).argmax(1)
    told = fit_probes({"a": x}, two, **QUICK).probe()
    assert told.direction.shape == (3, 10)
    assert told.direction[0, 0] > 0.6
    assert told.direction[1, 1] > 0.6
    assert_close(told.direction.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_probe_is_one_matmul_that_tells_what_the_pipeline_tells(n_classes, tmp_path) -> None:
    x, labels, _ = rows(n_classes=n_classes)
    probe = fit_probes({"a": x}, labels, **QUICK).probe()
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=probe.penalty, tol=1e-9, max_iter=5000)
    ).fit(x, labels)
    batch = torch.from_numpy(x).reshape(3, 40, 12)
    shares = probe.predict_proba(batch).reshape(120, n_classes)
    assert_close(shares, torch.from_numpy(pipeline.predict_proba(x)), rtol=0, atol=2e-3)
    assert (probe.predict(batch).reshape(-1) == pipeline.predict(x)).mean() > 0.99
    steered = batch[0] + 100 * probe.direction.reshape(-1, 12)[-1]
    assert set(probe.predict(steered)) == {probe.classes[-1]}
    assert probe.decision(batch.bfloat16()).dtype == torch.float32


def test_saved_probes_give_identical_scores(tmp_path) -> None:
    x, labels, _ = rows(n_classes=3)
    origin = ProbeOrigin("a model", "abc", "mean")
    found = fit_probes({"site": x}, labels, origin=origin, name="animal", **QUICK)
    probe = found.probe("site")
    probe.save(tmp_path / "probe.safetensors")
    again = LinearProbe.load(tmp_path / "probe.safetensors")
    batch = torch.from_numpy(x).float()
    assert torch.equal(again.decision(batch), probe.decision(batch))
    assert {**vars(again), "weights": 0, "bias": 0} == {**vars(probe), "weights": 0, "bias": 0}
    assert (again.name, again.site, again.origin) == ("animal", "site", origin)
    assert [path.name for path in tmp_path.iterdir()] == ["probe.safetensors"]


def test_files_that_are_no_probes_are_refused(tmp_path) -> None:
    x, labels, _ = rows()
    probe = fit_probes({"a": x}, labels, **QUICK).probe()
    path = tmp_path / "probe.safetensors"
    with pytest.raises(ProbeError, match="there is no probe"):
        LinearProbe.load(path)
    with pytest.raises(ProbeError, match="safetensors"):
        probe.save(tmp_path / "probe.pt")
    probe.save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ProbeError, match="not those that were saved"):
        LinearProbe.load(path)
    path.write_bytes(content[:40])
    with pytest.raises(ProbeError, match="holds no probe"):
        LinearProbe.load(path)
    with pytest.raises(ProbeError, match=r"12 wide, of a; got \[2, 5\]"):
        probe.decision(torch.zeros(2, 5))


def test_a_probe_belongs_to_its_model() -> None:
    model = tiny.hooked("base")
    x, labels, _ = rows()
    found = fit_probes({"a": x}, labels, origin=ProbeOrigin.of(model, "mean"), **QUICK)
    found.probe().check(model)
    with pytest.raises(ProbeError, match="has other weights"):
        found.probe().check(random_weights(model))


# --- Results --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result() -> ProbeResult:
    x, labels, groups = rows(n_classes=3, strength=2.0)
    noise = np.random.default_rng(5).normal(size=x.shape)
    features = {"encoder.0.hook_resid_post": noise, "encoder.1.hook_resid_post": torch.tensor(x)}
    beside = {"log-mel": noise[:, :2], "random <weights>": dict.fromkeys(features, noise)}
    return fit_probes(
        features, labels, groups=groups, folds=4, baselines=beside, name="animal & co", **QUICK
    )


def test_a_result_is_read_back_as_it_was(result, tmp_path) -> None:
    result.save(tmp_path / "probes.json")
    again = ProbeResult.load(tmp_path / "probes.json")
    assert {**vars(again), "probes": 0} == {**vars(result), "probes": 0}
    with pytest.raises(ProbeError, match="holds no probes"):
        again.probe()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="no saved probes"):
        ProbeResult.load(tmp_path / "other.json")


def test_the_table_sets_baselines_beside_scores(result) -> None:
    table = result.to_pandas()
    assert len(table) == 2 * 4
    names = ["", "majority", "shuffled", "log-mel", "random <weights>"]
    assert [name for name in table if name.endswith("low")] == [
        f"{name}_low" if name else "low" for name in names
    ]
    row = table[(table.site == "encoder.1.hook_resid_post") & (table.score == "accuracy")].iloc[0]
    assert row.low <= row.value <= row.high
    # A baseline of the same features, in the same folds, scores the same.
    noise = table[table.site == "encoder.0.hook_resid_post"]
    np.testing.assert_array_equal(noise.value, noise["random <weights>"])
    assert result.best() == "encoder.1.hook_resid_post"
    assert result.confusion().to_numpy().sum() == len(result.labels)


def test_figures_and_the_report_show_what_was_found(result, tmp_path) -> None:
    lines = result.plot("auc").to_dict()
    assert set(lines["layer"][1]["encoding"]["color"]["scale"]["domain"]) == {
        "probe",
        "majority",
        "shuffled",
        "log-mel",
        "random <weights>",
    }
    result.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "animal &amp; co" in page
    assert "random &lt;weights&gt;" in page
    assert page.count("<svg") == 5
    assert "http://" not in page.replace("http://www.w3.org/", "")
    with pytest.raises(ProbeError, match="html"):
        result.report(tmp_path / "page.pdf")
    with pytest.raises(ProbeError, match="'r2'"):
        result.plot("r2")
    with pytest.raises(ProbeError, match="'nowhere'"):
        result.confusion("nowhere")


def test_numbers_have_a_result_too(tmp_path) -> None:
    x, _, _ = rows()
    found = fit_probes({"a": -x, "b": x[:, :1]}, x[:, 0] + x[:, 1], task="regression", **QUICK)
    assert found.best() == found.best("mae") == "a"
    assert np.isnan(found.baselines["majority"]["a"]["pearson"].value)
    found.report(tmp_path / "page.html")
    found.save(tmp_path / "found.json")
    again = ProbeResult.load(tmp_path / "found.json")
    assert again.to_pandas().equals(found.to_pandas())
    with pytest.raises(ProbeError, match="not confused"):
        found.confusion()
    with pytest.raises(ProbeError, match="no probability"):
        found.probe().predict_proba(torch.tensor(x))


# --- Stores ---------------------------------------------------------------------------------------


def test_a_store_is_probed_by_the_names_of_its_columns(tmp_path) -> None:
    model = tiny.hooked("base")
    rng = np.random.default_rng(0)
    clips = []
    for i in range(14):
        soundfile.write(tmp_path / f"{i}.wav", 0.05 * (1 + i % 2) * rng.normal(size=6400), 16_000)
        label = {} if i == 13 else {"loud": bool(i % 2)}
        group = {"group": f"g{i // 2}"} if i < 10 else {}
        clips.append({"audio": str(tmp_path / f"{i}.wav"), **label, **group})
    sites = ["encoder.0.hook_resid_post", "encoder.1.hook_resid_post"]
    store = harvest(model, clips, sites, pool="frames", out=tmp_path / "store", progress=False)
    mel = rng.normal(size=(len(store), 4))
    found = fit_stored(store, "loud", folds=3, baselines={"noise": mel}, **QUICK)
    rows = store.table()["loud"].notna().to_numpy()
    assert len(found.rows) == rows.sum() == len(store) * 13 // 14
    assert set(found.groups) == {
        *(f"group g{i}" for i in range(5)),
        *(f"clip {clips[i]['audio']}" for i in (10, 11, 12)),
    }
    again = fit_probes(
        {site: store[site][rows] for site in sites},
        store.table()["loud"][rows].tolist(),
        groups=found.groups,
        folds=3,
        baselines={"noise": mel[rows]},
        **QUICK,
    )
    assert again.to_pandas().equals(found.to_pandas())
    found.probe().check(model)
    assert (found.name, found.origin.pool) == ("loud", "frames")
    with pytest.raises(ProbeError, match="got 'sex'"):
        fit_stored(store, "sex")


# --- Controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["initial", "permuted"])
@pytest.mark.parametrize("model", [tiny.hooked("base"), tiny_qwen2.hooked("mha")])
def test_random_weights_have_the_shape_and_nothing_else(model, how) -> None:
    state = torch.get_rng_state()
    fresh, again = random_weights(model, how=how), random_weights(model, how=how)
    other = dict(random_weights(model, 1, how).named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert type(fresh) is type(model)
    assert not fresh.training
    learnt = dict(model.named_parameters())
    for name, weight in fresh.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name])
        if how == "permuted":
            assert_close(weight.flatten().sort()[0], learnt[name].flatten().sort()[0])
        if weight.ndim > 1 and "encoder_pos_embed" not in name:
            assert not torch.equal(weight, other[name])
            assert not torch.equal(weight, learnt[name]), name
    if how == "permuted":
        assert torch.equal(fresh.encoder_pos_embed.weight, model.encoder_pos_embed.weight)
    with pytest.raises(ProbeError, match="'none'"):
        random_weights(model, how="none")


def test_log_mel_features_are_of_the_clips_own_frames() -> None:
    model = tiny.hooked("base")
    rng = np.random.default_rng(0)
    clips = [0.1 * rng.normal(size=n).astype(np.float32) for n in (16_000, 5_000)]
    found = log_mel_features(model, clips, progress=False)
    for row, clip in zip(found, clips, strict=True):
        mel = model.working_extractor(clip, sampling_rate=16_000)["input_features"][0]
        own = mel[:, : -(-len(clip) // 160)].astype(np.float64)
        np.testing.assert_allclose(row, np.concatenate([own.mean(1), own.std(1)]), atol=1e-4)


# --- Bad input ------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(12, 3))
Y = ["a", "b"] * 6


def with_one(value):
    broken = X.copy()
    broken[7, 2] = value
    return broken


@pytest.mark.parametrize(
    ("features", "labels", "options", "message"),
    [
        ({"s": X}, ["a"] * 12, {}, "all 12 labels are 'a'"),
        ({"s": X}, ["a"] * 11 + ["b"], {}, "class 'b' has a single member, row 11"),
        ({"s": X}, Y[:-1], {}, "s: 11 labels have as many rows of features; got 12"),
        ({"s": with_one(np.nan)}, Y, {}, "s: row 7 has nan in column 2"),
        ({"s": with_one(-np.inf)}, Y, {}, "s: row 7 has -inf in column 2"),
        ({"s": np.ones((12, 3))}, Y, {}, "s: the features are constant"),
        ({"s": X[:, 0]}, Y, {}, r"s: features are \[row d\]; got \[12\]"),
        ({"s": X}, [*Y[:-1], None], {}, "the label of row 11 is None"),
        ({"s": X}, [*Y[:-1], 3], {}, r"one kind; got text \('a'\), number \(3\)"),
        ({"s": X}, Y, {"groups": Y}, "there are 2 groups, for 2 to 2 folds; got 4"),
        ({"s": X}, Y, {"groups": Y, "folds": 2}, "all rows of class '.', those of group '.', are"),
        ({"s": X}, Y, {"groups": Y[:3]}, "12 labels have as many groups; got 3"),
        ({"s": X}, Y, {"groups": [None] * 12}, "row 0 has no group"),
        ({"s": X}, Y, {"folds": 13}, "there are 12 rows"),
        ({"s": X}, Y, {"split": ["train"] * 11 + ["dev"]}, "row 11 is on the side 'dev'"),
        ({"s": X}, Y, {"split": ["train"] * 12}, "a split has two sides"),
        ({"s": X}, Y, {"task": "regression"}, "the label of row 0 is 'a'"),
        ({"s": X}, [3.0] * 12, {"task": "regression"}, "all 12 labels are 3.0"),
        ({"s": X}, Y, {"task": "ranking"}, "got 'ranking'"),
        ({}, Y, {}, "there are no features"),
        ({"s": X}, Y, {"baselines": {"shuffled": X}}, "'shuffled' is always there"),
        ({"s": X}, Y, {"baselines": {"other": {"t": X}}}, "other sites than the features"),
        ({"s": X}, Y, {"baselines": {"mel": X[:4]}}, "baseline 'mel': 12 labels"),
    ],
)
def test_what_cannot_be_probed_is_refused(features, labels, options, message) -> None:
    with pytest.raises(ProbeError, match=message):
        fit_probes(features, labels, **{"folds": 4, **QUICK, **options})


def test_few_rows_of_a_class_are_no_reason_to_stop() -> None:
    x, labels, _ = rows(n=40)
    labels = ["rare"] * 2 + labels[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit_probes({"a": x}, labels, folds=8, **QUICK)
    assert found.classes == ["cat", "dog", "rare"]
    assert np.isfinite([one.value for one in found.scores["a"].values()]).all()
