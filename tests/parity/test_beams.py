"""Beam search against Hugging Face's: the same tokens, the same mean log-probability."""

import pytest
import tiny
import tiny_qwen2
import torch
from torch.testing import assert_close
from transformers import WhisperForConditionalGeneration

from hooked_asr import HookedWhisper
from hooked_asr.generation import GenerationError, PromptShape, greedy, logits_processors
from hooked_asr.generation.beams import decode_beams
from hooked_asr.nano import bundle
from hooked_asr.weights.checkpoint import BUNDLED

every_width = pytest.mark.parametrize("num_beams", [2, 3, 5])
with_and_without_timestamps = pytest.mark.parametrize(
    "timestamps", [False, True], ids=["text", "timestamps"]
)
# Three tokens that a tiny model likes to say: as end tokens they make for rows of many lengths.
OFTEN = [6, 23, 39]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def pair(layout="base", ends=tiny.END, **rules):
    """The reference and ours, with the same rules of decoding."""
    # Behind several ends the reference needs padding that is none of them.
    padding = ends if isinstance(ends, int) else tiny.START
    hf = tiny.hf_whisper(layout)
    hf.generation_config.update(eos_token_id=ends, pad_token_id=padding, **rules)
    return hf, HookedWhisper.from_hf(hf)


def language(model):
    return {"language": "en"} if model.generation_config.is_multilingual else {}


def found(model, mel, num_beams, timestamps=False):
    """What our search finds, by the checkpoint's rules and up to its limit."""
    prompt = torch.tensor([model.prompt(timestamps=timestamps, **language(model))] * len(mel))
    shape = PromptShape(prompt.shape[1], "cpu")
    processors = logits_processors(model.generation_config, shape, timestamps)
    inputs = {"audio": model.encode(mel), "tokens": prompt}
    limit = model.token_limit(prompt.shape[1])
    return decode_beams(model, inputs, limit, processors, num_beams)


def expected(hf, mel, num_beams, timestamps=False, **options):
    """Prompt and tokens of each row, padded behind, by the reference."""
    # In one go, whatever time stamps a random model may say.
    options |= {"do_sample": False, "force_unique_generate_call": True}
    options |= {"num_beams": num_beams, "return_timestamps": timestamps}
    return hf.generate(mel, **options, **language(hf))


# Tokens


@pytest.mark.parametrize(("batch", "num_beams"), [(1, 3), (3, 2), (3, 5)])
@with_and_without_timestamps
@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_the_best_hypotheses_are_the_references(layout, timestamps, batch, num_beams):
    hf, model = pair(layout)
    mel, _ = tiny.inputs(model, batch)
    ours = found(model, mel, num_beams, timestamps)
    assert torch.equal(ours.whole, expected(hf, mel, num_beams, timestamps))


@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_length_penalty_and_early_stopping_count_as_in_the_reference(
    length_penalty, early_stopping, num_beams
):
    for ends, timestamps in ((OFTEN[0], False), (OFTEN[2], True), (OFTEN, False)):
        hf, model = pair(ends=ends, length_penalty=length_penalty, early_stopping=early_stopping)
        mel, _ = tiny.inputs(model, batch=3)
        theirs = expected(hf, mel, num_beams, timestamps)
        assert torch.equal(found(model, mel, num_beams, timestamps).whole, theirs)


@pytest.mark.parametrize(
    "options",
    [
        [{"length_penalty": penalty} for penalty in (1.0, 2.0)],
        [{"length_penalty": 2.0, "early_stopping": early} for early in (True, False, "never")],
    ],
    ids=["length_penalty", "early_stopping"],
)
def test_each_option_of_the_search_changes_what_is_found(options):
    mel, _ = tiny.inputs(tiny.hf_whisper(), batch=4)
    rows = set()
    for rules in options:
        _, model = pair(ends=OFTEN, **rules)
        rows.add(tuple(tuple(row.tokens) for row in found(model, mel, 5).rows))
    assert len(rows) == len(options)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_a_clip_that_stopped_early_stays_as_it_is_while_others_go_on(layout):
    hf, model = pair(layout, ends=[*OFTEN, tiny.END], early_stopping=True, length_penalty=2.0)
    mel, _ = tiny.inputs(model, batch=8)
    assert torch.equal(found(model, mel, 3).whole, expected(hf, mel, 3))


@every_width
@pytest.mark.parametrize("ends", [OFTEN[:1], OFTEN[:2], OFTEN, [*range(4, 41)]])
def test_any_of_several_end_tokens_ends_a_row(ends, num_beams):
    hf, model = pair(ends=ends)
    mel, _ = tiny.inputs(model, batch=3)
    ours = found(model, mel, num_beams)
    assert torch.equal(ours.whole, expected(hf, mel, num_beams))
    assert any(row.ended for row in ours.rows)
    assert not any(token in ends for row in ours.rows for token in row.tokens)


