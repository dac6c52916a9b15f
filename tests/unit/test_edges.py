"""Edge scores against difference quotients: one receiver's copy of its stream, moved a little."""

import json

import altair as alt
import pandas as pd
import pytest
import tiny
import tiny_qwen2
import torch

from hooked_asr.components.norm import RMSNorm
from hooked_asr.patching import (
    EdgeError,
    EdgeResult,
    computation_graph,
    edge_attribution,
    logit_diff,
)
from hooked_asr.patching.graph import GraphError
from hooked_asr.patching.saving import ResultError

EPSILON = 1e-5

# Which stream each receiver's part reads, and through which norm.
READS = {
    "attn": ("hook_resid_pre", "ln1"),
    "cross_attn": ("hook_resid_mid", "ln2"),
}
MLP_READS = {
    "whisper": {
        "encoder": ("hook_resid_mid", "ln2"),
        "decoder": ("hook_resid_mid_cross", "ln3"),
    },
    "qwen2": {
        "encoder": ("hook_resid_mid", "ln2"),
        "decoder": ("hook_resid_mid", "ln2"),
    },
}
HEARD, LAST = "encoder.1.hook_resid_post", "decoder.1.hook_resid_post"

EDGES = {
    "whisper": [
        ("encoder.embed", "encoder.0.attn.h1.q"),
        ("encoder.0.attn.h2", "encoder.0.mlp"),
        ("encoder.0.mlp", "encoder.1.attn.h0.v"),
        ("encoder.1.attn.h3", "decoder.1.cross_attn.h2.k"),
        ("encoder.embed", "decoder.0.cross_attn.h1.v"),
        ("decoder.0.attn.h0", "decoder.0.cross_attn.h3.q"),
        ("decoder.embed", "decoder.1.attn.h0.k"),
        ("decoder.0.cross_attn.h1", "decoder.1.mlp"),
        ("decoder.1.mlp", "logits"),
    ],
    "qwen2": [
        ("encoder.0.attn.h1", "encoder.1.attn.h2.k"),
        ("encoder.1.mlp", "audio"),
        ("audio", "decoder.0.attn.h1.k"),
        ("audio", "decoder.1.attn.h0.v"),
        ("decoder.embed", "decoder.0.mlp"),
        ("decoder.0.attn.h3", "decoder.1.attn.h2.q"),
        ("decoder.1.attn.h1", "logits"),
    ],
}
CASES = [(family, *edge) for family, edges in EDGES.items() for edge in edges]


def difference(logits):
    """A metric that keeps float64, one number for each row, and is far from linear."""
    return (logits[:, -1, 3] - logits[:, -2, 5]) ** 2 / 10


class Runs:
    """A family's model in float64, two runs, and what both wrote."""

    def __init__(self, family):
        self.family = family
        if family == "whisper":
            self.model = tiny.hooked(dtype=torch.float64)
            pairs = [tiny.inputs(self.model, seed=seed) for seed in (0, 1)]
            self.clean, self.reference = ({"mel": m, "tokens": t} for m, t in pairs)
        else:
            self.model = tiny_qwen2.hooked("gqa", torch.float64)
            # Rows of unequal length, padded on the left.
            frames = [[61], [40]]
            self.clean, self.reference = (tiny_qwen2.inputs(frames, seed=s) for s in (0, 1))
        with torch.no_grad():
            self.caches = [
                self.model.run_with_cache(**run)[1] for run in (self.clean, self.reference)
            ]

    def of(self, hook):
        clean, reference = (cache[hook] for cache in self.caches)
        return reference - clean

    def change(self, sender):
        """What the reference's value of a sender adds to the stream in place of the clean one."""
        part, _, head = sender.rpartition(".h")
        if part:
            own = self.model.get_submodule(part)
            weight = own.o_proj.weight.detach().split(own.d_head, 1)[int(head)]
            return self.of(f"{part}.hook_z")[:, :, int(head)] @ weight.T
        if sender.endswith("mlp"):
            return self.of(sender.replace("mlp", "hook_mlp_out"))
        change = self.of("encoder.0.hook_resid_pre" if "encoder" in sender else READ_FIRST)
        if self.family == "whisper" or sender == "encoder.embed":
            return change
        heard = (self.clean["tokens"] == tiny_qwen2.AUDIO)[..., None]
        return change * (heard if sender == "audio" else ~heard)

    def read(self, receiver):
        """A receiver's stream, norm, hook and head."""
        if receiver == "logits":
            return LAST, None, LAST, None
        if receiver == "audio":
            return HEARD, None, HEARD, None
        stack, layer, part, *head = receiver.split(".")
        block = f"{stack}.{layer}"
        if part == "mlp":
            stream, norm = MLP_READS[self.family][stack]
            return f"{block}.{stream}", f"{block}.{norm}", f"{receiver}.hook_in", None
        number, letter = int(head[0][1:]), head[1]
        hook = f"{block}.{part}.hook_{letter}_input"
        if part == "cross_attn" and letter != "q":
            return HEARD, "encoder_final_ln", hook, number
        stream, norm = READS[part]
        return f"{block}.{stream}", f"{block}.{norm}", hook, number

    @torch.no_grad()
    def with_moved(self, receiver, step, inputs=()):
        """The metric where one receiver's copy of its stream is moved by a step."""
        stream, norm, hook, head = self.read(receiver)
        seen = {}

        def see(x, hook):
            seen["stream"] = x.clone()

        def move(x, hook):
            moved = seen["stream"] + step
            moved = moved if norm is None else self.model.get_submodule(norm)(moved)
            if head is None:
                return moved
            x[:, :, head] = moved
            return x

        hooks = [*inputs, (stream, see), (hook, move)]
        return difference(self.model.run_with_hooks(**self.clean, fwd_hooks=hooks)).mean()

    def slope(self, receiver, change, inputs=()):
        there, back = (
            self.with_moved(receiver, sign * EPSILON * change, inputs) for sign in (1, -1)
        )
        return float((there - back) / (2 * EPSILON))


