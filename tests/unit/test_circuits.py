"""Circuits against a slow model: every node's input written out as a sum over its edges."""

import json
import math
import random

import pytest
import tiny
import tiny_qwen2
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from hooked_asr.patching import (
    Circuit,
    CircuitError,
    EdgeError,
    EdgeResult,
    FaithfulnessResult,
    Graph,
    GraphError,
    computation_graph,
    edge_attribution,
    faithfulness,
    logit_diff,
    run_circuit,
)
from hooked_asr.patching.graph import Read, Write
from hooked_asr.patching.saving import ResultError

METRIC = logit_diff(3, 5)


class SlowWhisper:
    """A Whisper one head and one edge at a time.

    `keeps(sender, receiver)` says whether an edge carries this run's value; the others carry the
    sender's in `outside`. `asked` are all edges that came up; `wrote` is what each sender wrote.
    """

    def __init__(self, model, mel, tokens, keeps=lambda *edge: True, outside=None):
        self.model, self.keeps, self.outside = model, keeps, outside
        self.asked, self.wrote = set(), {}
        self.streams = {"encoder": [], "decoder": []}
        self.biases = {"encoder": 0, "decoder": 0}
        self.wrote["encoder.embed"] = model.encode(mel, stop_at=0)
        self.streams["encoder"].append("encoder.embed")
        for i, block in enumerate(model.encoder):
            self.attention(f"encoder.{i}.attn", block.attn, block.ln1)
            self.mlp(f"encoder.{i}.mlp", block.mlp, block.ln2)
        positions = model.decoder_pos_embed.weight[: tokens.shape[1]]
        self.wrote["decoder.embed"] = model.embed(tokens) + positions
        self.streams["decoder"].append("decoder.embed")
        for i, block in enumerate(model.decoder):
            self.attention(f"decoder.{i}.attn", block.attn, block.ln1)
            self.attention(
                f"decoder.{i}.cross_attn", block.cross_attn, block.ln2, model.encoder_final_ln
            )
            self.mlp(f"decoder.{i}.mlp", block.mlp, block.ln3)
        last = self.normed(self.read("logits", "decoder"), model.decoder_final_ln)
        self.logits = last @ model.unembed.weight.T

    def read(self, receiver, stack):
        total = self.biases[stack]
        for sender in self.streams[stack]:
            self.asked.add((sender, receiver))
            kept = self.keeps(sender, receiver)
            total = total + (self.wrote if kept else self.outside)[sender]
        return total

    @staticmethod
    def normed(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        return centred / scale * norm.weight + norm.bias

    def attention(self, part, attn, norm, audio_norm=None):
        stack = part.split(".")[0]
        heads = {}
        for h in range(attn.n_heads):
            own = slice(h * attn.d_head, (h + 1) * attn.d_head)
            projected = {}
            for letter in "qkv":
                heard = audio_norm is not None and letter != "q"
                x = self.read(f"{part}.h{h}.{letter}", "encoder" if heard else stack)
                x = self.normed(x, audio_norm if heard else norm)
                linear = getattr(attn, f"{letter}_proj")
                bias = 0 if linear.bias is None else linear.bias[own]
                projected[letter] = x @ linear.weight[own].T + bias
            scores = projected["q"] @ projected["k"].mT / attn.d_head**0.5
            if stack == "decoder" and audio_norm is None:
                later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -math.inf)
            z = scores.softmax(-1) @ projected["v"]
            heads[f"{part}.h{h}"] = z @ attn.o_proj.weight[:, own].T
        self.wrote |= heads
        self.streams[stack] += heads
        self.biases[stack] = self.biases[stack] + attn.o_proj.bias

    def mlp(self, part, mlp, norm):
        stack = part.split(".")[0]
        inside = F.gelu(self.normed(self.read(part, stack), norm) @ mlp.fc_in.weight.T + mlp.b_in)
        self.wrote[part] = inside @ mlp.fc_out.weight.T + mlp.fc_out.bias
        self.streams[stack].append(part)


