"""The cross-attention lens against Hugging Face's attention and weights, and closed forms."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tiny
import tiny_qwen2
import tiny_qwen2_checkpoint
import torch
from torch.testing import assert_close

from hooked_asr import HookedQwen2Audio
from hooked_asr.lenses import CrossAttentionLens, LensError, cross_attention_lens
from hooked_asr.lenses.cross_attention_statistics import centre, entropy, monotonicity, peak
from hooked_asr.patching.saving import ResultError

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
BATCHES = ["whole_window", "left_padded", "right_padded", "several_clips", "mixed_left"]


def read(model, run, **options):
    return cross_attention_lens(model, run, progress=False, **options)


@pytest.fixture(scope="module")
def model():
    return tiny.hooked()


@pytest.fixture(scope="module")
def run(model):
    return tiny.inputs(model)


@pytest.fixture(scope="module")
def lens(model, run):
    return read(model, run)


# --- Hugging Face's attention, and its weights ----------------------------------------------------


@functools.cache
def hf_whisper(layout):
    hf = tiny.hf_whisper(layout)
    hf.set_attn_implementation("eager")
    return hf


@functools.cache
def hf_qwen2(layout):
    hf = tiny_qwen2.hf_qwen2_audio(layout)
    hf.set_attn_implementation("eager")
    return hf


def slow_norms(patterns, values, o_proj):
    """‖a v W_O‖ look by look; `patterns` `[head pos audio]`, `values` `[audio kv_head d_head]`."""
    n_heads, n_pos, n_audio = patterns.shape
    size = values.shape[-1]
    norms = torch.zeros(patterns.shape)
    for head in range(n_heads):
        own = values[:, head // (n_heads // values.shape[1])]
        W_O = o_proj[:, head * size : (head + 1) * size]
        for pos in range(n_pos):
            for audio in range(n_audio):
                norms[head, pos, audio] = (patterns[head, pos, audio] * (W_O @ own[audio])).norm()
    return norms


@pytest.mark.parametrize("layout", ["base", "unequal_heads", "one_head", "deep_decoder"])
@torch.no_grad()
def test_whispers_patterns_are_hugging_faces(layout):
    model, hf = tiny.hooked(layout), hf_whisper(layout)
    mel, tokens = tiny.inputs(model)
    lens = read(model, (mel, tokens))
    theirs = hf(mel, decoder_input_ids=tokens, output_attentions=True).cross_attentions
    assert_close(lens.pattern, torch.stack(theirs).transpose(1, 2), **CLOSE)
    assert_close(lens.seconds, torch.arange(50) / 50)
    assert_close(lens.share, torch.ones_like(lens.share))


@torch.no_grad()
def test_whispers_norms_are_those_of_what_each_look_writes(lens, run):
    mel, tokens = run
    hf = hf_whisper("base")
    out = hf(mel, decoder_input_ids=tokens, output_attentions=True)
    for layer, pattern in enumerate(out.cross_attentions):
        attention = hf.model.decoder.layers[layer].encoder_attn
        values = attention.v_proj(out.encoder_last_hidden_state[1]).unflatten(-1, (4, 8))
        norms = slow_norms(pattern[1], values, attention.out_proj.weight)
        assert_close(lens.norms[layer, :, 1], norms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layout", ["mha", "gqa", "unequal_heads"])
@torch.no_grad()
def test_qwen2_audios_patterns_are_hugging_faces_on_the_audio(layout, batch):
    model, hf = tiny_qwen2.hooked(layout), hf_qwen2(layout)
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES[batch])
    lens = read(model, run)
    out = hf(**tiny_qwen2.hf_inputs(run), output_attentions=True, use_cache=False)
    spans = model.audio_positions(run)
    assert len(lens.rows) == len(spans) > 0
    for i, span in enumerate(spans):
        real = run["attention_mask"][span.row].bool()
        where = slice(span.positions.start, span.positions.stop)
        for layer, pattern in enumerate(out.attentions):
            theirs = pattern[span.row][:, real, where]
            ours = lens.pattern[layer, :, i]
            assert_close(ours[:, real, : len(span.positions)], theirs, **CLOSE)
            assert_close(lens.share[layer, :, i, real], theirs.sum(-1), **CLOSE)
            assert ours[:, ~real].isnan().all()
            assert ours[:, :, len(span.positions) :].isnan().all()
    assert_close(lens.seconds, torch.arange(max(lens.n_audio)) / 25)


@pytest.mark.parametrize("layout", ["gqa", "mqa"])
@torch.no_grad()
def test_qwen2_audios_norms_share_keys_and_values(layout):
    model, hf = tiny_qwen2.hooked(layout), hf_qwen2(layout)
    run = tiny_qwen2.inputs([[30, 23]])
    lens = read(model, run)
    out = hf(
        **tiny_qwen2.hf_inputs(run),
        output_attentions=True,
        output_hidden_states=True,
        use_cache=False,
    )
    for layer, block in enumerate(hf.model.language_model.layers):
        normed = block.input_layernorm(out.hidden_states[layer][0])
        values = block.self_attn.v_proj(normed).unflatten(-1, (-1, 12))
        for i, span in enumerate(model.audio_positions(run)):
            where = slice(span.positions.start, span.positions.stop)
            norms = slow_norms(
                out.attentions[layer][0, ..., where], values[where], block.self_attn.o_proj.weight
            )
            ours = lens.norms[layer, :, i, :, : len(span.positions)]
            assert_close(ours, norms, rtol=1e-4, atol=1e-6)


# --- Numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["left_padded", "several_clips"])
def test_numbers_are_of_the_share_that_falls_on_the_clip(batch):
    lens = read(tiny_qwen2.hooked("gqa"), tiny_qwen2.inputs(**tiny_qwen2.BATCHES[batch]))
    seconds, n_blind = lens.seconds.double().numpy(), 0
    for at in np.ndindex(*lens.share.shape):
        n = lens.n_audio[at[2]]
        row = lens.pattern[at][:n].double().numpy()
        found = [getattr(lens, name)[at].item() for name in ("entropy", "centre", "peak")]
        if not lens.real[at[2], at[3]] or not row.sum():
            n_blind += 1
            assert all(map(math.isnan, found))
            continue
        expected = [
            scipy.stats.entropy(row),
            np.average(seconds[:n], weights=row),
            seconds[row.argmax()],
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        norms = lens.norms[at][:n].double().numpy()
        assert lens.norm_entropy[at].item() == pytest.approx(
            scipy.stats.entropy(norms), rel=1e-4, abs=1e-5
        )
    assert 0 < n_blind < lens.share.numel() / 2


def test_a_position_inside_the_clip_sees_its_beginning_alone():
    run = tiny_qwen2.inputs([[61]])
    model = tiny_qwen2.hooked()
    lens = read(model, run)
    (span,) = model.audio_positions(run)
    before, first = span.positions.start - 1, span.positions.start
    assert not lens.share[..., before].any()
    assert lens.centre[..., before].isnan().all()
    assert not lens.centre[..., first].any()
    assert not lens.entropy[..., first].any()
    assert not lens.pattern[..., first + 3, 4:].any()


def test_sharp_and_even_attention():
    seconds = torch.arange(10) / 50
    even, sharp, none = torch.full((10,), 0.03), torch.eye(10)[7], torch.zeros(10)
    assert entropy(even).item() == pytest.approx(math.log(10))
    assert centre(even, seconds).item() == pytest.approx(0.09)
    assert entropy(sharp).item() == 0
    assert centre(sharp, seconds) == peak(sharp, seconds) == seconds[7]
    assert all(math.isnan(f) for f in (entropy(none), centre(none, seconds), peak(none, seconds)))


def test_monotonicity_of_known_orders():
    seconds = torch.arange(40) / 50
    follows = torch.eye(8).repeat_interleave(5, dim=1) / 5
    even = torch.full_like(follows, 1 / 40)
    order = monotonicity(centre(torch.stack([follows, follows.flip(0), even]), seconds))
    assert order[:2].tolist() == pytest.approx([1.0, -1.0])
    assert order[2].isnan()


def test_monotonicity_is_spearmans_with_ties():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(0, 12, (6, 4, 25), generator=generator) / 50
    found = monotonicity(centres)
    for at in np.ndindex(6, 4):
        expected = scipy.stats.spearmanr(np.arange(25), centres[at].numpy()).statistic
        assert found[at].item() == pytest.approx(expected, abs=1e-6)


def test_an_order_takes_three_tokens_that_look_somewhere():
    assert monotonicity(torch.tensor([[0.1, 0.2]])).isnan().all()
    assert monotonicity(torch.zeros(2, 3, 0)).isnan().all()
    assert monotonicity(torch.tensor([0.1, math.nan, 0.2, 0.3])).isnan()
    # What differs by the rounding of sums alone is no order.
    assert monotonicity(torch.tensor([0.5, 0.5 + 1e-6, 0.5 + 2e-6])).isnan()


def test_monotonicity_is_of_the_transcripts_own_rows(lens):
    assert lens.text.all()
    for at in np.ndindex(2, 4, 2):
        expected = scipy.stats.spearmanr(np.arange(7), lens.centre[at].numpy().round(3)).statistic
        assert lens.monotonicity[at].item() == pytest.approx(expected, abs=1e-6)


# --- Which part is read ---------------------------------------------------------------------------


def test_layers_heads_and_positions_are_slices_of_the_whole(model, run, lens):
    fired = []
    with model.hooks([("decoder.1.hook_resid_post", lambda x, hook: fired.append(hook.name))]):
        some = read(model, run, layers=0, heads=[3, 1], pos_slice=slice(1, 6, 2))
    assert not fired  # nothing behind the last layer read is computed
    assert (some.layers, some.heads, some.positions) == ([0], [1, 3], [1, 3, 5])
    assert torch.equal(some.pattern, lens.pattern[:1, [1, 3]][..., 1:6:2, :])
    for name in ("share", "entropy", "norm_entropy", "centre", "peak"):
        assert_close(getattr(some, name), getattr(lens, name)[:1, [1, 3]][..., 1:6:2])
    assert set(some.to_pandas()["position"]) == {1, 3, 5}
    assert some.alignment_heads(1)[0][1] in (1, 3)
    assert read(model, run, pos_slice=-1).positions == [6]


def test_a_clip_ends_where_it_is_told_to(model, run, lens):
    mel, tokens = run
    mask = (torch.arange(100) < torch.tensor([[41], [100]])).long()
    told = read(model, {"mel": mel, "tokens": tokens, "mel_mask": mask})
    assert told.n_audio == [21, 50]
    assert torch.equal(told.pattern[:, :, 0, :, :21], lens.pattern[:, :, 0, :, :21])
    assert told.pattern[:, :, 0, :, 21:].isnan().all()
    assert_close(told.share[:, :, 0], lens.pattern[:, :, 0, :, :21].sum(-1))
    assert (told.peak[:, :, 0] <= 0.4).all()
    assert torch.equal(told.pattern[:, :, 1], lens.pattern[:, :, 1])
    same = read(model, run, durations=[0.41, 1.0])
    assert same.n_audio == told.n_audio
    assert torch.equal(same.alignment, told.alignment)
    assert read(model, run, durations=0.5).n_audio == [25, 25]


def test_numbers_need_no_maps(model, run, lens):
    bare = read(model, run, keep_maps=False)
    for name in ("share", "entropy", "norm_entropy", "centre", "peak", "monotonicity"):
        assert torch.equal(getattr(bare, name), getattr(lens, name))
    assert bare.pattern is None
    assert bare.alignment.isnan().all()
    assert bare.alignment_heads(3, by="monotonicity") == lens.alignment_heads(3, by="monotonicity")
    for ask in (lambda: bare.norms, lambda: bare.plot(0, 0), lambda: bare.alignment_heads(1)):
        with pytest.raises(ResultError, match="keep_maps=True"):
            ask()


def test_the_run_is_read_with_the_hooks_given(model, run, lens):
    def on_the_first(pattern, hook):
        pattern[:, 2] = 0.0
        pattern[:, 2, :, 0] = 1.0

    hooked = read(model, run, fwd_hooks=[("decoder.0.cross_attn.hook_pattern", on_the_first)])
    assert not hooked.centre[0, 2].any()
    assert not hooked.entropy[0, 2].any()
    assert torch.equal(hooked.pattern[0, 1], lens.pattern[0, 1])
    assert not torch.equal(hooked.pattern[1], lens.pattern[1])
    assert read(model, run, layers=0, fwd_hooks=[("unembed.hook_out", lambda x, hook: None)])


def test_an_encoder_output_may_be_read_by_several_rows(model, run):
    mel, tokens = run
    with torch.no_grad():
        audio = model.encode(mel[:1])
    shared = read(model, {"audio": audio, "tokens": tokens}, durations=0.7)
    apart = read(model, (mel[:1].repeat(2, 1, 1), tokens), durations=0.7)
    assert shared.rows == [0, 1]
    assert_close(shared.norms, apart.norms, **CLOSE)


def test_half_precision_is_summed_in_full():
    model = tiny.hooked(dtype=torch.bfloat16)
    lens = read(model, tiny.inputs(model))
    assert lens.pattern.dtype == lens.norms.dtype == torch.float32
    assert_close(lens.share, lens.pattern.sum(-1))


# --- Which tokens are the transcript's ------------------------------------------------------------


def test_prompt_specials_and_padding_are_no_text(model):
    mel, _ = tiny.inputs(model, batch=1)
    start, end, silent = tiny.START, tiny.END, tiny.NO_TIMESTAMPS
    rows = [[44, 5, 6, start, silent, 7, 8, 9, 50, 10, end, 3]]
    mask = torch.tensor([[1] * 11 + [0]])
    lens = read(model, {"mel": mel, "tokens": torch.tensor(rows), "attention_mask": mask})
    assert lens.text.nonzero()[:, 1].tolist() == [5, 6, 7, 9]
    assert lens.centre[..., 11].isnan().all()
    later = read(model, (mel, torch.tensor(rows)), n_prompt=7)
    assert later.text.nonzero()[:, 1].tolist() == [7, 9, 11]


def test_a_chats_transcript_is_the_models_own_turn(tmp_path):
    model = HookedQwen2Audio.from_pretrained(tiny_qwen2_checkpoint.save_checkpoint(tmp_path))
    audio = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)).numpy()
    clips, asked = [audio[0], audio[1][:9000]], ["What is said?", "And here?"]
    run = model.to_inputs(clips, asked, text=["a dog", "two cats"])
    lens = read(model, run)
    words = ["".join(map(lens.texts.get, lens.tokens[i][lens.text[i]].tolist())) for i in (0, 1)]
    assert words == ["a dog", "two cats"]
    told = [len(prompt["tokens"][0]) for prompt in map(model.to_inputs, clips, asked)]
    by_hand = read(model, run, n_prompt=told)
    assert torch.equal(by_hand.text, lens.text)
    assert not lens.monotonicity.isnan().any()


def test_without_a_word_there_is_nothing_to_rank(model, tmp_path):
    mel, _ = tiny.inputs(model, batch=1)
    lens = read(model, (torch.zeros_like(mel), torch.tensor([[tiny.START, tiny.NO_TIMESTAMPS]])))
    assert lens.monotonicity.isnan().all()
    assert lens.alignment.isnan().all()
    assert lens.entropy.isfinite().all()
    assert len(lens.to_pandas()) == 2 * 4 * 2
    assert lens.heads_table().drop(columns=["layer", "head"]).isna().all(axis=None)
    with pytest.raises(ResultError, match="three tokens"):
        lens.alignment_heads(2)
    lens.save(tmp_path / "heads.png")
    lens.plot(1, 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": 2}, "layers 0 to 1; got .2"),
        ({"heads": [0, 4, -1]}, "heads 0 to 3; got .4, -1"),
        ({"layers": []}, "got .."),
        ({"pos_slice": 7}, "positions 0 to 6.*pos_slice=7"),
        ({"durations": 2.0}, "up to 1 s; got 2.0"),
        ({"durations": [0.5, 0.0]}, "more than 0"),
        ({"durations": [0.5, 0.5, 0.5]}, "2 rows take as many"),
        ({"n_prompt": [1]}, "2 rows take as many n_prompt"),
    ],
)
def test_what_cannot_be_read_is_refused(model, run, options, says):
    with pytest.raises(LensError, match=says):
        read(model, run, **options)


def test_prompts_tell_their_own_clips():
    model = tiny_qwen2.hooked()
    with pytest.raises(LensError, match="no clip"):
        read(model, tiny_qwen2.inputs([[]]))
    with pytest.raises(LensError, match="leave out durations"):
        read(model, tiny_qwen2.inputs([[61]]), durations=0.61)


# --- Tables, figures, files -----------------------------------------------------------------------


def test_tables_hold_the_numbers():
    run = tiny_qwen2.inputs(**tiny_qwen2.BATCHES["left_padded"])
    lens = read(tiny_qwen2.hooked("gqa"), run)
    table = lens.to_pandas()
    assert len(table) == 2 * 4 * int(run["attention_mask"].sum())
    row = table.query("layer == 1 and head == 2 and clip == 2 and position == 30").iloc[0]
    assert row["token"] == run["tokens"][2, 30]  # ids: the model has no tokenizer
    assert row["centre"] == pytest.approx(lens.centre[1, 2, 2, 30].item())
    heads = lens.heads_table().set_index(["layer", "head"])
    assert len(heads) == 8
    own = table.query("layer == 1 and head == 2 and text")
    assert heads.loc[(1, 2), "share"] == pytest.approx(own["share"].mean(), rel=1e-5)
    assert heads.loc[(1, 2), "alignment"] == pytest.approx(lens.alignment[1, 2].mean().item())
    best = heads["alignment"].sort_values(ascending=False).index[:3]
    assert lens.alignment_heads(3) == [list(one) for one in best]


def test_figures_show_the_numbers(lens):
    cells = lens.plot(1, 2, clip=1, what="norms").to_dict()["data"]["values"]
    np.testing.assert_allclose(
        [cell["norm"] for cell in cells], lens.norms[1, 2, 1].flatten(), rtol=1e-5
    )
    assert [cell["seconds"] for cell in cells[:2]] == ["0.00", "0.02"]
    cells = lens.plot(what="entropy").to_dict()["data"]["values"]
    np.testing.assert_allclose(
        [cell["entropy"] for cell in cells], lens.entropy.mean((2, 3)).flatten(), rtol=1e-5
    )
    for asked, says in (
        ({"layer": 0}, "layer=0, head=None"),
        ({"layer": 0, "head": 9}, "head=9"),
        ({"layer": 0, "head": 0, "clip": 2}, "clips 0 to 1"),
        ({"layer": 0, "head": 0, "what": "entropy"}, "pattern or norms"),
        ({"what": "pattern"}, "coloured by share"),
    ):
        with pytest.raises(ResultError, match=says):
            lens.plot(**asked)


def test_a_saved_lens_is_the_same_without_maps(lens, tmp_path):
    for suffix in (".json", ".csv", ".svg"):
        lens.save(tmp_path / f"lens{suffix}")
    loaded = CrossAttentionLens.load(tmp_path / "lens.json")
    pd.testing.assert_frame_equal(loaded.to_pandas(), lens.to_pandas())
    pd.testing.assert_frame_equal(loaded.heads_table(), lens.heads_table())
    assert loaded.alignment_heads(8) == lens.alignment_heads(8)
    assert loaded.pattern is None
    assert len(pd.read_csv(tmp_path / "lens.csv")) == len(lens.to_pandas())
    with pytest.raises(ResultError, match=r"lens\.txt"):
        lens.save(tmp_path / "lens.txt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ResultError, match="no saved cross-attention lens"):
        CrossAttentionLens.load(tmp_path / "other.json")
    with pytest.raises(ResultError, match="8 heads were read; asked for 9"):
        lens.alignment_heads(9)