def test_without_an_end_token_every_row_is_full():
    hf, model = pair(ends=None)
    mel, _ = tiny.inputs(model, batch=3)
    ours = found(model, mel, 3)
    assert torch.equal(ours.whole, expected(hf, mel, 3))
    assert ours.whole.shape[1] == model.config.decoder.n_ctx
    assert not any(row.ended for row in ours.rows)


@every_width
@with_and_without_timestamps
@pytest.mark.parametrize("max_length", [1, 2, 3, 9, 24])
def test_the_limit_counts_as_in_the_reference(max_length, timestamps, num_beams):
    hf, model = pair(ends=OFTEN[2], max_length=max_length)
    mel, _ = tiny.inputs(model, batch=3)
    ours = found(model, mel, num_beams, timestamps)
    assert torch.equal(ours.whole, expected(hf, mel, num_beams, timestamps))


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_fewer_allowed_tokens_than_beams_are_the_references(allowed):
    """Some beams are then continued by nothing, and more score alike."""
    hf, model = pair(suppress_tokens=list(range(allowed, tiny.N_VOCAB)), max_length=4)
    mel, _ = tiny.inputs(model, batch=3)
    assert torch.equal(found(model, mel, 5).whole, expected(hf, mel, 5))


def test_rows_do_not_depend_on_each_other():
    _, model = pair("relu")
    mel, _ = tiny.inputs(model, batch=4)
    together = [row.tokens for row in found(model, mel, 5).rows]
    assert [found(model, one[None], 5).rows[0].tokens for one in mel] == together
    assert len(set(map(len, together))) > 1


def test_beams_find_what_the_likeliest_next_token_does_not():
    _, model = pair()
    mel, _ = tiny.inputs(model, batch=3)
    prompt = torch.tensor([model.prompt()] * 3)
    likeliest = greedy(model, {"audio": model.encode(mel), "tokens": prompt})
    assert [row.tokens for row in found(model, mel, 5).rows] != likeliest


# What else is told of a search


@pytest.mark.parametrize("length_penalty", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("timestamps", "num_beams"), [(False, 2), (True, 3), (False, 5)])
@pytest.mark.parametrize("end", [*OFTEN, tiny.END])
def test_the_mean_logprob_is_the_one_that_the_reference_judges_by(
    end, num_beams, timestamps, length_penalty, monkeypatch
):
    hf, model = pair(ends=end, length_penalty=length_penalty)
    mel, _ = tiny.inputs(model, batch=3)
    judged, retrieve = [], hf._retrieve_avg_logprobs

    def noted(*scores_and_tokens):
        judged.append(retrieve(*scores_and_tokens))
        return judged[-1]

    monkeypatch.setattr(hf, "_retrieve_avg_logprobs", noted)
    # So low a threshold that no row is decoded again.
    options = {"logprob_threshold": -1e4, "temperature": (0.0, 1.0)}
    expected(hf, mel, num_beams, timestamps, **options)
    ours = [row.avg_logprob for row in found(model, mel, num_beams, timestamps).rows]
    assert_close(torch.tensor(ours), torch.stack(judged), rtol=0, atol=1e-5)


def test_the_prompts_logits_are_those_of_one_row_for_each_clip():
    _, model = pair()
    mel, _ = tiny.inputs(model, batch=3)
    prompt = torch.tensor([model.prompt()] * 3)
    logits = found(model, mel, 5).prompt_logits
    assert_close(logits, model(mel, prompt), rtol=1e-5, atol=1e-5)


def test_a_row_has_its_tokens_and_behind_them_is_padding():
    _, model = pair("relu")
    mel, _ = tiny.inputs(model, batch=4)
    ours, prompt = found(model, mel, 5), model.prompt()
    assert {row.ended for row in ours.rows} == {True, False}
    for row, whole in zip(ours.rows, ours.whole.tolist(), strict=True):
        behind = whole[len(prompt) + len(row.tokens) :]
        assert whole == [*prompt, *row.tokens, *behind]
        assert len(row.logprobs) == len(row.tokens) + row.ended
        assert row.avg_logprob == pytest.approx(sum(row.logprobs) / len(row.logprobs))
        assert set(behind) == ({tiny.END} if row.ended else set())


# Hooks


