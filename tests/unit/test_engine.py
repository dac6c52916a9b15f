"""The sweep engine against one whole hooked forward for each row."""

import gc
import weakref

import pytest
import tiny_qwen2
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import hooked, inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hooked_asr import FrontEndConfig, HookedWhisper, ModelConfig, StackConfig
from hooked_asr.hooks import HookError
from hooked_asr.interventions import (
    InterventionError,
    Site,
    add,
    custom,
    interpolate,
    mean,
    replace,
    zero,
)
from hooked_asr.patching import log_prob, logit_diff, transcript_log_prob
from hooked_asr.patching.engine import MemoryLimitError, run_rows
from hooked_asr.patching.engine.memory import as_bytes

A, B = 11, 23  # two tokens


@torch.no_grad()
def one_by_one(model, run, rows, metric):
    """The slow, obvious way."""
    logits = [model.run_with_hooks(**run, fwd_hooks=hooks) for hooks in rows]
    return torch.stack([torch.as_tensor(metric(one)).float().mean() for one in logits])


def check(model, run, rows, metric, **options):
    found = run_rows(model, run, rows, metric, **options)
    expected = one_by_one(model, run, rows, metric)
    torch.testing.assert_close(found.values, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    with torch.no_grad():
        clean = torch.as_tensor(metric(model(**run))).float().mean()
    torch.testing.assert_close(torch.tensor(found.clean), clean, atol=1e-5, rtol=1e-5)
    assert not model.has_hooks
    return found


@torch.no_grad()
def everything(model, run):
    """Every activation of a run, lazy ones too."""
    return model.run_with_cache(**run, names_filter=lambda name: True)[1]


def whisper_runs(model, n_clips=1):
    runs = [inputs(model, seed=seed) for seed in (0, 1)]
    return [{"mel": mel[:n_clips], "tokens": tokens[:n_clips]} for mel, tokens in runs]


def of_its_own(x, hook):
    """A user's function, which looks at more than one position."""
    return 0.5 * x + x.mean(hook.spec.position_axis, keepdim=True)


def every_row(table, cache):
    """Each kind of intervention at every hook: whole, at positions, in one head or neuron."""
    for name, spec in table.items():
        unit = "neurons" if spec.head_axis is None else "heads"
        if "hook_scale" in name:  # nothing is finite where it is 0
            yield [interpolate(Site(name, positions=slice(2, None)), cache, 0.5)]
            continue
        yield [zero(Site(name))]
        yield [interpolate(Site(name), cache, 0.5)]
        yield [replace(Site(name, positions=(1, 2), **{unit: 0}), cache)]
        yield [mean(Site(name, positions=2), cache)]
        yield [mean(Site(name, positions=(1, 3)))]
        yield [zero(Site(name, positions=slice(2, None)))]
        yield [custom(Site(name, positions=1), of_its_own)]


METRICS = {
    "last": lambda run: logit_diff(A, B),
    "within": lambda run: log_prob(A, pos=3),
    "first": lambda run: log_prob(A, pos=0),
    "transcript": lambda run: transcript_log_prob(run["tokens"], 2),
    "function": lambda run: lambda logits: logits[..., A].mean(1) - logits[:, 2, B],
}
every_metric = pytest.mark.parametrize("metric", METRICS)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("n_clips", [1, 2])
@every_metric
def test_every_hook_of_a_whisper(n_clips, metric):
    model = hooked("deep_decoder")
    clean, reference = whisper_runs(model, n_clips)
    rows = list(every_row(model.hook_table, everything(model, reference)))
    found = check(model, clean, rows, METRICS[metric](clean))
    assert found.plain == ()


QWEN_BATCHES = {
    "one_clip": {"frames": [[61]]},
    "several_clips": {"frames": [[40, 61]]},
    "left_padded": {"frames": [[61, 100], [40]]},
    "right_padded": {"frames": [[61, 100], [40]], "side": "right"},
    "text_only": {"frames": [[]]},
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("batch", QWEN_BATCHES)
@pytest.mark.parametrize("metric", ["last", "within", "function"])
def test_every_hook_of_a_qwen2_audio(batch, metric):
    model = tiny_qwen2.hooked("gqa")
    clean = tiny_qwen2.inputs(**QWEN_BATCHES[batch])
    reference = clean
    if "mel" in clean:
        reference = clean | {"mel": tiny_qwen2.inputs(**QWEN_BATCHES[batch], seed=1)["mel"]}
    cache = everything(model, reference)
    rows = [
        row for row in every_row(model.hook_table, cache) if batch != "text_only" or _heard(row)
    ]
    assert check(model, clean, rows, METRICS[metric](clean)).plain == ()


def _heard(row):
    """Whether a run over text alone passes there."""
    return row[0].site.hook.startswith(("decoder", "hook_decoder", "unembed"))


# --- Shapes, sites and operations, drawn ----------------------------------------------------------


def stacks(n_ctx):
    return st.builds(
        StackConfig,
        n_layers=st.integers(1, 3),
        n_heads=st.sampled_from([1, 2, 4]),
        d_model=st.just(8),
        d_mlp=st.sampled_from([6, 16]),
        n_ctx=st.just(n_ctx),
        activation=st.sampled_from(["gelu", "relu"]),
    )


@st.composite
def interventions(draw, model, cache, n_pos):
    """One intervention anywhere."""
    name = draw(st.sampled_from([n for n, spec in model.hook_table.items() if "scale" not in n]))
    spec = model.hook_table[name]
    shape = cache[name].shape
    last = min(shape[spec.position_axis], 12) - 1
    chosen = st.lists(st.integers(0, last), min_size=1, max_size=3)
    positions = draw(
        st.none() | chosen | st.integers(0, min(last, n_pos - 2)).map(lambda p: slice(p, None))
    )
    unit, axis = ("neurons", -1) if spec.head_axis is None else ("heads", spec.head_axis)
    units = draw(st.none() | st.lists(st.integers(0, shape[axis] - 1), min_size=1, max_size=2))
    site = Site(name, positions=positions, **{unit: units})
    width = len(units) if unit == "neurons" and units else shape[-1]
    actions = [
        zero(site),
        replace(site, cache),
        interpolate(site, cache, draw(st.floats(0, 1))),
        mean(site, cache),
        mean(site),
        custom(site, of_its_own),
    ]
    if spec.axes[-1] not in ("key", "audio"):
        actions.append(add(site, torch.linspace(-1, 1, width)))
    return draw(st.sampled_from(actions))


@pytest.mark.usefixtures("unchecked")
@given(encoder=stacks(4), decoder=stacks(9), n_clips=st.integers(1, 2), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_rows_of_any_model_equal_the_loop(encoder, decoder, n_clips, data):
    model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=3), encoder, decoder, d_vocab=30))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    model.init_weights(std=0.5)
    n_pos = data.draw(st.integers(4, 9))
    clean, reference = (
        {"mel": torch.randn(n_clips, 3, 8), "tokens": torch.randint(30, (n_clips, n_pos))}
        for _ in range(2)
    )
    cache = everything(model, reference)
    one = interventions(model, cache, n_pos)
    rows = data.draw(st.lists(st.lists(one, min_size=1, max_size=3), min_size=1, max_size=12))
    metric = METRICS[data.draw(st.sampled_from(sorted(METRICS)))](clean)
    values = check(model, clean, rows, metric).values
    least = _least(model, clean, rows, metric)
    small = run_rows(model, clean, rows, metric, memory=least).values
    torch.testing.assert_close(small, values, atol=1e-5, rtol=1e-5, equal_nan=True)