class Pair:
    """A model and its two runs."""

    def __init__(self, model, clean, reference):
        self.model, self.graph = model, computation_graph(model.config)
        self.runs = {"clean": clean, "reference": reference}

    def run(self, circuit, **options):
        return run_circuit(self.model, circuit, **self.runs, **options)

    @torch.no_grad()
    def logits(self, name):
        inputs = self.runs[name]
        return self.model(**inputs) if isinstance(inputs, dict) else self.model(*inputs)


def whisper(layout="base", dtype=torch.float32):
    model = tiny.hooked(layout, dtype)
    return Pair(model, tiny.inputs(model, seed=0), tiny.inputs(model, seed=1))


def qwen2(layout, frames, side="left", dtype=torch.float32):
    model = tiny_qwen2.hooked(layout, dtype)
    return Pair(model, *(tiny_qwen2.inputs(frames, side, seed=seed) for seed in (0, 1)))


PAIRS = {
    "whisper": lambda: whisper("unequal_heads"),
    "whisper_deep_decoder": lambda: whisper("deep_decoder"),
    "qwen2": lambda: qwen2("mha", [[61]]),
    "qwen2_grouped_padded": lambda: qwen2("gqa", [[100], [40], [61]]),
    "qwen2_several_clips": lambda: qwen2("deep", [[40, 61], [23]], side="right"),
}


@pytest.fixture(scope="module")
def double():
    return whisper(dtype=torch.float64)


@pytest.fixture(scope="module")
def slow(double):
    """The slow model's plain runs."""
    with torch.no_grad():
        return {name: SlowWhisper(double.model, *run) for name, run in double.runs.items()}


@pytest.fixture(scope="module")
def result(double):
    return edge_attribution(double.model, **double.runs, metric=METRIC, progress=False)


# The whole and the empty circuit


@pytest.mark.parametrize("kind", PAIRS)
def test_the_full_circuit_is_the_clean_run_and_the_empty_one_the_references(kind):
    pair = PAIRS[kind]()
    clean, reference = pair.logits("clean"), pair.logits("reference")
    assert torch.equal(pair.run(Circuit.full(pair.graph)), clean)
    assert_close(pair.run(Circuit.of(pair.graph, [])), reference, rtol=1e-4, atol=1e-4)
    assert (clean - reference).abs().max() > 0.1
    assert not pair.model.has_hooks


# Every edge by itself


def test_the_graphs_edges_are_those_that_the_slow_model_reads(double, slow):
    assert set(Circuit.full(double.graph).edges) == slow["clean"].asked
    assert_close(slow["clean"].logits, double.logits("clean"), rtol=1e-9, atol=1e-9)


def values_outside(ablation, wrote):
    if ablation == "zero":
        return {sender: torch.zeros_like(x) for sender, x in wrote.items()}
    if ablation == "mean":
        return {sender: x.mean((0, 1)).expand_as(x) for sender, x in wrote.items()}
    return wrote


