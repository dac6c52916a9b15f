"""Forks of loops, and means over runs of unequal length, against one run after the other."""

import dataclasses
import json

import pytest
import torch
from tiny import hooked

from hooked_asr import HookedWhisper, patching
from hooked_asr.nano import bundle
from hooked_asr.patching import EdgeError, RepetitionError, SweepError, logit_diff
from hooked_asr.patching.loop_forks import LoopFork
from hooked_asr.records import RecordsError

CHANT = bundle.clip("chant")


@pytest.fixture(scope="module")
def nano():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def chant(nano, unchecked_module):
    return patching.hear_clips(nano, [CHANT.path], said=["No, no, no, no."])[0]


@pytest.fixture(scope="module")
def unchecked_module():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxtyping.config.jaxtyping_disable", True)
        yield


def test_a_fork_lies_where_the_loop_has_been_said_as_often_as_it_was(nano, chant):
    (fork,) = patching.loop_forks(nano, [chant])
    assert fork.round == 4
    assert fork.said_before.lower().split() == ["no,", "no,", "no,", "no"]
    assert nano.text_of([fork.goes_on]) == ","
    assert nano.text_of([fork.ends]) == "."
    assert torch.equal(fork.clean["tokens"], fork.reference["tokens"])
    n_prompt = len(nano.prompt("en"))
    said = fork.clean["tokens"][0, n_prompt:].tolist()
    assert [*said, fork.goes_on] == chant.tokens[: len(said) + 1]
    logits = nano(**fork.clean)[0, -1]
    assert fork.metric(logits[None, None]).item() == pytest.approx(
        (logits[fork.goes_on] - logits[fork.ends]).item(), abs=1e-5
    )
    # Who hears nothing ends.
    assert fork.metric(nano(**fork.reference)).item() < fork.metric(nano(**fork.clean)).item()


def test_without_a_text_it_lies_behind_the_fewest_rounds_of_a_loop(nano, chant):
    unknown = dataclasses.replace(chant, said=None)
    (fork,) = patching.loop_forks(nano, [unknown], reference="noise")
    assert fork.said_before.lower().split() == ["no,", "no,", "no"]
    with pytest.raises(RepetitionError, match="should have ended"):
        patching.loop_forks(nano, [dataclasses.replace(chant, said="No, " * 20)])


# --- Means over runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return hooked("base")


@pytest.fixture(scope="module")
def runs(tiny):
    draw = torch.Generator().manual_seed(0)

    def run(n):
        tokens = torch.randint(0, 40, (1, n), generator=draw)
        clean, other = torch.randn(2, 1, 8, 100, generator=draw)
        return LoopFork(
            "", {"mel": clean, "tokens": tokens}, {"mel": other, "tokens": tokens}, n, 2, 3, ""
        )

    return [run(n) for n in (4, 6, 7)]


def each(runs, fn):
    return [fn(clean=one.clean, reference=one.reference, metric=one.metric) for one in runs]


def test_a_sweep_over_runs_is_the_mean_of_theirs(tiny, runs):
    sites = [patching.heads("decoder.cross_attn"), patching.components("decoder")]
    found = patching.sweep_over(tiny, runs, sites=sites, metric="a less b", progress=False)
    for i, own in enumerate(sites):
        alone = each(
            runs, lambda own=own, **r: patching.sweep(tiny, sites=own, progress=False, **r)
        )
        expected = torch.stack([one.values for one in alone]).mean(0)
        torch.testing.assert_close(found[i].values, expected)
        assert found[i].clean == pytest.approx(sum(one.clean for one in alone) / 3)
        assert found[i].metric == "a less b"
    (one,) = [patching.sweep_over(tiny, runs[:1], sites=sites[0], progress=False)]
    assert one.metric == logit_diff(4, 2, -1).name
    with pytest.raises(SweepError, match="at least one"):
        patching.sweep_over(tiny, [], sites=sites)


def test_edges_and_circuits_over_runs_are_the_means_of_theirs(tiny, runs, tmp_path):
    given = {"method": "integrated", "steps": 2, "progress": False}
    found = patching.edges_over(tiny, runs, out=tmp_path, **given)
    alone = each(runs, lambda **r: patching.edge_attribution(tiny, **given, **r))
    expected = torch.stack([one.scores for one in alone]).mean(0)
    torch.testing.assert_close(found.scores, expected)
    assert found.reference == pytest.approx(sum(one.reference for one in alone) / 3)
    circuits = [found.circuit(n_edges=n) for n in (20, 60)]
    faithful = patching.faithfulness_over(tiny, circuits, runs, progress=False)
    own = each(runs, lambda **r: patching.faithfulness(tiny, circuits, progress=False, **r))
    values = [sum(of) / 3 for of in zip(*(one.values for one in own), strict=True)]
    assert faithful.values == pytest.approx(values)
    span = faithful.clean - faithful.empty
    assert faithful.faithfulness[0] == pytest.approx((values[0] - faithful.empty) / span)
    for over in (patching.edges_over, lambda m, r: patching.faithfulness_over(m, circuits, r)):
        with pytest.raises(EdgeError, match="at least one"):
            over(tiny, [])


def test_edges_over_runs_go_on_where_they_were(tiny, runs, tmp_path):
    whole = patching.edges_over(tiny, runs, out=tmp_path, progress=False)
    (records,) = tmp_path.glob("records-*.jsonl")
    lines = records.read_text().splitlines(keepends=True)
    assert json.loads(lines[1])["key"] == "0"
    records.write_text("".join(lines[:2]))
    again = patching.edges_over(tiny, runs, out=tmp_path, progress=False)
    assert torch.equal(again.scores, whole.scores)
    with pytest.raises(RecordsError, match="runs"):
        patching.edges_over(tiny, runs[:2], out=tmp_path, progress=False)