READ_FIRST = "decoder.0.hook_resid_pre"


@pytest.fixture(scope="module", autouse=True)
def float64_norms():
    """RMS norms compute in float32, as the reference's do, which is too coarse for quotients."""

    def fused(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RMSNorm, "_fused", fused)
        yield


@pytest.fixture(scope="module")
def runs(float64_norms):
    return {family: Runs(family) for family in EDGES}


def attributed(runs, **options):
    return edge_attribution(
        runs.model,
        clean=runs.clean,
        reference=runs.reference,
        metric=difference,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def results(runs):
    return {family: attributed(one) for family, one in runs.items()}


def close(score, slope):
    return score == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("family", "sender", "receiver"), CASES)
def test_a_score_is_the_slope_along_its_edge(runs, results, family, sender, receiver):
    one, result = runs[family], results[family]
    slope = one.slope(receiver, one.change(sender))
    assert abs(slope) > 1e-7
    assert close(float(result.scores[result.graph.place(sender, receiver)]), slope)


@pytest.mark.parametrize("family", EDGES)
def test_a_receivers_scores_sum_to_the_slope_along_its_whole_stream(runs, results, family):
    """So no sender is left out, and none stands where it does not write."""
    one, result = runs[family], results[family]
    sums = result.scores.sum(1).tolist()
    slopes = [one.slope(name, one.of(one.read(name)[0])) for name in result.graph.receivers]
    assert sums == pytest.approx(slopes, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("family", "sender", "receiver"), [CASES[2], CASES[3], CASES[10], CASES[12]]
)
def test_integrated_scores_are_means_of_slopes_on_the_way(runs, family, sender, receiver):
    one = runs[family]
    result = attributed(one, method="integrated", steps=3)
    text = torch.ones(1, dtype=torch.bool)
    if family == "qwen2":
        text = (one.clean["tokens"] != tiny_qwen2.AUDIO)[..., None]

    def mixed(share, only=None):
        def mix(x, hook):
            clean, reference = (cache[hook.name] for cache in one.caches)
            mixture = share * clean + (1 - share) * reference
            return mixture if only is None else torch.where(only, mixture, x)

        return mix

    slopes = []
    for share in (1 / 3, 2 / 3, 1):
        inputs = [("encoder.0.hook_resid_pre", mixed(share)), (READ_FIRST, mixed(share, text))]
        slopes.append(one.slope(receiver, one.change(sender), inputs))
    score = float(result.scores[result.graph.place(sender, receiver)])
    assert close(score, sum(slopes) / 3)
    assert not close(score, slopes[-1])


def test_integrated_in_one_step_is_plain(runs, results):
    one = attributed(runs["whisper"], method="integrated", steps=1)
    assert torch.equal(one.scores, results["whisper"].scores)


def test_a_score_is_the_mean_over_clips(runs, results):
    one = runs["whisper"]
    each = [
        edge_attribution(
            one.model,
            clean={name: x[i : i + 1] for name, x in one.clean.items()},
            reference={name: x[i : i + 1] for name, x in one.reference.items()},
            metric=difference,
            progress=False,
        )
        for i in range(2)
    ]
    torch.testing.assert_close(results["whisper"].scores, (each[0].scores + each[1].scores) / 2)
    assert results["whisper"].clean == pytest.approx((each[0].clean + each[1].clean) / 2)