@pytest.mark.parametrize("ablation", ["reference", "zero", "mean"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@torch.no_grad()
def test_a_circuit_is_the_slow_models(double, slow, share, ablation):
    everything = sorted(slow["clean"].asked)
    chosen = set(random.Random(7).sample(everything, int(share * len(everything))))
    outside = values_outside(ablation, slow["reference"].wrote)
    by_hand = SlowWhisper(
        double.model, *double.runs["clean"], lambda *edge: edge in chosen, outside
    )
    logits = double.run(Circuit.of(double.graph, chosen), ablation=ablation)
    assert_close(logits, by_hand.logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "edge",
    [
        ("encoder.embed", "encoder.0.attn.h1.q"),
        ("encoder.0.mlp", "encoder.1.attn.h3.v"),
        ("encoder.1.attn.h2", "decoder.0.cross_attn.h0.k"),
        ("decoder.embed", "decoder.1.mlp"),
        ("decoder.0.cross_attn.h1", "decoder.1.attn.h2.k"),
        ("decoder.1.attn.h3", "logits"),
    ],
)
@torch.no_grad()
def test_one_edge_less_is_the_slow_models(double, slow, edge):
    by_hand = SlowWhisper(
        double.model, *double.runs["clean"], lambda *one: one != edge, slow["reference"].wrote
    )
    logits = double.run(Circuit.full(double.graph).without(*edge))
    assert_close(logits, by_hand.logits, rtol=1e-9, atol=1e-9)
    assert (logits - double.logits("clean")).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("sender", "receiver", "hook"),
    [
        ("audio", "decoder.1.attn.h1.k", "decoder.1.attn.hook_k"),
        ("decoder.embed", "decoder.0.attn.h0.v", "decoder.0.attn.hook_v"),
        ("decoder.0.attn.h3", "decoder.1.attn.h2.q", "decoder.1.attn.hook_q"),
    ],
)
@torch.no_grad()
def test_one_edge_less_where_audio_is_a_prefix(sender, receiver, hook):
    """The receiver's query, key or value made again from the weights, its stream moved by hand."""
    pair = qwen2("gqa", [[61], [40]])
    model, runs = pair.model, pair.runs
    caches = [model.run_with_cache(**runs[name])[1] for name in ("clean", "reference")]
    part, head, letter = receiver.rsplit(".", 2)
    block, number = part.removesuffix(".attn"), int(head[1:])
    if ".h" in sender:
        own = model.get_submodule(sender.rsplit(".", 1)[0])
        z = [cache["decoder.0.attn.hook_z"][:, :, 3] for cache in caches]
        change = (z[1] - z[0]) @ own.o_proj.weight[:, 3 * own.d_head :].T
    else:
        embeds = [cache["hook_decoder_embed"] for cache in caches]
        heard = (runs["clean"]["tokens"] == tiny_qwen2.AUDIO)[..., None]
        change = (embeds[1] - embeds[0]) * (heard if sender == "audio" else ~heard)
    x = caches[0][f"{block}.hook_resid_pre"] + change
    norm = model.get_submodule(f"{block}.ln1")
    x = x * (x.pow(2).mean(-1, keepdim=True) + norm.eps).rsqrt() * norm.weight
    proj = model.get_submodule(f"{part}.{letter}_proj")
    rows = slice(number * 12, (number + 1) * 12)
    made = F.linear(x, proj.weight[rows], proj.bias[rows])

    def put(tensor, hook):
        tensor[:, :, number] = made

    by_hand = model.run_with_hooks(**runs["clean"], fwd_hooks=[(hook, put)])
    logits = pair.run(Circuit.full(pair.graph).without(sender, receiver))
    assert_close(logits, by_hand, rtol=1e-4, atol=1e-4)
    assert (logits - pair.logits("clean")).abs().max() > 1e-3


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_ablated_inputs_keep_to_their_places_where_audio_is_a_prefix(ablation):
    """All edges but the audio's: its positions get its mean or nothing, the text's stay."""
    pair = qwen2("mha", [[61]])
    runs = pair.runs
    edges = [e for e in Circuit.full(pair.graph).edges if e[0] != "audio"]
    heard = runs["clean"]["tokens"] == tiny_qwen2.AUDIO
    with torch.no_grad():
        embed = pair.model.run_with_cache(**runs["reference"])[1]["hook_decoder_embed"]
        mean = embed[heard].mean(0) * (ablation == "mean")
        put = [("hook_decoder_embed", lambda x, hook: torch.where(heard[..., None], mean, x))]
        expected = pair.model.run_with_hooks(**runs["clean"], fwd_hooks=put)
    logits = pair.run(Circuit.of(pair.graph, edges), ablation=ablation)
    assert_close(logits, expected, rtol=1e-4, atol=1e-4)


# Choosing


def test_pruning_changes_no_logit(double):
    everything = Circuit.full(double.graph).edges
    circuit = Circuit.of(double.graph, random.Random(3).sample(everything, 200))
    pruned = circuit.pruned()
    assert 0 < len(pruned) < 200
    assert set(pruned.edges) < set(circuit.edges)
    assert_close(double.run(pruned), double.run(circuit), rtol=1e-9, atol=1e-9)


def tiny_graph():
    """One stream, one head, one MLP: q, k, v read 1 sender, the MLP 2, the logits 3."""
    writes = [Write("embed", "e"), Write("attn", "z", 1), Write("mlp", "m")]
    attn = [Read("attn", f"{x}_input", "pre", "ln1", 0, 1, x, 1) for x in "qkv"]
    others = [Read("mlp", "in", "mid", "ln2", 0, 2), Read("logits", "post", "post", None, 0, 3)]
    return Graph(writes, [*attn, *others])


def scored(**scores):
    """A result over that graph; `embed_to_mlp=3.0` is the score of an edge."""
    graph = tiny_graph()
    tensor = torch.zeros(graph.edges.shape)
    ends = {"head": "attn.h0", "q": "attn.h0.q", "k": "attn.h0.k", "v": "attn.h0.v"}
    for name, score in scores.items():
        tensor[graph.place(*(ends.get(end, end) for end in name.split("_to_")))] = score
    return EdgeResult(graph, tensor, 1.0, 0.0, "metric", "plain", 1, "model")


RESULT = scored(
    embed_to_q=9.0,
    embed_to_v=-2.0,
    embed_to_mlp=5.0,
    head_to_mlp=-1.0,
    head_to_logits=4.0,
    mlp_to_logits=0.5,
)


def test_a_circuit_grows_from_the_logits_by_its_strongest_edges_either_way():
    sizes = [set(RESULT.circuit(n_edges=n).edges) for n in range(7)]
    first = {("attn.h0", "logits"), ("embed", "attn.h0.q")}
    assert sizes[0] == sizes[1] == set()  # the first edge has no input behind it yet
    assert sizes[2] == first
    assert sizes[3] == first | {("embed", "attn.h0.v")}
    assert sizes[4] == sizes[3]  # the MLP's way to the logits, without an input of its own
    assert sizes[5] == sizes[3] | {("mlp", "logits"), ("embed", "mlp")}
    assert sizes[6] == sizes[5] | {("attn.h0", "mlp")}
    assert RESULT.circuit(n_edges=99).edges == Circuit.full(RESULT.graph).edges


def test_a_threshold_keeps_strong_edges_that_lead_from_an_input_to_the_logits():
    assert set(RESULT.circuit(threshold=0.5).edges) == set(RESULT.circuit(n_edges=6).edges)
    strong = RESULT.circuit(threshold=1.0)  # without the MLP's way to the logits
    assert set(strong.edges) == set(RESULT.circuit(n_edges=3).edges)
    assert strong.nodes == ["embed", "attn.h0"]
    assert RESULT.circuit(threshold=10.0).edges == []


@pytest.mark.parametrize("options", [{}, {"n_edges": 3, "threshold": 1.0}, {"n_edges": -1}])
def test_a_circuit_is_asked_for_in_one_way(options):
    with pytest.raises(CircuitError, match=r"give one|from 0 on"):
        RESULT.circuit(**options)


def test_a_circuit_is_saved_and_loaded(tmp_path):
    circuit = RESULT.circuit(n_edges=3)
    circuit.save(tmp_path / "circuit.json")
    loaded = Circuit.load(tmp_path / "circuit.json")
    assert loaded.graph == circuit.graph
    assert loaded.edges == circuit.edges
    assert list(circuit.to_pandas().itertuples(index=False, name=None)) == circuit.edges
    (tmp_path / "other.json").write_text(json.dumps({"edges": []}))
    with pytest.raises(ResultError, match="holds no saved circuit"):
        Circuit.load(tmp_path / "other.json")


def test_what_is_no_edge_is_no_circuits():
    graph = tiny_graph()
    with pytest.raises(GraphError, match=r"'attn\.h0\.q' reads no stream that 'mlp'"):
        Circuit.of(graph, [("mlp", "attn.h0.q")])
    with pytest.raises(CircuitError, match="must be edges of its graph"):
        Circuit(graph, torch.ones_like(graph.edges))


# Faithfulness


def test_faithfulness_is_a_share_of_what_the_reference_takes_away(double, result):
    circuits = [result.circuit(n_edges=n) for n in (0, 40, 10_000)]
    measured = faithfulness(double.model, circuits, **double.runs, metric=METRIC, progress=False)
    clean, empty = (float(METRIC(double.logits(name)).mean()) for name in double.runs)
    middle = float(METRIC(double.run(circuits[1])).mean())
    assert (measured.clean, measured.empty) == pytest.approx((clean, empty))
    assert measured.values == pytest.approx([empty, middle, clean], abs=1e-6)
    share = (middle - empty) / (clean - empty)
    assert measured.faithfulness == pytest.approx([0, share, 1], abs=1e-6)
    assert measured.n_edges == [0, len(circuits[1]), len(circuits[2])]
    assert measured.n_nodes == [0, len(circuits[1].nodes), len(circuits[2].nodes)]
    assert measured.all_edges == len(Circuit.full(double.graph))


def test_under_another_ablation_the_empty_circuit_is_the_measure(double):
    circuits = [Circuit.of(double.graph, []), Circuit.full(double.graph)]
    measured = faithfulness(
        double.model, circuits, **double.runs, metric=METRIC, ablation="zero", progress=False
    )
    empty = double.run(circuits[0], ablation="zero")
    assert measured.empty == pytest.approx(float(METRIC(empty).mean()))
    assert measured.faithfulness == pytest.approx([0, 1])


def test_faithfulness_is_saved_loaded_and_drawn(tmp_path):
    measured = FaithfulnessResult(
        [30, 10], [9, 4], [2.0, math.nan], 3.0, 1.0, 50, "metric", "reference", "model"
    )
    measured.save(tmp_path / "faithfulness.json")
    loaded = FaithfulnessResult.load(tmp_path / "faithfulness.json")
    assert loaded.faithfulness == pytest.approx([0.5, math.nan], nan_ok=True)
    assert loaded.to_pandas().to_dict("list")["edges"] == [30, 10]
    points = measured.plot().to_dict()["data"]["values"]
    drawn = [point for point in points if point["line"] == "circuit"]
    assert drawn == [{"edges (of 50)": "30", "faithfulness": 0.5, "line": "circuit"}]
    measured.save(tmp_path / "faithfulness.svg")
    assert "faithfulness" in (tmp_path / "faithfulness.svg").read_text()
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ResultError, match="holds no saved faithfulness"):
        FaithfulnessResult.load(tmp_path / "other.json")


def test_what_cannot_be_run_is_refused(double):
    with pytest.raises(CircuitError, match="ablations are 'reference', 'zero', 'mean'; got 'none'"):
        double.run(Circuit.full(double.graph), ablation="none")
    with pytest.raises(CircuitError, match="another model's graph"):
        faithfulness(
            double.model,
            [Circuit.full(double.graph), Circuit.full(tiny_graph())],
            **double.runs,
            metric=METRIC,
            progress=False,
        )
    with pytest.raises(CircuitError, match="list of circuits is empty"):
        faithfulness(double.model, [], **double.runs, metric=METRIC)
    mel, tokens = double.runs["reference"]
    with pytest.raises(EdgeError, match="positions must answer to each other"):
        run_circuit(
            double.model,
            Circuit.full(double.graph),
            clean=double.runs["clean"],
            reference=(mel, tokens[:, :3]),
        )
