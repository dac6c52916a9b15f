"""Labels of features: against scikit-learn, slow loops, and cases whose answer is known."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, mutual_info_score

from hooked_asr.manifests import Clip
from hooked_asr.sae import SAEError
from hooked_asr.sae.reading.activity import Activity
from hooked_asr.sae.reading.alignments import Aligned, from_ends, read_alignments
from hooked_asr.sae.reading.labels import LabelScorer, associate
from hooked_asr.sae.reading.purity import label_sums, purity
from hooked_asr.sae.reading.row_labels import (
    NONE,
    UNKNOWN,
    ReadClip,
    RowLabels,
    aligned_labels,
    clip_labels,
    halves,
    shuffled,
)

N = 2000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def known(rng):
    """Codes of three labels and none, rows that do not count, and the half to fit on."""
    codes = rng.choice([UNKNOWN, NONE, 0, 1, 2], N, p=[0.1, 0.4, 0.25, 0.2, 0.05]).astype(np.int32)
    return codes, rng.random(N) < 0.5


def scored(dense, codes, fitted, n_labels=3):
    rows = np.flatnonzero(dense)
    return LabelScorer(codes, n_labels, fitted).score(rows, dense[rows].astype(np.float32))


# --- Scores ---------------------------------------------------------------------------------------


def test_scores_are_scikit_learns_at_the_best_threshold_of_the_first_half(known, rng):
    codes, fitted = known
    dense = np.where(rng.random(N) < 0.4, rng.gamma(2, 1, N) + (codes == 1), 0).astype(np.float32)
    found = scored(dense, codes, fitted)
    first, second = fitted & (codes != UNKNOWN), ~fitted & (codes != UNKNOWN)
    active = dense[first & (dense > 0)]
    levels = [0.0, *(np.sort(active)[int(len(active[1:]) * i / 16)] for i in range(1, 16))]
    for label in range(3):
        tried = [f1_score(codes[first] == label, dense[first] > level) for level in levels]
        assert found.fitted[label] == pytest.approx(max(tried))
        above = dense[second] > found.threshold[label]
        assert found.threshold[label] == pytest.approx(levels[int(np.argmax(tried))])
        assert found.f1[label] == pytest.approx(f1_score(codes[second] == label, above))
        bits = mutual_info_score(codes[second] == label, above) / np.log(2)
        assert found.bits[label] == pytest.approx(bits, abs=1e-12)


def test_a_feature_that_is_a_label_has_f1_of_1_and_as_many_bits_as_the_label(known):
    codes, fitted = known
    found = scored((codes == 2).astype(np.float32), codes, fitted)
    second = codes[~fitted & (codes != UNKNOWN)]
    share = (second == 2).mean()
    assert found.f1[2] == 1
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    assert found.bits[2] == pytest.approx(entropy)


def test_what_is_independent_of_a_label_tells_nothing_of_it(rng):
    codes, fitted = np.arange(N) % 4 - 1, np.arange(N) < N / 2
    dense = np.repeat(rng.random(N // 4) < 0.3, 4).astype(np.float32)  # as often on each label
    found = scored(dense, codes.astype(np.int32), fitted)
    assert np.abs(found.bits).max() < 1e-12


def test_a_threshold_tells_apart_what_activity_alone_does_not(rng):
    codes = rng.choice([0, 1], N).astype(np.int32)
    dense = np.where(codes == 0, 1.0, 3.0) + rng.random(N)
    found = scored(dense, codes, rng.random(N) < 0.5, n_labels=2)
    # Of 15 quantiles one is near the gap, which is at the median.
    assert found.f1[1] > 0.9
    assert found.f1[0] == pytest.approx(2 / 3, abs=0.03)  # active on all: half is right


def test_a_label_that_is_missing_in_one_half_has_no_score(known):
    codes, fitted = known
    codes = np.where(fitted & (codes == 0), NONE, codes)
    found = scored(np.ones(N), codes, fitted)
    assert np.isnan(found.f1[0])
    assert np.isfinite(found.f1[1:]).all()


def test_the_best_label_is_chosen_on_the_first_half_and_scored_on_the_other():
    codes = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int32)
    fitted = np.arange(8) < 4
    dense = np.array([1, 1, 0, 0, 0, 0, 1, 1], np.float32)  # 0 on the first half, 1 on the other
    one = scored(dense, codes, fitted, n_labels=2)
    found = associate(RowLabels("x", ["a", "b"], codes, False), [one], [[one]])
    assert found.best().tolist() == [0]
    assert found.best_f1().tolist() == [0.0]


def test_purity_tells_what_a_confusing_feature_is_active_on():
    codes = np.array([0, 0, 1, 1, NONE, NONE, UNKNOWN, UNKNOWN], np.int32)
    labels = RowLabels("phone", ["a", "b"], codes, False)
    rows = np.array([0, 2, 3, 4, 6])
    mass, active = label_sums(labels, rows, np.array([3.0, 1.0, 1.0, 5.0, 9.0], np.float32))
    found = purity(labels, [mass], [active])
    assert found.names == ["a", "b", "–"]
    assert found.mass[0].tolist() == pytest.approx([0.3, 0.2, 0.5])
    assert found.active[0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert found.base.tolist() == pytest.approx([1 / 3] * 3)


# --- Rows -----------------------------------------------------------------------------------------


def clips_of(*lengths, groups=None, labels=None):
    starts = np.cumsum([0, *lengths])
    return [
        ReadClip(
            f"c{i}",
            "",
            n / 50,
            int(starts[i]),
            n,
            None if groups is None else groups[i],
            {} if labels is None else {"sex": labels[i]},
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("lag", [0.0, 0.04])
def test_a_frame_has_the_label_that_is_heard_at_its_centre(rng, lag):
    clips = clips_of(60, 45, 30)
    cuts = np.round(np.sort(rng.uniform(0, 1.3, (3, 7))), 3)
    said = {
        f"c{i}": [Aligned("abc"[j % 3], *cuts[i, j : j + 2].tolist()) for j in range(6)]
        for i in (0, 2)
    }
    found = aligned_labels("phone", said, clips, "audio", lag)
    for clip in clips:
        for row in range(clip.rows):
            centre = row * 0.02 + 0.01 - lag
            at = [one.label for one in said.get(clip.id, []) if one.start <= centre < one.end]
            code = found.codes[clip.start + row]
            told = "nothing" if code == UNKNOWN else "" if code == NONE else found.names[code]
            assert told == (at[-1] if at else "" if clip.id in said else "nothing")


def test_rarer_labels_than_there_is_room_for_count_as_none():
    clips = clips_of(50)
    said = {"c0": [Aligned("a", 0.0, 0.5), Aligned("b", 0.5, 0.7), Aligned("c", 0.7, 1.0)]}
    found = aligned_labels("phone", said, clips, "audio", most=2)
    assert found.names == ["a", "c"]
    assert (found.codes[25:35] == NONE).all()


def test_halves_are_about_as_large_and_split_no_group(rng):
    clips = clips_of(*rng.integers(5, 50, 40).tolist(), groups=[f"g{i % 9}" for i in range(40)])
    fitted = halves(clips, rng)
    of_group = {}
    for clip in clips:
        of_group.setdefault(clip.group, set()).update(fitted[clip.span].tolist())
    assert all(len(one) == 1 for one in of_group.values())
    assert 0.35 < fitted.mean() < 0.65
    with pytest.raises(SAEError, match="one group"):
        halves(clips_of(5, 6, groups=["a", "a"]), rng)


def test_shuffled_alignments_are_other_clips_turned_around(rng):
    clips = clips_of(40, 40, 40)
    codes = np.repeat([3, 4, 5], 40).astype(np.int32) * 10 + np.tile(np.arange(40) // 8, 3)
    found = shuffled(RowLabels("x", list("abc"), codes.astype(np.int32), False), clips, rng)
    for clip in clips:
        own = found[clip.span]
        assert len(set((own // 10).tolist())) == 1  # one donor, all of it
        turned = [np.roll(own, -i) for i in range(40)]
        assert any((one % 10 == np.arange(40) // 8).all() for one in turned)
    assert sorted(found.tolist()) == sorted(codes.tolist())


def test_shuffled_classes_are_exchanged_by_whole_groups(rng):
    groups = [f"g{i // 5}" for i in range(50)]
    sexes = ["mf"[i // 5 % 2] for i in range(50)]
    clips = clips_of(*[3] * 50, groups=groups, labels=sexes)
    labels = clip_labels("sex", clips)
    drawn = [shuffled(labels, clips, rng) for _ in range(20)]
    for one in drawn:
        assert all(len(set(one[15 * i : 15 * i + 15].tolist())) == 1 for i in range(10))
        assert (one == 0).sum() == (labels.codes == 0).sum()
    agree = np.mean([(one == labels.codes).mean() for one in drawn])
    assert 0.25 < agree < 0.75


def test_a_column_that_no_clip_has_is_refused():
    with pytest.raises(SAEError, match="has sex"):
        clip_labels("accent", clips_of(3, labels=["m"]))


# --- Alignments -----------------------------------------------------------------------------------


def test_alignments_are_a_column_or_a_file_or_a_mapping(tmp_path):
    entries = [["a", 0, 0.5], ["b", 0.5, 1]]
    want = [Aligned("a", 0.0, 0.5), Aligned("b", 0.5, 1.0)]
    listed = Clip("sounds/x.wav", "x", labels={"phones": entries})
    as_text = Clip("x.wav", "x", labels={"phones": json.dumps(entries)})
    assert read_alignments("phones", [listed]) == {"x": want}
    assert read_alignments("phones", [as_text]) == {"x": want}
    named = [{"phone": label, "start": a, "end": b} for label, a, b in reversed(entries)]
    file = tmp_path / "phones.json"
    file.write_text(json.dumps({"x": named}))
    by_name = Clip("sounds/x.wav", "sounds/x.wav")
    assert read_alignments(file, [by_name]) == {"sounds/x.wav": want}
    assert read_alignments({"x": want}, [listed, Clip("y.wav", "y")]) == {"x": want}
    assert from_ends(["a", "b"], [8000, 16000]) == want


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("words", "phones"),
        ({"y": []}, "none of 1 clips"),
        ({"x": [["a", 0.5]]}, r"\[label, start, end\]"),
        ({"x": [["a", 0.5, 0.2]]}, "0.5 to 0.2"),
        ({"x": [[1, 0.5, 0.7]]}, "text"),
    ],
)
def test_what_is_no_alignment_is_refused(asked, said):
    with pytest.raises(SAEError, match=said):
        read_alignments(asked, [Clip("x.wav", "x", labels={"phones": []})])


# --- Activity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 400, 10**9], ids=["disk", "both", "memory"])
@pytest.mark.parametrize("only", [None, [100, 7, 3]])
def test_activity_gives_back_each_feature_wherever_it_lay(memory, only):
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(90, 150, generator=generator).clamp(min=0)
    dense[:, 7] = 0
    with Activity(150, memory, only) as activity:
        for first in range(0, 90, 20):
            activity.add(first, dense[first : first + 20])
        found = list(activity.by_feature())
        folder = activity._folder
    wanted = list(range(150)) if only is None else sorted(only)
    assert [number for number, _, _ in found] == wanted
    for number, rows, values in found:
        assert rows.tolist() == dense[:, number].nonzero().flatten().tolist()
        assert values.tolist() == dense[rows, number].tolist()
    assert (folder is None) == (memory == 10**9)