def test_runs_metrics_and_order_are_told(runs, results):
    one, result = runs["whisper"], results["whisper"]
    with torch.no_grad():
        assert result.clean == pytest.approx(float(difference(one.model(**one.clean)).mean()))
        assert result.reference == pytest.approx(
            float(difference(one.model(**one.reference)).mean())
        )
    top = result.top(5)
    assert list(top["score"].abs()) == sorted(result.to_pandas()["score"].abs())[:-6:-1]
    strongest = top.iloc[0]
    place = result.graph.place(strongest["sender"], strongest["receiver"])
    assert float(result.scores[place]) == strongest["score"]


def test_frozen_weights_and_gradients_turned_off_change_nothing(runs, results):
    one = Runs("whisper")
    one.model.requires_grad_(False)
    with torch.no_grad():
        assert torch.allclose(attributed(one).scores, results["whisper"].scores)
    assert not one.model.has_hooks


def test_half_precision_gives_nearly_the_same_scores():
    def scores(dtype):
        model = tiny.hooked(dtype=dtype)
        clean, reference = tiny.inputs(model, seed=0), tiny.inputs(model, seed=1)
        result = edge_attribution(
            model, clean=clean, reference=reference, metric=logit_diff(3, 5), progress=False
        )
        return result.scores

    full, half = scores(torch.float32), scores(torch.bfloat16)
    assert torch.corrcoef(torch.stack([full.flatten(), half.flatten()]))[0, 1] > 0.98


# What is kept


@pytest.mark.parametrize("family", EDGES)
def test_what_is_saved_is_what_is_loaded(results, family, tmp_path):
    result = results[family]
    result.save(tmp_path / "edges.json")
    loaded = EdgeResult.load(tmp_path / "edges.json")
    assert loaded.graph == result.graph
    assert torch.equal(loaded.scores, result.scores)
    names = ("clean", "reference", "metric", "method", "steps", "model")
    assert [getattr(loaded, n) for n in names] == [getattr(result, n) for n in names]
    result.save(tmp_path / "edges.csv")
    table = pd.read_csv(tmp_path / "edges.csv")
    assert list(table.columns) == ["sender", "receiver", "score"]
    assert len(table) == int(result.graph.edges.sum())


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"graph": {"writes": []}}))
    with pytest.raises(ResultError, match="holds no saved edge scores"):
        EdgeResult.load(tmp_path / "other.json")


def test_a_heatmap_shows_the_strongest_edge_between_parts(results):
    result = results["whisper"]
    chart = result.plot()
    assert isinstance(chart, alt.Chart)
    cells = {(c["receiver"], c["sender"]): c["score"] for c in chart.to_dict()["data"]["values"]}
    table = result.to_pandas()
    between = table[
        table["receiver"].str.fullmatch(r"decoder\.1\.cross_attn\.h\d\.k")
        & table["sender"].str.startswith("encoder.0.attn.")
    ]["score"]
    strongest = between.iloc[between.abs().argmax()]
    assert cells["decoder.1.cross_attn.k", "encoder.0.attn"] == pytest.approx(strongest)
    assert cells["encoder.0.mlp", "encoder.1.mlp"] is None


# What is refused


def test_what_does_not_fit_is_refused(runs):
    one = runs["whisper"]

    def attribute(metric=difference, clean=one.clean, reference=one.reference, **options):
        edge_attribution(
            one.model, clean=clean, reference=reference, metric=metric, progress=False, **options
        )

    with pytest.raises(EdgeError, match="methods are 'plain' and 'integrated'"):
        attribute(method="exact")
    with pytest.raises(EdgeError, match="steps=0"):
        attribute(method="integrated", steps=0)
    with pytest.raises(EdgeError, match=r"tokens are \[2, 7\] in clean and \[2, 5\] in reference"):
        attribute(reference={**one.reference, "tokens": one.reference["tokens"][:, :5]})
    with pytest.raises(EdgeError, match="clean must hold mel and tokens; it has audio, tokens"):
        attribute(clean=one.model.encoded(one.clean))
    with pytest.raises(EdgeError, match="no gradient reaches the metric"):
        attribute(metric=lambda logits: difference(logits.detach()))
    with torch.inference_mode(), pytest.raises(EdgeError, match=r"outside torch\.inference_mode"):
        attribute()


def test_audio_must_stand_at_the_same_places(runs):
    one = runs["qwen2"]
    other = tiny_qwen2.inputs([[61], [40]], n_text=2, n_said=5, seed=1)
    with pytest.raises(EdgeError, match="the audio stands at other positions"):
        edge_attribution(one.model, clean=one.clean, reference=other, metric=difference)


def test_unknown_edges_are_refused_with_what_is_near():
    graph = computation_graph(tiny.hooked().config)
    with pytest.raises(GraphError, match=r"no sender 'decoder\.0\.attn\.h9'; did you mean 'dec"):
        graph.place("decoder.0.attn.h9", "logits")
    with pytest.raises(GraphError, match=r"'encoder\.0\.mlp' reads no stream that 'encoder\.1"):
        graph.place("encoder.1.mlp", "encoder.0.mlp")
