"""Path patching against its definition written out, in hooks on the reference's own modules."""

from itertools import product

import pytest
import tiny
import tiny_qwen2
import torch

from hooked_asr.hooks import HookError
from hooked_asr.interventions import Site
from hooked_asr.patching import PathError, components, heads, logit_diff, path_patching

A, B = 11, 23
METRIC = logit_diff(A, B)
FREEZE = ("attn", "cross_attn", "mlp")


class Case:
    """A model of ours, the reference, and two runs for each."""

    def __init__(self, ours, hf, clean, reference, theirs, modules):
        self.ours, self.hf, self.clean, self.reference = ours, hf, clean, reference
        self.theirs, self.modules = theirs, modules


def whisper_case():
    model = tiny.hooked("unequal_heads")
    runs = [
        dict(zip(("mel", "tokens"), tiny.inputs(model, seed=seed), strict=True)) for seed in (0, 1)
    ]

    def theirs(run):
        return {"input_features": run["mel"], "decoder_input_ids": run["tokens"]}

    return Case(model, tiny.hf_whisper("unequal_heads"), *runs, theirs, WHISPER)


def qwen2_case():
    model = tiny_qwen2.hooked("gqa")
    runs = [tiny_qwen2.inputs(frames=[[61], [100]], seed=seed) for seed in (0, 1)]
    return Case(model, tiny_qwen2.hf_qwen2_audio("gqa"), *runs, tiny_qwen2.hf_inputs, QWEN2)


# Where each hook's tensor is in the reference: a module, and whether it goes in or comes out.
_ATTENTION = {"q": "q_proj out", "k": "k_proj out", "v": "v_proj out"}
_WHISPER_BLOCK = {
    "attn": {"z": "self_attn.out_proj in"}
    | {name: f"self_attn.{where}" for name, where in _ATTENTION.items()},
    "cross_attn": {"z": "encoder_attn.out_proj in"}
    | {name: f"encoder_attn.{where}" for name, where in _ATTENTION.items()},
    "mlp": {"pre": "fc1 out", "post": "fc2 in"},
}
_QWEN2_BLOCK = {
    "attn": {"z": "self_attn.o_proj in"}
    | {name: f"self_attn.{where}" for name, where in _ATTENTION.items()},
    "mlp": {
        "pre": "mlp.gate_proj out",
        "pre_linear": "mlp.up_proj out",
        "post": "mlp.down_proj in",
    },
}
WHISPER = {
    "encoder": ("model.encoder.layers", {p: _WHISPER_BLOCK[p] for p in ("attn", "mlp")}),
    "decoder": ("model.decoder.layers", _WHISPER_BLOCK),
}
QWEN2 = {
    "encoder": ("model.audio_tower.layers", WHISPER["encoder"][1]),
    "decoder": ("model.language_model.layers", _QWEN2_BLOCK),
}


def module_of(case, hook):
    """The reference's module for a hook, and which of its sides."""
    stack, layer, part, leaf = hook.split(".")
    path, block = case.modules[stack]
    name, side = block[part][leaf.removeprefix("hook_")].split()
    return case.hf.get_submodule(f"{path}.{layer}.{name}"), side


