"""Cached decoding against teacher forcing, and transcripts against Hugging Face's `generate`."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from hooked_asr import HookedWhisper, KVCache
from hooked_asr.components.kv_cache import KVCacheError, LayerCache
from hooked_asr.generation import greedy
from hooked_asr.interventions import zero
from hooked_asr.models.whisper_prompt import prompt_tokens

every_layout = pytest.mark.parametrize("layout", tiny.LAYOUTS)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def decode_in_steps(model, tokens, audio, steps, capacity=None):
    """Logits of all positions, decoded `steps` tokens at a time."""
    past = KVCache(model.config.decoder.n_layers, capacity or tokens.shape[1])
    logits = [model.decode(part, audio, past=past) for part in tokens.split(steps, dim=1)]
    assert past.length == tokens.shape[1]
    return torch.cat(logits, dim=1)


# Keys and values kept


@pytest.mark.parametrize(
    "steps",
    [[1] * 7, [3, 1, 1, 1, 1], [1, 3, 3], [2, 5], [7]],
    ids=lambda steps: "+".join(map(str, steps)),
)
@every_layout
def test_decoding_in_steps_gives_the_logits_of_teacher_forcing(layout, steps):
    model = tiny.hooked(layout)
    mel, tokens = tiny.inputs(model)
    audio = model.encode(mel)
    expected = model.decode(tokens, audio)
    for capacity in (tokens.shape[1], model.config.decoder.n_ctx):
        logits = decode_in_steps(model, tokens, audio, steps, capacity)
        assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))


def test_steps_are_the_references_steps():
    hf = tiny.hf_whisper()
    model = HookedWhisper.from_hf(hf)
    mel, tokens = tiny.inputs(model)
    theirs, encoded = None, hf.model.encoder(mel)
    past = KVCache(model.config.decoder.n_layers, capacity=7)
    for part in tokens.split([3, 1, 1, 2], dim=1):
        out = hf(
            encoder_outputs=encoded, decoder_input_ids=part, past_key_values=theirs, use_cache=True
        )
        theirs = out.past_key_values
        logits = model.decode(part, encoded.last_hidden_state, past=past)
        assert_close(logits, out.logits, rtol=1e-5, atol=1e-5)


def test_rows_of_a_cache_can_change_places():
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model, batch=3)
    audio, order = model.encode(mel), torch.tensor([2, 0, 1])
    past = KVCache(model.config.decoder.n_layers, capacity=7)
    model.decode(tokens[:, :4], audio, past=past)
    past.reorder(order)
    logits = model.decode(tokens[order, 4:], audio[order], past=past)
    expected = model.decode(tokens, audio)[order, 4:]
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "capacity", "rows", "says"),
    [(2, 7, 1, "holds 2 rows"), (2, 6, 2, "room for 6 tokens"), (3, 7, 2, "3 layers")],
)
def test_tokens_that_do_not_continue_a_cache_are_refused(layers, capacity, rows, says):
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model)
    audio = model.encode(mel)
    past = KVCache(2, capacity)
    model.decode(tokens[:, :3], audio, past=past)
    past.layers += [LayerCache(capacity)] * (layers - 2)
    with pytest.raises(KVCacheError, match=says):
        model.decode(tokens[:rows, 3:], audio[:rows], past=past)


def test_the_audio_is_read_once_and_each_token_once():
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model)
    audio, seen = model.encode(mel), {}

    def count(x, hook):
        seen.setdefault(hook.name, []).append(list(hook.positions))

    with model.hooks([("decoder.*.hook_k", count)]):
        decode_in_steps(model, tokens, audio, [3, 1, 1, 2])
    for i in range(model.config.decoder.n_layers):
        assert seen[f"decoder.{i}.cross_attn.hook_k"] == [list(range(50))]
        assert seen[f"decoder.{i}.attn.hook_k"] == [[0, 1, 2], [3], [4], [5, 6]]


def test_a_head_silenced_in_every_step_is_silenced_throughout():
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model)
    audio = model.encode(mel)

    def silence(z, hook):
        z[:, :, 1] = 0.0

    plain = model.decode(tokens, audio)
    with model.hooks([("decoder.*.hook_z", silence)]):
        expected = model.decode(tokens, audio)
        logits = decode_in_steps(model, tokens, audio, [1] * 7)
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, plain, atol=1e-2)


# Transcripts


def tokenizer():
    """Token 5 is the word w5; tokens from END on are special."""
    words = {f"w{i}": i for i in range(tiny.N_VOCAB)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")),
        additional_special_tokens=[f"w{i}" for i in range(tiny.END, tiny.N_VOCAB)],
    )


def pair(layout="base", **rules):
    """The reference and ours, with the same rules of decoding."""
    hf = tiny.hf_whisper(layout)
    hf.generation_config.update(**rules)
    processor = SimpleNamespace(feature_extractor=None, tokenizer=tokenizer())
    return hf, HookedWhisper.from_hf(hf, processor)


def generated(hf, mel, **options):
    """Prompt and text of each row, by the reference, up to the end."""
    # In one go, whatever timestamps a random model may say.
    options |= {"do_sample": False, "num_beams": 1, "force_unique_generate_call": True}
    out = hf.generate(mel, **options)
    end = hf.generation_config.eos_token_id
    rows = [row.tolist() for row in out]
    return [row[: row.index(end)] if end in row else row for row in rows]


def said(model, mel, **options):
    """Prompt and text of each row, by our loop."""
    prompt = prompt_tokens(model.generation_config, **options)
    rows = greedy(model, {"audio": model.encode(mel), "tokens": torch.tensor([prompt] * len(mel))})
    return [[*prompt, *row] for row in rows]


def words(hf, mel, **options):
    """The words of each clip, by the reference, window after window as its time stamps say."""
    out = hf.generate(mel, do_sample=False, num_beams=1, **options)
    return [" ".join(f"w{token}" for token in row if token < tiny.END) for row in out.tolist()]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("layout", [name for name in tiny.LAYOUTS if name != "multilingual"])
def test_transcripts_are_the_references(layout, batch):
    hf, model = pair(layout)
    mel, _ = tiny.inputs(model, batch)
    expected = generated(hf, mel)
    assert said(model, mel) == expected
    assert model.transcribe(mel) == words(hf, mel)
    assert all(len(set(row)) > 4 for row in expected)


def test_rows_end_at_their_own_time():
    hf, model = pair()
    mel, _ = tiny.inputs(model, batch=4)
    without_end = said(model, mel)
    # Whatever a row says as its fifth word is the end from now on.
    end = without_end[0][6]
    for rules in (hf.generation_config, model.generation_config):
        rules.update(eos_token_id=end, pad_token_id=end)
    expected = generated(hf, mel)
    assert len({len(row) for row in expected}) > 1
    assert said(model, mel) == expected
    assert [said(model, row[None])[0] for row in mel] == expected


@pytest.mark.parametrize("where", ["begin_suppress_tokens", "suppress_tokens"])
def test_suppressed_tokens_are_not_said(where):
    hf, model = pair(begin_suppress_tokens=None, suppress_tokens=None)
    mel, _ = tiny.inputs(model, batch=2)
    free = said(model, mel)
    assert free == generated(hf, mel)
    first = len(prompt_tokens(model.generation_config))
    banned = sorted({row[first] for row in free})
    hf, model = pair(**{"begin_suppress_tokens": None, "suppress_tokens": None, where: banned})
    rows = said(model, mel)
    assert rows == generated(hf, mel)
    said_later = {token for row in rows for token in row[first + 1 :]}
    assert not {row[first] for row in rows} & set(banned)
    assert bool(said_later & set(banned)) == (where == "begin_suppress_tokens")


def test_decoding_stops_where_the_positions_do():
    hf, model = pair(eos_token_id=63, pad_token_id=63, suppress_tokens=[63])
    mel, _ = tiny.inputs(model, batch=1)
    rows = said(model, mel)
    assert rows == generated(hf, mel)
    assert len(rows[0]) == model.config.decoder.n_ctx


@pytest.mark.parametrize("language", ["en", "german", "fr"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_language_and_task_steer_as_in_the_reference(language, task):
    hf, model = pair("multilingual")
    mel, _ = tiny.inputs(model, batch=2)
    expected = generated(hf, mel, language=language, task=task)
    assert said(model, mel, language=language, task=task) == expected
    asked = {"language": language, "task": task}
    assert model.transcribe(mel, **asked) == words(hf, mel, **asked)


def test_a_language_that_is_not_given_is_told_from_each_clip():
    hf, model = pair("multilingual")
    mel = torch.cat([tiny.inputs(model, batch=1, seed=seed)[0] * (1 + seed) for seed in range(8)])
    ids = hf.detect_language(mel).tolist()
    assert len(set(ids)) > 1
    code = {token: name.strip("<|>") for name, token in hf.generation_config.lang_to_id.items()}
    assert model.detect_language(mel) == [code[i] for i in ids]
    assert model.transcribe(mel) == words(hf, mel, task="transcribe")


@pytest.mark.parametrize("max_length", [5, 9, 12, 24])
def test_the_checkpoints_limit_counts_as_the_references(max_length):
    hf, model = pair(max_length=max_length)
    mel, _ = tiny.inputs(model)
    assert said(model, mel) == generated(hf, mel)


def test_a_prompt_of_forced_tokens_is_the_references():
    """Fine-tunes from before languages and tasks were in the rules keep their prompt so."""
    hf, model = pair(max_length=12)
    for rules in (hf.generation_config, model.generation_config):
        rules.forced_decoder_ids = [[1, 7], [2, 11]]
    mel, _ = tiny.inputs(model)
    expected = generated(hf, mel)
    assert expected[0][:4] == [tiny.START, 7, 11, tiny.NO_TIMESTAMPS]
    assert said(model, mel) == expected
    assert model.prompt(timestamps=True) == [tiny.START, 7, 11]


def test_a_position_that_the_transcript_never_reaches_warns():
    _, model = pair(max_length=6)
    mel, _ = tiny.inputs(model)
    with pytest.warns(UserWarning, match="never met position 20"):
        model.transcribe(mel, fwd_hooks=[zero("decoder.0.mlp@20")])
    model.transcribe(mel, fwd_hooks=[zero("decoder.0.mlp@3")])


def test_gradients_flow_back_through_cached_steps():
    model = tiny.hooked()
    mel, tokens = tiny.inputs(model)
    with torch.enable_grad():
        audio = model.encode(mel).detach().requires_grad_()
        expected = torch.autograd.grad(model.decode(tokens, audio)[:, -1].square().sum(), audio)
        logits = decode_in_steps(model, tokens, audio, [3, 2, 1, 1])
        (gradient,) = torch.autograd.grad(logits[:, -1].square().sum(), audio)
    assert_close(gradient, expected[0], rtol=1e-4, atol=1e-5)


def test_a_stream_of_another_type_is_taken_as_the_models_own():
    model = tiny.hooked(dtype=torch.bfloat16)
    mel, tokens = tiny.inputs(model)
    audio, resid = model.encode(mel), model(mel, tokens, stop_at="decoder.1")
    assert torch.equal(model.decode(tokens, audio.float()), model.decode(tokens, audio))
    again = model(resid=resid.float(), audio=audio.float(), start_at="decoder.1")
    assert torch.equal(again, model(mel, tokens))
