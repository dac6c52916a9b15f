"""The logit lens against Hugging Face's hidden states, closed forms, and cases made by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import tiny_qwen2
import torch
from transformers import GenerationConfig

from hooked_asr import HookedWhisper
from hooked_asr.interventions import zero
from hooked_asr.lenses import (
    LensError,
    LogitLens,
    logit_lens,
    reading,
    saturation_layers,
    trace,
)
from hooked_asr.lenses.distributions import Distribution, greatest
from hooked_asr.lenses.saturation import saturated_from
from hooked_asr.nano import bundle
from hooked_asr.patching.saving import ResultError

LAYOUT = "deep_decoder"  # three layers
AHEAD = 2


def read(model, run, **options):
    return logit_lens(model, run, progress=False, **options)


@pytest.fixture(scope="module")
def model():
    return tiny.hooked(LAYOUT)


@pytest.fixture(scope="module")
def run(model):
    return tiny.inputs(model)


@pytest.fixture(scope="module")
def lens(model, run):
    return read(model, run, ahead=AHEAD, keep_logits=True)


# --- Hugging Face's own hidden states, norm and unembedding ---------------------------------------


@torch.no_grad()
def hf_whisper_logits(run):
    """`[layer batch pos d_vocab]`; their last hidden state is behind the final norm already."""
    hf = tiny.hf_whisper(LAYOUT)
    mel, tokens = run
    out = hf(mel, decoder_input_ids=tokens, output_hidden_states=True)
    norm = hf.model.decoder.layer_norm
    inner = [hf.proj_out(norm(state)) for state in out.decoder_hidden_states[1:-1]]
    return torch.stack([*inner, out.logits])


@torch.no_grad()
def hf_qwen2_logits(run):
    hf = tiny_qwen2.hf_qwen2_audio("deep")
    out = hf(**tiny_qwen2.hf_inputs(run), output_hidden_states=True, use_cache=False)
    norm = hf.model.language_model.norm
    inner = [hf.lm_head(norm(state)) for state in out.hidden_states[1:-1]]
    return torch.stack([*inner, out.logits])


def expected(logits, tokens, real, ahead):
    """Every number, one distribution after the other, in float64 and in NumPy."""
    n_sites, batch, n_pos, _ = logits.shape
    shape = (n_sites, batch, n_pos)
    found = {name: np.full(shape, math.nan) for name in ("entropy", "kl", "final_rank")}
    found |= {"final_prob": np.full(shape, math.nan), "top": np.full(shape, -1)}
    found |= {name: np.full((*shape, ahead), math.nan) for name in ("ahead_rank", "ahead_prob")}
    for at in np.argwhere(real.expand(n_sites, -1, -1).numpy()):
        site, clip, pos = at
        at = tuple(at)
        p, q = (
            np.exp(row - np.logaddexp.reduce(row))
            for row in (logits[s, clip, pos].double().numpy() for s in (site, -1))
        )
        order = list(np.argsort(-p))
        final = int(np.argmax(q))
        found["entropy"][at] = -sum(p * np.log(p))
        found["kl"][at] = sum(q * np.log(q / p))
        found["top"][at] = order[0]
        found["final_rank"][at], found["final_prob"][at] = order.index(final), p[final]
        for i in range(ahead):
            if pos + i + 1 < n_pos and real[clip, pos + i + 1]:
                said = int(tokens[clip, pos + i + 1])
                found["ahead_rank"][(*at, i)] = order.index(said)
                found["ahead_prob"][(*at, i)] = p[said]
    return found


def check(lens, logits, tokens, real):
    found = expected(logits, tokens, real, AHEAD)
    np.testing.assert_array_equal(lens.top_tokens[..., 0], found.pop("top"))
    for name, values in found.items():
        np.testing.assert_allclose(
            getattr(lens, name), values, rtol=1e-4, atol=1e-5, err_msg=name, equal_nan=True
        )


def test_whispers_numbers_are_those_of_hugging_faces_states(lens, run):
    logits = hf_whisper_logits(run)
    torch.testing.assert_close(lens.logits, logits, rtol=1e-5, atol=1e-5)
    check(lens, logits, run[1], torch.ones_like(run[1], dtype=torch.bool))


@pytest.mark.parametrize("batch", ["one_clip", "left_padded", "right_padded", "text_only"])
def test_qwen2_audios_numbers_are_those_of_hugging_faces_states(batch):
    model = tiny_qwen2.hooked("deep")
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES[batch])
    check(
        read(model, run, ahead=AHEAD),
        hf_qwen2_logits(run),
        run["tokens"],
        run["attention_mask"].bool(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_layers_logits_are_the_models_own_bit_for_bit(dtype):
    for model, run in (
        (
            tiny.hooked(LAYOUT, dtype),
            dict(zip(("mel", "tokens"), tiny.inputs(tiny.hooked(LAYOUT, dtype)), strict=True)),
        ),
        (tiny_qwen2.hooked("deep", dtype), tiny_qwen2.inputs([[61]])),
    ):
        lens = read(model, run, keep_logits=True)
        with torch.no_grad():
            assert torch.equal(lens.logits[-1], model(**run))
        assert not lens.kl[-1].any()
        assert not lens.final_rank[-1].any()


@torch.no_grad()
def test_every_stream_is_read_where_it_stands(model, run):
    streams = ["resid_pre", "resid_mid", "resid_mid_cross", "resid_post"]
    lens = read(model, run, at=streams[::-1], keep_logits=True)
    _, cache = model.run_with_cache(*run)
    assert lens.streams == streams * 3
    assert lens.layers == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    for site, logits in zip(lens.sites, lens.logits, strict=True):
        states = cache[site]
        theirs = torch.nn.functional.layer_norm(
            states, states.shape[-1:], model.decoder_final_ln.weight, model.decoder_final_ln.bias
        )
        torch.testing.assert_close(logits, theirs @ model.W_U)


# --- Ways of asking -------------------------------------------------------------------------------


def test_chunks_and_positions_change_no_number(model, run, lens, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 4 * tiny.N_VOCAB * 4)  # four rows of fourteen
    chunked = read(model, run, ahead=AHEAD, keep_logits=True)
    some = read(model, run, ahead=AHEAD, pos_slice=slice(1, None, 2))
    last = read(model, run, ahead=AHEAD, pos_slice=-2)
    assert (some.positions, last.positions) == ([1, 3, 5], [5])
    torch.testing.assert_close(chunked.logits, lens.logits)
    for name in ("entropy", "kl", "final_rank", "ahead_prob", "ahead_rank", "top_tokens"):
        whole = getattr(lens, name)
        same = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(getattr(chunked, name), whole, **same)
        torch.testing.assert_close(getattr(some, name), whole[:, :, 1::2], **same)
        torch.testing.assert_close(getattr(last, name), whole[:, :, 5:6], **same)


def test_hooks_act_in_the_run_and_not_in_the_reading(model, run, lens):
    fired = []

    def add(x, hook):
        fired.append(hook.name)
        return x + 1.0

    hooks = [("decoder.1.hook_mlp_out", add), ("unembed.hook_out", add)]
    hooked = read(model, run, keep_logits=True, fwd_hooks=hooks)
    with model.hooks(hooks):
        within = read(model, run, keep_logits=True)
        assert torch.equal(within.logits[-1], model(*run).detach())
    assert fired.count("unembed.hook_out") == 3
    assert torch.equal(hooked.logits, within.logits)
    assert torch.equal(hooked.logits[0], lens.logits[0])
    assert not torch.equal(hooked.logits[1], lens.logits[1])


def test_logits_are_kept_only_on_request(model, run):
    lens = read(model, run, ahead=0)
    assert lens.logits is None
    assert lens.ahead_prob.shape == (3, 2, 7, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": "resid_end"}, "resid_mid_cross, resid_post; got at=.'resid_end'"),
        ({"at": []}, "got at="),
        ({"top_k": 0}, "64 tokens; asked for the top 0"),
        ({"top_k": 65}, "64 tokens; asked for the top 65"),
        ({"ahead": -1}, "got -1"),
        ({"pos_slice": 7}, "positions 0 to 6.*pos_slice=7"),
        ({"pos_slice": slice(None, None, -1)}, "first to last"),
    ],
)
def test_what_cannot_be_read_is_refused(model, run, options, says):
    with pytest.raises(LensError, match=says):
        read(model, run, **options)


def test_qwen2_audio_has_no_stream_behind_cross_attention():
    with pytest.raises(LensError, match=r"decoder's resid_pre, resid_mid, resid_post; got"):
        read(tiny_qwen2.hooked(), tiny_qwen2.inputs(), at="resid_mid_cross")


# --- Decodings ------------------------------------------------------------------------------------

POST = "decoder.*.hook_resid_post"


@pytest.fixture(scope="module")
def nano():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def mel(nano):
    return nano.to_mel([bundle.clip(name).path for name in ("english", "english_babble", "german")])


def check_decoding(model, out, n_prompt, inputs=None, n_padding=0, **options):
    """Against the same lens of a run on what was decoded; gives how long the rows were."""
    lens = read(model, out, ahead=AHEAD, keep_logits=True)
    whole = out.whole_tokens
    lengths = [n_prompt + len(said.tokens) for said in out]
    place = torch.arange(whole.shape[1] - 1)
    padding = torch.as_tensor(n_padding).reshape(-1, 1)
    real = (place >= padding) & (place < torch.tensor(lengths)[:, None])
    assert torch.equal(lens.real, real)
    forced = read(
        model, {**inputs, "tokens": whole[:, :-1]}, ahead=AHEAD, keep_logits=True, **options
    )
    assert torch.equal(lens.top_tokens[..., 0][:, real], forced.top_tokens[..., 0][:, real])
    assert torch.equal(lens.final_tokens[real], forced.final_tokens[real])
    torch.testing.assert_close(lens.logits[:, real], forced.logits[:, real], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lens.kl[:, real], forced.kl[:, real], rtol=1e-3, atol=1e-4)
    assert lens.entropy[:, ~real].isnan().all()
    assert (lens.top_tokens[:, ~real] == -1).all()
    for clip, length in enumerate(lengths):  # a row's end token is looked for, and nothing behind
        last = min(length, len(place)) - 1
        probs = lens.logits[:, clip, last].softmax(-1)[:, whole[clip, last + 1]]
        torch.testing.assert_close(lens.ahead_prob[:, clip, last, 0], probs)
        assert lens.ahead_prob[:, clip, last, 1].isnan().all()
    return lengths


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_decodings_lens_is_that_of_a_run_on_what_was_said(nano, mel, num_beams, unchecked):
    out = nano.generate(mel, language="en", names_filter=POST, num_beams=num_beams)
    n_prompt = len(nano.prompt(language="en"))
    lengths = check_decoding(nano, out, n_prompt, {"mel": mel})
    assert len(set(lengths)) > 1  # some ended earlier


def test_interventions_in_a_decoding_are_in_its_lens(nano, mel, unchecked):
    changes = [zero("decoder.1.cross_attn.2"), zero("decoder.2.mlp")]
    out = nano.generate(mel, language="en", names_filter=POST, interventions=changes)
    plain = nano.generate(mel, language="en")
    assert [one.tokens for one in out] != [one.tokens for one in plain]
    n_prompt = len(nano.prompt(language="en"))
    check_decoding(nano, out, n_prompt, {"mel": mel}, fwd_hooks=changes)


@pytest.mark.parametrize("change", [None, "decoder.1.mlp"])
def test_qwen2_audios_decodings_begin_behind_their_padding(change):
    model = tiny_qwen2.hooked("deep")
    run = tiny_qwen2.inputs([[100], [40], [61]], seed=1)
    changes = [] if change is None else [zero(change)]
    out = model.generate(**run, names_filter=POST, interventions=changes)
    n_prompt = run["tokens"].shape[1]
    n_new = out.whole_tokens.shape[1] - 1 - n_prompt
    mask = torch.nn.functional.pad(run["attention_mask"], (0, n_new), value=1)
    inputs = {**run, "attention_mask": mask}
    n_padding = (run["attention_mask"] == 0).sum(1)
    assert n_padding.unique().tolist() != [0]
    lengths = check_decoding(model, out, n_prompt, inputs, n_padding, fwd_hooks=changes)
    assert len(set(lengths)) > 1 or change


def test_a_decodings_own_logits_are_the_ones_it_kept(nano, mel, unchecked):
    def prefer(x, hook):
        x[..., 7] += 50.0

    hooks = [("unembed.hook_out", prefer)]
    kept = [POST, "unembed.hook_out"]
    out = nano.generate(mel[:1], language="en", names_filter=kept, fwd_hooks=hooks)
    lens = read(nano, out, keep_logits=True, pos_slice=slice(2, 6))
    assert torch.equal(lens.logits[-1], out.cache["unembed.hook_out"][:, 2:6])
    assert (lens.final_tokens == 7).all()
    assert lens.positions == [2, 3, 4, 5]
    assert lens.kl[0].min() > 5
    mid = nano.generate(
        mel[:1], language="en", names_filter=["decoder.*.hook_resid_mid", "unembed.hook_out"]
    )
    assert read(nano, mid, at="resid_mid").final_tokens.tolist()[0][-1] == nano._end_token


def test_windows_are_read_one_by_one():
    model = tiny.hooked()
    mel, _ = tiny.inputs(model)
    out = model.generate(mel, names_filter=POST)
    assert len(out.windows) > 1
    with pytest.raises(LensError, match=f"took {len(out.windows)} windows"):
        read(model, out)
    for window in out.windows[:2]:
        lens = read(model, window, keep_logits=True)
        assert torch.equal(lens.tokens, window.whole_tokens)
        last = window.cache["decoder.1.hook_resid_post"]
        with torch.no_grad():
            torch.testing.assert_close(lens.logits[-1], model.unembed(model.decoder_final_ln(last)))


@pytest.mark.parametrize(
    ("kept", "options", "says"),
    [
        (None, {}, r"kept 0 of the 2 .*names_filter=\['decoder\.\*\.hook_resid_post'\]"),
        ("decoder.1.hook_resid_post", {}, r"kept 1 of the 2 .* not decoder\.0\.hook_resid_post"),
        ("decoder.*.hook_resid_mid", {"at": "resid_mid"}, r"resid_mid', 'unembed\.hook_out'\]"),
        (POST, {"fwd_hooks": [(POST, lambda x, hook: None)]}, "give fwd_hooks to generate"),
        (POST, {"pos_slice": 11}, "positions 0 to 10"),
    ],
)
def test_what_a_decoding_did_not_keep_is_told(kept, options, says):
    model = tiny.hooked()
    mel, _ = tiny.inputs(model)
    out = model.generate(mel, names_filter=kept, max_new_tokens=10)
    with pytest.raises(LensError, match=says):
        read(model, out.windows[0], **options)


def test_padding_of_a_decoding_is_told_from_its_tokens():
    end, other_end, pad = 7, 8, 9
    rules = GenerationConfig(eos_token_id=[end, other_end], pad_token_id=pad)
    model = SimpleNamespace(generation_config=rules)
    tokens = torch.tensor(
        [
            [pad, pad, 1, 2, 3, end, pad, pad],  # ended, behind a prompt padded in front
            [1, end, 1, 2, 3, 4, 5, 6],  # the prompt has an end token; never ended
            [1, 2, 3, 4, 5, 6, 1, other_end],  # ended with the last token
            [1, 2, pad, 3, 4, pad, end, pad],  # says the padding token too
        ]
    )
    known, spoken = trace._spoken(model, tokens)
    assert known.int().tolist() == [
        [0, 0, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 0],
    ]
    assert spoken.int().tolist() == [
        [0, 0, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1, 0],
    ]


# --- Closed forms ---------------------------------------------------------------------------------


def test_entropy_and_divergence_of_known_distributions():
    even, half = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])[:, None].log()
    p, q = Distribution.of(half), Distribution.of(even + 3.0)
    assert q.entropy().item() == pytest.approx(math.log(4))
    assert p.entropy().item() == pytest.approx(math.log(2))
    assert q.kl_from(p).item() == pytest.approx(math.log(2))
    assert p.kl_from(q).item() == math.inf
    assert p.kl_from(p).item() == 0.0


def test_among_tokens_as_likely_the_lowest_id_leads_and_none_outranks_another():
    tied = torch.zeros(1, 1000)
    tied[0, [700, 31, 300]] = 2.0
    one = Distribution.of(tied)
    assert one.top.item() == 31
    for k in (1, 2, 3):
        assert one.top_tokens(k)[0, 0].item() == 31
    assert set(one.top_tokens(3)[0].tolist()) == {31, 300, 700}
    assert one.ranks(torch.tensor([[700, 31, 5]])).tolist() == [[0.0, 0.0, 3.0]]


@pytest.mark.parametrize("d_vocab", [5, 63, 64, 65, 700, 4001])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_greatest_are_those_of_a_stable_sort(d_vocab, k):
    spread = torch.randn(7, d_vocab, generator=torch.Generator().manual_seed(k))
    few = (2 * spread).round()
    one_block_after_another = few.clone()
    one_block_after_another[:, ::61] = few.max()
    for numbers in (spread, spread.half().float(), few, one_block_after_another):
        expected = numbers.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(greatest(numbers, k), expected)


# --- Saturation -----------------------------------------------------------------------------------

FINAL = 9
CASES = [  # the top tokens of four layers; stable; first
    ([9, 9, 9, 9], 0, 0),
    ([1, 2, 3, 9], 3, 3),
    ([1, 9, 2, 9], 3, 1),
    ([9, 1, 9, 9], 2, 0),
    ([1, 9, 9, 9], 1, 1),
]


def constructed(tops, streams=("resid_post",), final=FINAL):
    """A lens of one clip, of which only the likeliest tokens `[site pos]` matter."""
    n_sites, n_pos = tops.shape
    numbers = torch.zeros(n_sites, 1, n_pos)
    n_layers = n_sites // len(streams)
    return LogitLens(
        sites=[f"decoder.{i}.hook_{one}" for i in range(n_layers) for one in streams],
        positions=list(range(n_pos)),
        tokens=torch.zeros(1, n_pos, dtype=torch.long),
        real=torch.ones(1, n_pos, dtype=torch.bool),
        top_tokens=tops[:, None, :, None],
        top_probs=numbers[..., None],
        entropy=numbers,
        kl=numbers,
        final_tokens=torch.full((1, n_pos), final),
        final_rank=numbers,
        final_prob=numbers,
        ahead_rank=numbers[..., None],
        ahead_prob=numbers[..., None],
        model="made by hand",
        name="logit lens",
    )


@pytest.mark.parametrize(("rule", "column"), [("stable", 1), ("first", 2)])
def test_saturation_by_both_rules(rule, column):
    tops = torch.tensor([case[0] for case in CASES]).T
    layers = saturation_layers(constructed(tops), rule=rule)
    assert layers.tolist() == [[case[column] for case in CASES]]


def test_saturation_takes_one_stream_of_several():
    tops = torch.tensor([[1, 9], [9, 9], [9, 1], [9, 9]])  # layer 0's two streams, layer 1's two
    lens = constructed(tops, ("resid_mid", "resid_post"))
    assert saturation_layers(lens, at="resid_post").tolist() == [[0, 0]]
    assert saturation_layers(lens, at="resid_mid").tolist() == [[1, 2]]
    assert saturation_layers(lens, "first", at="resid_mid").tolist() == [[1, 0]]
    with pytest.raises(LensError, match="resid_mid, resid_post; say which"):
        saturation_layers(lens)
    with pytest.raises(LensError, match="stable or first"):
        saturation_layers(lens, "last", at="resid_mid")


def test_no_layer_agrees():
    agrees = torch.zeros(3, 2, dtype=torch.bool)
    assert saturated_from(agrees).tolist() == saturated_from(agrees, "first").tolist() == [3, 3]


def test_padding_does_not_saturate():
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["left_padded"])
    layers = saturation_layers(read(tiny_qwen2.hooked("deep"), run))
    assert torch.equal(layers == -1, run["attention_mask"] == 0)
    assert layers.max() <= 2


# --- Tables, figures, files -----------------------------------------------------------------------


def test_a_row_for_each_site_and_position_but_padding():
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["right_padded"])
    lens = read(tiny_qwen2.hooked("deep"), run, at=["resid_mid", "resid_post"], ahead=AHEAD)
    table = lens.to_pandas()
    assert len(table) == 6 * int(run["attention_mask"].sum())
    row = table.query("layer == 1 and at == 'resid_mid' and clip == 1 and position == 3").iloc[0]
    assert row["top_2"] == lens.top_tokens[2, 1, 3, 1]  # ids: the model has no tokenizer
    assert row["top_2_prob"] == pytest.approx(lens.top_probs[2, 1, 3, 1].item())
    assert row["kl"] == pytest.approx(lens.kl[2, 1, 3].item())
    assert row["ahead_2"] == run["tokens"][1, 5]
    end = table[table["clip"] == 1].iloc[-1]
    assert (end["ahead_1"], end["ahead_2"]) == ("", "")
    assert math.isnan(end["ahead_1_rank"])


def test_a_trained_models_lens_speaks_words(tmp_path):
    model = HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)
    clip = bundle.clip("english")
    run = model.to_inputs(clip.path, text=clip.text, language="en")
    lens = read(model, run)
    table = lens.to_pandas()
    last = table[table["layer"] == lens.layers[-1]]
    assert last["token"].tolist() == model.to_str_tokens(run["tokens"])
    assert last["top_1"].tolist() == last["final"].tolist()
    said = last[last["position"] >= len(model.prompt(language="en")) - 1]
    assert (said["ahead_1_rank"] == 0).mean() > 0.8  # it was trained to say just this
    chart = lens.plot("entropy").to_dict()
    cells = chart["data"]["values"] if "data" in chart else chart["layer"][0]["data"]["values"]
    assert [cell["top"] for cell in cells] == table["top_1"].tolist()
    np.testing.assert_allclose([cell["entropy"] for cell in cells], table["entropy"], rtol=1e-6)
    for suffix in (".csv", ".html", ".png", ".json"):
        lens.save(tmp_path / f"lens{suffix}")
        assert (tmp_path / f"lens{suffix}").stat().st_size > 500
    assert len(pd.read_csv(tmp_path / "lens.csv")) == len(table)
    pd.testing.assert_frame_equal(LogitLens.load(tmp_path / "lens.json").to_pandas(), table)


def test_plots_and_files_that_cannot_be(lens, tmp_path):
    assert lens.plot("kl", clip=1).to_dict()["layer"]
    with pytest.raises(ResultError, match=r"a plot is of final_prob.*'colour'"):
        lens.plot("colour")
    with pytest.raises(ResultError, match="clips 0 to 1"):
        lens.plot(clip=2)
    with pytest.raises(ResultError, match=r"lens\.txt"):
        lens.save(tmp_path / "lens.txt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="no saved logit lens"):
        LogitLens.load(tmp_path / "other.json")