@torch.no_grad()
def hf_run(case, run, edits=None, keep=()):
    """The reference's logits with `edits` (hook -> function of the tensor), and what it passed."""
    kept, handles = {}, []

    def attach(hook, act):
        module, side = module_of(case, hook)
        if side == "in":
            handles.append(module.register_forward_pre_hook(lambda module, args: (act(args[0]),)))
        else:
            handles.append(module.register_forward_hook(lambda module, args, out: act(out)))

    for hook, edit in (edits or {}).items():
        attach(hook, edit)
    for hook in keep:
        attach(hook, lambda x, hook=hook: kept.setdefault(hook, x))
    logits = case.hf(**case.theirs(run), use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, kept


def put(site, source, d_head):
    """A function that puts what `source` has at a site into what passes."""

    def edit(x):
        x = x.clone()
        units = list(range(x.shape[-1])) if site.neurons is None else list(site.neurons)
        if site.heads is not None:
            units = [head * d_head + i for head in site.heads for i in range(d_head)]
        for position in range(x.shape[1]) if site.positions is None else site.positions:
            x[:, position, units] = source[:, position, units]
        return x

    return edit


def slow(case, sender, receivers, freeze=FREEZE):
    """Two whole runs of the reference, every frozen tensor put back by a hook of its own."""
    frozen = {"attn": "attn.hook_z", "cross_attn": "cross_attn.hook_z", "mlp": "mlp.hook_post"}
    held = [
        f"{stack}.{layer}.{frozen[part]}"
        for stack, part in product(("encoder", "decoder"), freeze)
        if part in case.modules[stack][1]
        for layer in range(case.ours.config.stack(stack).n_layers)
    ]
    every = list(dict.fromkeys([*held, sender.hook]))
    _, clean = hf_run(case, case.clean, keep=every)
    _, reference = hf_run(case, case.reference, keep=[sender.hook])
    first = {hook: (lambda x, hook=hook: clean[hook]) for hook in held}
    send = put(sender, reference[sender.hook], d_head(case, sender))
    first[sender.hook] = (lambda x: send(clean[sender.hook])) if sender.hook in held else send
    logits, read = hf_run(case, case.clean, first, [site.hook for site in receivers])
    if receivers:
        second = {}
        for site in receivers:
            edit = put(site, read[site.hook], d_head(case, site))
            second[site.hook] = chained(second.get(site.hook), edit)
        logits, _ = hf_run(case, case.clean, second)
    return float(METRIC(logits).mean())


def chained(first, second):
    return second if first is None else lambda x: second(first(x))


def d_head(case, site):
    return case.ours.config.stack(site.hook.split(".")[0]).d_head


CASES = {"whisper": whisper_case, "qwen2": qwen2_case}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


def patched(case, senders, receivers, **options):
    return path_patching(
        case.ours,
        clean=case.clean,
        reference=case.reference,
        senders=senders,
        receivers=receivers,
        metric=METRIC,
        progress=False,
        **options,
    )


def check(case, senders, receivers, freeze=FREEZE, read=None):
    """One sender after the other against the reference; `read` are the hooks of the receivers."""
    result = patched(case, senders, receivers, freeze=freeze)
    read = receivers if read is None else read
    expected = torch.tensor([slow(case, sender, read, freeze) for sender in senders])
    torch.testing.assert_close(result.values[0], expected, atol=1e-5, rtol=0)
    assert (expected - result.clean).abs().min() > 2e-5  # each of them is heard


def z(place, heads=None, positions=None):
    return Site(f"{place}.hook_z", heads, positions)


FREEZES = [FREEZE, ("attn", "cross_attn"), ("mlp",), ()]


@pytest.mark.parametrize("freeze", FREEZES, ids=lambda freeze: "+".join(freeze) or "nothing")
def test_decoder_to_decoder_equals_two_runs_of_the_reference(case, freeze):
    senders = [
        z("decoder.0.attn", 0),
        z("decoder.0.attn", (1, 3)),
        Site("decoder.0.mlp.hook_post"),
        Site("decoder.0.mlp.hook_post", neurons=(2, 7, 31)),
    ]
    for receiver in (
        Site("decoder.1.attn.hook_q", heads=3),
        Site("decoder.1.attn.hook_k", heads=1),
        Site("decoder.1.attn.hook_v", heads=(0, 1)),
        Site("decoder.1.mlp.hook_pre"),
    ):
        check(case, senders, [receiver], freeze)


@pytest.mark.parametrize("freeze", FREEZES, ids=lambda freeze: "+".join(freeze) or "nothing")
def test_to_the_logits(case, freeze):
    senders = [z("decoder.0.attn", 0), z("decoder.1.attn", 3), Site("decoder.1.mlp.hook_post")]
    check(case, senders, "logits", freeze, read=[])


@pytest.mark.parametrize("freeze", FREEZES[:2], ids="+".join)
def test_encoder_to_encoder(case, freeze):
    senders = [
        z("encoder.0.attn", 0),
        z("encoder.0.attn", 1, (3, 4)),
        Site("encoder.0.mlp.hook_post"),
    ]
    for name in ("attn.hook_q", "attn.hook_v"):
        check(case, senders, [Site(f"encoder.1.{name}", heads=1)], freeze)
    check(case, senders, [Site("encoder.1.mlp.hook_pre", neurons=range(9))], freeze)


@pytest.mark.parametrize("freeze", FREEZES, ids=lambda freeze: "+".join(freeze) or "nothing")
def test_encoder_to_the_decoder_that_hears_it(case, freeze):
    """Through the rest of the encoder, its final norm, and (Qwen2-Audio) pool and projector."""
    senders = [z("encoder.0.attn", 0), z("encoder.1.attn", 1), Site("encoder.1.mlp.hook_post")]
    part = "attn" if case.ours.config.prefix else "cross_attn"
    for layer, name in ((0, "hook_k"), (1, "hook_v")):
        check(case, senders, [Site(f"decoder.{layer}.{part}.{name}", heads=1)], freeze)


def test_within_one_layer_and_to_queries_of_cross_attention():
    case = whisper_case()
    senders = [z("decoder.1.attn", 0), z("decoder.0.cross_attn", (1, 2)), z("decoder.0.attn", 5)]
    check(case, senders, [Site("decoder.1.cross_attn.hook_q", heads=3)])
    senders = [z("decoder.1.attn", 0), z("decoder.1.cross_attn", (1, 2))]
    check(case, senders, [Site("decoder.1.mlp.hook_pre")])


def test_several_receivers_at_once_and_positions_of_both(case):
    senders = [z("decoder.0.attn", 0, (1, 4, 5)), Site("decoder.0.mlp.hook_post", positions=(4, 5))]
    receivers = [
        Site("decoder.1.attn.hook_q", heads=2, positions=(4, 5)),
        Site("decoder.1.attn.hook_q", heads=0),
        Site("decoder.1.attn.hook_k", heads=0, positions=5),
        Site("decoder.1.attn.hook_v", heads=1, positions=(0, 1, 4)),
        Site("decoder.1.mlp.hook_pre", positions=(5, 6)),
    ]
    for freeze in FREEZES[:2]:
        check(case, senders, receivers, freeze)


def test_the_name_of_a_part_means_all_that_it_reads(case):
    senders = [z("decoder.0.attn", 0)]
    mlp = [Site(name) for name in case.ours.hook_table if name.startswith("decoder.1.mlp.hook_pre")]
    assert len(mlp) == (2 if case.ours.config.prefix else 1)
    check(case, senders, ["decoder.1.mlp"], read=mlp)
    attn = [Site(f"decoder.1.attn.hook_{name}") for name in "qkv"]
    check(case, senders, ["decoder.1.attn"], read=attn)
    sites = [Site(f"encoder.1.attn.hook_{name}", heads=1) for name in "qkv"]
    check(case, [z("encoder.0.attn", 0)], ["encoder.1.attn.1"], read=sites)


def test_what_a_part_writes_is_what_is_inside_it(case):
    """A head by its z or its result, an MLP by its neurons or what it writes."""
    for inside, outside in (
        (z("decoder.0.attn", 1), Site("decoder.0.attn.hook_result", 1)),
        (z("decoder.0.attn"), Site("decoder.0.hook_attn_out")),
        (Site("decoder.0.mlp.hook_post"), Site("decoder.0.hook_mlp_out")),
        (z("encoder.1.attn"), Site("encoder.1.hook_attn_out")),
    ):
        part = "attn" if case.ours.config.prefix else "cross_attn"
        to = f"decoder.1.{part}.hook_k" if "encoder" in inside.hook else "decoder.1.attn.hook_k"
        values = patched(case, [inside, outside], [Site(to, heads=0)]).values[0]
        assert values[0].item() == pytest.approx(values[1].item(), abs=1e-5)


def test_what_a_projection_reads_is_received_as_what_it_gives(case):
    senders = ["decoder.0.attn.0", "decoder.0.mlp"]
    for inside, outside in (
        (Site("decoder.1.attn.hook_q", heads=2), Site("decoder.1.attn.hook_q_input", heads=2)),
        (Site("decoder.1.attn.hook_v", heads=1), Site("decoder.1.attn.hook_v_input", heads=1)),
        ("decoder.1.mlp", "decoder.1.mlp.hook_in"),
    ):
        values = [patched(case, senders, [receiver]).values for receiver in (inside, outside)]
        torch.testing.assert_close(*values, atol=1e-5, rtol=0)


# --- What holds of all of them --------------------------------------------------------------------


@pytest.mark.parametrize("freeze", FREEZES, ids=lambda freeze: "+".join(freeze) or "nothing")
def test_all_that_is_written_sent_to_the_logits_is_the_reference_run(freeze):
    """With the same text, all that the layers write is all in which two streams differ."""
    case = whisper_case()
    case.reference = {**case.reference, "tokens": case.clean["tokens"]}
    result = patched(case, "decoder.*_out", "logits", freeze=freeze)
    assert result.values.item() == pytest.approx(result.reference, abs=1e-5)
    assert abs(result.reference - result.clean) > 1e-2


def test_a_head_sent_to_the_logits_is_its_write_through_the_final_norm(case):
    """A closed form: the clean stream and what the head writes more, normed anew, unembedded."""
    model = case.ours
    result = patched(case, heads("decoder.attn"), "logits")
    with torch.no_grad():
        (_, clean), (_, reference) = (
            model.run_with_cache(**run) for run in (case.clean, case.reference)
        )
        more = reference.stack_head_results(module="attn")[0]
        more = more - clean.stack_head_results(module="attn")[0]
        last = model.config.decoder.n_layers - 1
        stream = clean[f"decoder.{last}.hook_resid_post"] + more
        logits = model.decoder_final_ln(stream) @ model.W_U
        expected = torch.stack([METRIC(one).mean() for one in logits])
    torch.testing.assert_close(result.values.flatten(), expected, atol=1e-5, rtol=0)
    assert result.axes == {"layer": [0, 1], "head": list(range(model.config.decoder.n_heads))}


def test_a_stream_carries_all_that_is_before_it(case):
    """With nothing frozen, a stream to the logits is all there is to patch."""
    result = patched(case, ["decoder.1.resid_post"], "logits")
    assert result.values.item() == pytest.approx(result.reference, abs=1e-5)
    swapped = patched(case, ["decoder.0.resid_pre"], "logits")
    assert abs(swapped.values.item() - swapped.reference) > 1e-3  # what is frozen says what it said


def test_a_reference_that_is_the_clean_run_tells_nothing(case):
    result = path_patching(
        case.ours,
        clean=case.clean,
        reference=case.clean,
        senders=components("decoder", ["attn", "mlp"]),
        receivers=["decoder.1.attn", "decoder.1.mlp"],
        metric=METRIC,
        progress=False,
    )
    assert result.change.abs().max() < 1e-5


def test_the_model_is_left_without_hooks_and_runs_as_before(case):
    before = case.ours(**case.clean)
    patched(case, heads("encoder.attn"), ["encoder.1.mlp"])
    assert not case.ours.has_hooks
    assert torch.equal(case.ours(**case.clean), before)


# --- Grids, names, errors -------------------------------------------------------------------------


def test_in_a_grid_whoever_comes_too_late_changes_nothing(case):
    result = patched(case, heads("decoder.attn"), ["decoder.1.attn.hook_q"])
    n_heads = case.ours.config.decoder.n_heads
    assert (result.change[1] == 0).all()
    assert (result.change[0] != 0).all()
    assert result.values.shape == (2, n_heads)
    assert result.operation == "path patching to decoder.1.attn.hook_q"
    assert result.to_pandas()["site"][0] == "decoder.0.attn.0"


def test_frozen_heads_carry_nothing_from_one_position_to_another(case):
    """On the direct path a position speaks to itself alone."""
    last = case.clean["tokens"].shape[1] - 1
    sites = heads("decoder.attn", positions=[last - 1, last])
    direct = patched(case, sites, [Site("decoder.1.attn.hook_q", positions=last)])
    assert list(direct.axes) == ["layer", "head", "position"]
    assert direct.change[0, :, 0].abs().max() < 1e-5 < direct.change[0, :, 1].abs().min()


def test_a_list_names_its_senders(case):
    result = patched(case, ["decoder.0.attn.1", "decoder.0.mlp"], "logits")
    assert result.operation == "path patching to the logits"
    names = ["decoder.0.attn.1", "decoder.0.mlp"]
    assert result.axes == {"operation": [result.operation], "site": names}
    assert list(result.to_pandas()["site"]) == names
    assert patched(case, names[0], "logits").values.item() == result.values[0, 0].item()
    result.plot()


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        (["decoder.1.attn.0"], ["decoder.0.mlp"], "no path leads from decoder.1.attn.0 to decoder"),
        (["decoder.1.attn.0"], ["decoder.1.attn.hook_q"], "a sender comes before a receiver"),
        (heads("decoder.attn"), ["decoder.0.attn.hook_q"], "from any of the senders"),
        (["decoder.0.mlp"], ["encoder.1.mlp"], "no path"),
        (["decoder.0.attn.hook_q"], "logits", "writes nothing to a stream"),
        (["decoder.0.ln1.hook_scale"], "logits", "writes nothing to a stream"),
        (["encoder.0.mlp"], ["decoder.1.hook_resid_pre"], "reads no stream"),
        (["encoder.0.mlp"], ["logits", "decoder.1.mlp"], "receive alone"),
        (["encoder.0.mlp"], [], "there is no receiver"),
    ],
)
def test_what_has_no_path_is_refused(case, senders, receivers, message):
    with pytest.raises(PathError, match=message):
        patched(case, senders, receivers)