def _least(model, run, rows, metric):
    """The smallest limit that is not refused."""
    low, high = 0, 2**30
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _plan(model, run, rows, metric).chunks(middle)
            high = middle
        except MemoryLimitError:
            low = middle
    return high


def _plan(model, run, rows, metric):
    from hooked_asr.patching.engine.plan import Plan

    return Plan(model, run, [tuple(row) for row in rows], metric)


# --- How little is computed -----------------------------------------------------------------------


class _Shapes:
    """Notes what a module's projection is given, without being a hook of ours."""

    def __init__(self, module):
        self.shapes = []
        self._handle = module.register_forward_pre_hook(self._note)

    def _note(self, module, args):
        self.shapes.append(tuple(args[0].shape))

    def __enter__(self):
        return self.shapes

    def __exit__(self, *error):
        self._handle.remove()


def test_rows_join_at_their_layer_and_from_their_first_position():
    model = hooked("deep_decoder")
    clean, _ = whisper_runs(model)
    n_pos = clean["tokens"].shape[1]
    rows = [
        [zero(f"decoder.{layer}.cross_attn.{head}@4")] for layer in range(3) for head in range(4)
    ]
    shapes = [_Shapes(model.decoder[layer].mlp) for layer in range(3)]
    with shapes[0] as first, shapes[1] as second, shapes[2] as last:
        run_rows(model, clean, rows, logit_diff(A, B))
    # The clean run, then: rows of earlier layers, and those that join inside this one. Of the last
    # layer only what is read.
    assert [shape[:2] for shape in first] == [(1, n_pos), (4, n_pos - 4)]
    assert [shape[:2] for shape in second] == [(1, n_pos), (4, n_pos - 4), (4, n_pos - 4)]
    assert [shape[:2] for shape in last] == [(1, n_pos), (8, 1), (4, 1)]