def test_prompt_and_audio_are_read_once_for_each_clip():
    _, model = pair()
    mel, _ = tiny.inputs(model, batch=3)
    shapes = {}

    def note(k, hook):
        shapes.setdefault(hook.name, []).append(tuple(k.shape[:2]))

    with model.hooks([("decoder.*.hook_k", note)]):
        ours = found(model, mel, 5)
    n_prompt, n_steps = len(model.prompt()), ours.whole.shape[1] - len(model.prompt())
    for i in range(model.config.decoder.n_layers):
        assert shapes[f"decoder.{i}.cross_attn.hook_k"] == [(3, 50)]
        steps = shapes[f"decoder.{i}.attn.hook_k"]
        assert steps[0] == (3, n_prompt)
        assert set(steps[1:]) == {(15, 1)}
        assert len(steps) >= n_steps


@every_width
@pytest.mark.parametrize("attention", ["attn", "cross_attn"])
def test_a_head_silenced_in_all_beams_is_the_references_without_it(attention, num_beams):
    hf, model = pair()
    mel, _ = tiny.inputs(model, batch=3)
    plain = found(model, mel, num_beams).whole

    def silence(z, hook):
        z[:, :, 1] = 0.0

    with model.hooks([(f"decoder.*.{attention}.hook_z", silence)]):
        ours = found(model, mel, num_beams).whole
    for layer in hf.model.decoder.layers:
        theirs = layer.self_attn if attention == "attn" else layer.encoder_attn
        theirs.out_proj.weight[:, 8:16] = 0.0
    assert torch.equal(ours, expected(hf, mel, num_beams))
    assert ours.tolist() != plain.tolist()


# Other models


@every_width
@pytest.mark.parametrize("batch", ["one_clip", "left_padded", "equal_rows", "text_only"])
def test_prompts_padded_before_them_are_searched_as_by_the_reference(batch, num_beams):
    """Qwen2-Audio's, with at most one clip each: the reference gives beams each other's clips."""
    rules = {"repetition_penalty": 1.3, "max_new_tokens": 6}
    hf, model = tiny_qwen2.hf_qwen2_audio(**rules), tiny_qwen2.hooked(**rules)
    inputs = tiny_qwen2.inputs(**tiny_qwen2.BATCHES[batch])
    theirs = hf.generate(**tiny_qwen2.hf_inputs(inputs), do_sample=False, num_beams=num_beams)
    padding = (inputs["attention_mask"] == 0).sum(1).repeat_interleave(num_beams)
    n_prompt = inputs["tokens"].shape[1]
    shape = PromptShape(n_prompt, "cpu", padding)
    processors = logits_processors(model.generation_config, shape)
    limit = model.token_limit(n_prompt)
    ours = decode_beams(model, model.encoded(inputs), limit, processors, num_beams)
    assert torch.equal(ours.whole, theirs)


@pytest.fixture(scope="module")
def nano():
    hf = WhisperForConditionalGeneration.from_pretrained(
        BUNDLED["whisper-nano"], dtype=torch.float32
    )
    return hf.eval(), HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.mark.parametrize(("timestamps", "num_beams"), [(False, 5), (True, 2)])
def test_the_bundled_model_says_the_references_tokens(nano, timestamps, num_beams):
    hf, model = nano
    mel = model.to_mel([clip.path for clip in bundle.clips()])
    ours = found(model, mel, num_beams, timestamps)
    assert torch.equal(ours.whole, expected(hf, mel, num_beams, timestamps))
    assert len({len(row.tokens) for row in ours.rows}) > 1


@pytest.mark.parametrize(("timestamps", "num_beams"), [(False, 5), (True, 2)])
def test_a_trained_model_says_the_references_tokens(refit, shared, timestamps, num_beams):
    hf = WhisperForConditionalGeneration.from_pretrained(refit, dtype=torch.float32).eval()
    model = HookedWhisper.from_pretrained(refit, dtype=torch.float32)
    mel = model.to_mel(shared / "audio" / "speech_en" / "jfk.flac")
    ours = found(model, mel, num_beams, timestamps)
    assert torch.equal(ours.whole, expected(hf, mel, num_beams, timestamps))
    assert "country" in model.to_string(ours.rows[0].tokens)


# What is refused


@pytest.mark.parametrize("limit", [0, 2, 25])
def test_a_limit_without_room_is_refused(limit):
    _, model = pair()
    mel, _ = tiny.inputs(model, batch=1)
    prompt = torch.tensor([model.prompt()])
    inputs = {"audio": model.encode(mel), "tokens": prompt}
    processors = logits_processors(model.generation_config, PromptShape(2, "cpu"))
    with pytest.raises(GenerationError, match="the limit counts the 2 tokens of the prompt"):
        decode_beams(model, inputs, limit, processors, 2)
