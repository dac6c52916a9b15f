"""Tokenizer, batches and training: what the model is taught, and that a stop changes nothing."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hooked_asr import HookedWhisper
from hooked_asr.nano import training
from hooked_asr.nano.batches import IGNORED, Batches
from hooked_asr.nano.corpus import build_corpus
from hooked_asr.nano.recipe import Phase, Recipe
from hooked_asr.nano.training import TrainingError, train, untrained, windowed

pytestmark = pytest.mark.long

pytest.importorskip("espeakng_loader")
SMALL = Recipe(
    shards=1,
    clips_per_shard=12,
    d_model=32,
    n_layers=1,
    n_heads=2,
    text_vocabulary=300,
    phases=(Phase(4, 4), Phase(2, 6)),
    batch=4,
    warmup=2,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), SMALL, workers=1, progress=False)


@pytest.fixture(scope="module")
def model():
    return untrained(SMALL)


@pytest.fixture(scope="module")
def everything(corpus, model):
    """Batches of one clip each, many of them."""
    batches = Batches(corpus, model.tokenizer, replace(SMALL, batch=1, phases=(Phase(400, 6),)))
    return [batches[step] for step in range(150)]


def test_tokens_are_whispers_in_whispers_order(model):
    token = model.tokenizer.convert_tokens_to_ids
    ids = [
        token(name)
        for name in (
            *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|zh|>", "<|translate|>"),
            *("<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
            *("<|notimestamps|>", "<|0.00|>", "<|0.02|>", "<|6.00|>"),
        )
    ]
    assert ids == sorted(ids)
    assert ids[0] == SMALL.text_vocabulary
    assert ids[-1] - ids[-3] == 300
    assert ids[-3] - ids[-4] == 1  # transformers reads times off their distance to this one


@pytest.mark.parametrize("text", ["I like white rice.", "¿Dónde está el señor?", "Füße, bitte!"])
def test_text_survives_the_tokenizer(model, text):
    assert model.to_string(model.to_tokens(text, "en")[0], special=False).strip() == text


def test_a_checkpoint_is_hugging_faces(model, tmp_path):
    model.save_pretrained(tmp_path / "saved", torch.float16)
    theirs = WhisperForConditionalGeneration.from_pretrained(tmp_path / "saved")
    processor = WhisperProcessor.from_pretrained(tmp_path / "saved")
    assert theirs.dtype == torch.float16
    assert processor.tokenizer.prefix_tokens[0] == model.generation_config.decoder_start_token_id
    sound = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10
    mel = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    again = HookedWhisper.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert torch.equal(again.to_mel(sound), mel)
    tokens = model.to_tokens("Hola.", "es")
    expected = theirs.float().eval()(mel, decoder_input_ids=tokens).logits
    assert torch.equal(again(mel, tokens), expected)
    said = theirs.generate(mel, language="es", task="transcribe", max_new_tokens=8)
    assert (
        processor.batch_decode(said, skip_special_tokens=True)[0].strip()
        == again.transcribe(mel, "es", max_new_tokens=8)[0]
    )


def test_a_batch_depends_on_its_step_alone(corpus, model):
    one, two = (Batches(corpus, model.tokenizer, SMALL) for _ in range(2))
    two[0]
    first, again = one[3], two[3]
    assert torch.equal(first.mel, again.mel)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.mel, one[2].mel)
    assert (one[0].mel.shape[-1], one[5].mel.shape[-1]) == (400, 600)
    with pytest.raises(IndexError):
        one[6]


def test_each_label_is_the_next_token_or_left_out(everything, model):
    silent = model.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    for batch in everything:
        tokens, labels = batch.tokens[0].tolist(), batch.labels[0].tolist()
        for position, label in enumerate(labels[:-1]):
            assert label in (IGNORED, silent, tokens[position + 1])
        assert labels[-1] == model.generation_config.eos_token_id


def test_the_language_is_asked_for_behind_the_start(everything, model):
    start = model.generation_config.decoder_start_token_id
    asked = {
        model.to_string([batch.labels[0, batch.tokens[0].tolist().index(start)].item()])
        for batch in everything
    }
    assert asked == {"<|en|>", "<|es|>", "<|de|>", "<|nospeech|>"}


def test_every_kind_of_task_is_taught(everything, model):
    texts = [model.to_string(batch.tokens[0]) for batch in everything]
    for marks in ("<|translate|><|notimestamps|>", "<|startofprev|>"):
        assert any(marks in text for text in texts), marks
    zero = model.tokenizer.convert_tokens_to_ids("<|0.00|>")
    timed = [row for row in (batch.tokens[0].tolist() for batch in everything) if max(row) >= zero]
    assert timed
    for row in timed:
        first, *_, last = [token - zero for token in row if token >= zero]
        assert 0 <= first < last <= 300  # in steps of 20 ms


def test_phones_lie_under_the_sound(corpus, model):
    batches = Batches(corpus, model.tokenizer, replace(SMALL, noisy=0.0, nonspeech=0.0))
    clip = corpus[0]
    frames = batches._frames(clip.phones, 300)
    (phone,) = [one for one in clip.phones if one.start <= 1.0 < one.end]
    assert corpus.phones[frames[50] - 1] in (phone.text.strip("ˈˌ"),)
    assert frames[-1] == 0


def test_a_shorter_window_shares_the_weights(model):
    short = windowed(model, 150)
    assert short.embed.weight is model.embed.weight
    assert short.unembed.weight is model.embed.weight
    mel = torch.randn(1, 80, 300, generator=torch.Generator().manual_seed(0))
    tokens = model.to_tokens("Hola.", "es")
    short(mel, tokens).sum().backward()
    assert model.decoder[0].mlp.fc_in.weight.grad is not None
    model.zero_grad()


def test_a_training_that_was_stopped_ends_as_one_that_was_not(corpus, tmp_path):
    whole = train(corpus, tmp_path / "whole", SMALL, progress=False)
    train(corpus, tmp_path / "parts", SMALL, progress=False, stop_after=3)
    parts = train(corpus, tmp_path / "parts", SMALL, progress=False)
    assert all(map(torch.equal, whole.state_dict().values(), parts.state_dict().values()))
    assert not torch.equal(whole.W_E, untrained(SMALL).W_E)


def test_an_interrupt_waits_for_the_step_and_saves_it(corpus, tmp_path, monkeypatch):
    advance = training._Run.advance

    def interrupted(run, batch):
        losses = advance(run, batch)
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return losses

    monkeypatch.setattr(training._Run, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, SMALL, progress=False)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_training_of_another_recipe_is_refused(corpus, tmp_path):
    train(corpus, tmp_path, SMALL, progress=False, stop_after=1)
    with pytest.raises(TrainingError, match="another recipe"):
        train(corpus, tmp_path, replace(SMALL, peak_rate=1e-4), progress=False)


def test_training_learns(corpus, tmp_path):
    recipe = replace(SMALL, phases=(Phase(40, 6),), peak_rate=1e-2, nonspeech=0.0, noisy=0.0)
    batches = Batches(corpus, untrained(recipe).tokenizer, recipe)
    fresh, taught = untrained(recipe), train(corpus, tmp_path, recipe, progress=False)

    def loss(model):
        batch = batches[0]
        labels = torch.cat([torch.full((4, 1), IGNORED), batch.labels], dim=1)
        with torch.no_grad():
            logits = model(batch.mel, batch.tokens)
        padded = torch.cat([logits, logits[:, -1:]], dim=1)
        return model.loss(padded, labels).item()

    assert loss(taught) < 0.75 * loss(fresh)