def test_the_encoder_and_its_keys_are_computed_once_and_only_read_positions_unembedded():
    model = hooked("deep_decoder")
    clean, _ = whisper_runs(model)
    rows = [[zero(f"decoder.1.attn.{head}")] for head in range(4)]
    with (
        _Shapes(model.encoder[0].mlp) as encoded,
        _Shapes(model.decoder[2].cross_attn.k_proj) as keys,
        _Shapes(model.unembed) as read,
    ):
        run_rows(model, clean, rows, logit_diff(A, B))
    assert len(encoded) == len(keys) == 1
    assert [shape[:2] for shape in read] == [(1, 1), (4, 1)]


def test_nothing_behind_the_last_position_read_is_computed():
    model = hooked("deep_decoder")
    clean, _ = whisper_runs(model)
    rows = [[zero("decoder.1.mlp@2")], [zero("decoder.1.mlp@5")]]
    with _Shapes(model.decoder[2].mlp) as last:
        found = run_rows(model, clean, rows, log_prob(A, pos=3))
    assert [shape[1] for shape in last] == [clean["tokens"].shape[1], 1]
    assert found.values[1] == found.clean  # what comes later changes nothing


# --- Memory ---------------------------------------------------------------------------------------


class _Peak(TorchDispatchMode):
    """The most bytes of new tensors that lived at the same time."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if torch.is_tensor(x)}
        for x in tree_leaves(out):
            if not torch.is_tensor(x) or x.untyped_storage().data_ptr() in old:
                continue
            storage = x.untyped_storage()
            n_bytes = storage.nbytes()
            self.now += n_bytes
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, n_bytes)
        return out

    def _gone(self, n_bytes):
        self.now -= n_bytes


def _wide(n_layers=3):
    encoder = StackConfig(n_layers, 4, 64, 256, n_ctx=100)
    decoder = StackConfig(n_layers, 4, 64, 256, n_ctx=64)
    model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=8), encoder, decoder, d_vocab=500))
    run = {"mel": torch.randn(1, 8, 200), "tokens": torch.randint(500, (1, 40))}
    return model, run


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spare", [1.0, 2.0, 5.0])
@pytest.mark.parametrize(
    "part", ["decoder.{}.cross_attn.{}", "decoder.{}.attn.{}@9", "encoder.{}.attn.{}"]
)
@pytest.mark.parametrize("metric", [logit_diff(A, B), lambda logits: logits[..., A].mean(1)])
def test_peak_memory_stays_within_the_limit(part, metric, spare):
    model, run = _wide()
    rows = [[zero(part.format(layer, head))] for layer in range(3) for head in range(4)] * 4
    limit = int(spare * _least(model, run, rows, metric))
    n_chunks = len(_plan(model, run, rows, metric).chunks(limit))
    gc.collect()
    with _Peak() as peak:
        run_rows(model, run, rows, metric, memory=limit)
    assert peak.most <= limit
    assert n_chunks > 1
    if spare == 1.0:
        assert peak.most > limit / 6  # the reckoning is no idle one


def test_a_limit_too_small_for_one_row_says_so():
    model, run = _wide()
    with pytest.raises(MemoryLimitError, match=r"at least .* one row .* given is 1.0 KiB"):
        run_rows(model, run, [[zero("decoder.0.mlp")]], logit_diff(A, B), memory="1 KiB")


def test_sizes_in_words():
    cpu = torch.device("cpu")
    assert [as_bytes(text, cpu) for text in ("2 GiB", "1.5kb", "7", "3 mib")] == [
        2 * 2**30,
        1500,
        7,
        3 * 2**20,
    ]
    assert as_bytes(None, cpu) == 2**30
    with pytest.raises(MemoryLimitError, match="got 'lots'"):
        as_bytes("lots", cpu)


# --- What cannot be placed ------------------------------------------------------------------------


def scaled(x, hook):
    return 0.9 * x


def test_functions_that_cannot_be_placed_run_plainly_and_are_named():
    model = hooked("base")
    clean, _ = whisper_runs(model)
    rows = [
        [("decoder.*.attn.hook_z", scaled)],
        [zero("decoder.0.mlp")],
        [zero("decoder.*.mlp")],
        [zero("encoder.1.attn.2").at_steps(0, 1)],
        [("hook_mel", scaled), zero("decoder.1.mlp")],
    ]
    found = check(model, clean, rows, logit_diff(A, B))
    assert found.plain == (0, 2, 4)


def test_functions_that_are_attached_already_act_in_every_row():
    model = hooked("base")
    clean, _ = whisper_runs(model)
    rows = [[zero("decoder.0.mlp")], [zero("decoder.1.attn.1@3")]]
    with model.hooks([("encoder.0.hook_mlp_out", scaled)]):
        found = run_rows(model, clean, rows, logit_diff(A, B))
        expected = one_by_one(model, clean, rows, logit_diff(A, B))
        with torch.no_grad():
            whole = logit_diff(A, B)(model(**clean))
    assert torch.equal(found.values, expected)
    assert found.clean == pytest.approx(float(whole), abs=1e-6)
    assert found.plain == (0, 1)


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (zero("decoder.0.mlp@30"), HookError, "never met position 30"),
        (zero("decoder.0.attn.9"), InterventionError, "heads 0 to 3; asked for 9"),
        (zero("decoder.0.mlp.99@6"), InterventionError, "neurons 0 to 47; asked for 99"),
        (zero("decoder.7.mlp"), KeyError, "layers are 0 to 1"),
        (zero(Site("decoder.0.hook_mlp_out", heads=1)), InterventionError, "no heads"),
        (zero(Site("encoder.0.hook_mlp_out", seconds=(0.5, 7))), InterventionError, "1 s long"),
    ],
)
def test_sites_that_are_not_there_are_refused_as_in_a_plain_run(row, error, message):
    model = hooked("base")
    clean, _ = whisper_runs(model)
    for metric in (logit_diff(A, B), log_prob(A, pos=0)):
        with pytest.raises(error, match=message):
            run_rows(model, clean, [[zero("decoder.0.mlp")], [row]], metric)
    assert not model.has_hooks


def test_an_encoder_site_needs_the_sound():
    model = hooked("base")
    clean, _ = whisper_runs(model)
    with torch.no_grad():
        encoded = model.encoded(clean)
    check(model, encoded, [[zero("decoder.0.cross_attn.1")], [zero("decoder.1.mlp")]], log_prob(A))
    with pytest.raises(HookError, match="never fired"):
        run_rows(model, encoded, [[zero("encoder.0.mlp")]], log_prob(A))


def test_no_rows_at_all():
    model = hooked("base")
    clean, _ = whisper_runs(model)
    found = run_rows(model, clean, [], log_prob(A))
    assert found.values.shape == (0,)
    with torch.no_grad():
        torch.testing.assert_close(found.clean, float(log_prob(A)(model(**clean))))