def test_what_whisper_has_no_path_for():
    case = whisper_case()
    for name in ("hook_k", "hook_v_input"):
        with pytest.raises(PathError, match="hear the encoder alone"):
            patched(case, ["decoder.0.mlp"], [Site(f"decoder.1.cross_attn.{name}", heads=0)])
    for receivers in ("logits", ["decoder.1.mlp"]):
        with pytest.raises(PathError, match="where cross_attn is frozen"):
            patched(case, ["encoder.1.mlp"], receivers)
        patched(case, ["encoder.1.mlp"], receivers, freeze=["mlp"])
    with pytest.raises(PathError, match="no path"):
        patched(case, ["encoder.1.mlp"], ["decoder.0.attn"], freeze=[])
    with pytest.raises(PathError, match="do not count the same heads or positions"):
        patched(case, ["encoder.1.mlp"], [Site("decoder.1.cross_attn.hook_z", 0, positions=1)])


def test_heads_that_share_keys_are_not_received_whole():
    case = qwen2_case()
    with pytest.raises(PathError, match="do not count the same heads"):
        patched(case, ["decoder.0.mlp"], ["decoder.1.attn.3"])


def test_other_mistakes_are_named(case):
    with pytest.raises(PathError, match="attn, cross_attn, mlp; got 'norm'"):
        patched(case, "decoder.0.mlp", "logits", freeze=["norm"])
    shorter = {**case.reference, "tokens": case.reference["tokens"][:, :-1]}
    with pytest.raises(PathError, match="positions must answer"):
        path_patching(
            case.ours,
            clean=case.clean,
            reference=shorter,
            senders="decoder.0.mlp",
            receivers="logits",
            metric=METRIC,
        )
    with pytest.raises(HookError, match="position 300"):
        patched(case, "decoder.0.mlp", [Site("decoder.1.mlp.hook_pre", positions=300)])
