"""The bundled checkpoint: trained weights, the same in Hugging Face's hands and in these."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from hooked_asr import HookedWhisper, hook_table, patching
from hooked_asr.audio import load_audio
from hooked_asr.nano import bundle
from hooked_asr.nano.card import write_card
from hooked_asr.nano.evaluation import word_error_rate
from hooked_asr.nano.record import TrainingRecord
from hooked_asr.validation import validate
from hooked_asr.weights.checkpoint import BUNDLED

FOLDER = BUNDLED["whisper-nano"]
MOST_BYTES = 12 * 2**20


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


@pytest.fixture(scope="module")
def theirs():
    return WhisperForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    return WhisperProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def mel(model):
    return model.to_mel([clip.path for clip in bundle.clips()])


def test_is_small_and_stored_in_half_precision():
    files = [*FOLDER.iterdir(), *bundle.clip("english").path.parent.iterdir()]
    assert sum(file.stat().st_size for file in files) < MOST_BYTES
    assert HookedWhisper.from_pretrained("whisper-nano").dtype == torch.float16


def test_every_file_of_a_checkpoint_is_there():
    names = {file.name for file in FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= names


def test_every_layer_has_hugging_faces_bits(model, theirs, mel):
    tokens = model.to_tokens("Yes, a blue belt.", "en").expand(len(mel), -1)
    rows = validate(model, theirs, {"mel": mel, "tokens": tokens})
    assert len(rows) > 30
    assert [row.name for row in rows if not row.bit_equal] == []


def test_the_command_line_validates_it():
    command = [Path(sys.executable).with_name("hooked-asr"), "validate", "whisper-nano"]
    subprocess.run(command, capture_output=True, check=True)


def test_front_end_and_logits_are_hugging_faces(model, theirs, processor, mel):
    sounds = [clip.path for clip in bundle.clips()]
    expected = processor(
        [load_audio(path).numpy() for path in sounds], sampling_rate=16_000, return_tensors="pt"
    ).input_features
    assert torch.equal(mel, expected)
    tokens = model.to_tokens("Yes, a blue belt.", "en").expand(len(mel), -1)
    with torch.no_grad():
        assert torch.equal(model(mel, tokens), theirs(mel, decoder_input_ids=tokens).logits)


@pytest.mark.parametrize("task", ["transcribe", "translate"])
@pytest.mark.parametrize("language", ["en", "es", "de"])
def test_transcripts_are_hugging_faces(model, theirs, processor, mel, language, task):
    rows = theirs.generate(mel, language=language, task=task)
    expected = processor.batch_decode(rows, skip_special_tokens=True)
    assert model.transcribe(mel, language, task=task) == [text.strip() for text in expected]


def test_detects_languages_as_hugging_face_does(model, theirs, mel):
    ids = theirs.detect_language(input_features=mel)
    assert model.detect_language(mel) == [model.to_string([i]).strip("<|>") for i in ids.tolist()]


def test_hears_what_is_said(model):
    clips = [clip for clip in bundle.clips() if "clean" in clip.about or "accent" in clip.about]
    assert len(clips) >= 4
    heard = [model.transcribe(clip.path) for clip in clips]
    assert word_error_rate([clip.text for clip in clips], heard) < 0.1
    assert [model.detect_language(model.to_mel(c.path))[0] for c in clips] == [
        c.language for c in clips
    ]


def test_every_hook_fires_on_it(model, mel):
    tokens = model.to_tokens("Yes.", "en")
    _, cache = model.run_with_cache(mel[:1], tokens, names_filter=list(hook_table(model.config)))
    assert set(cache) == set(hook_table(model.config))


def test_a_head_matters_more_than_others(model):
    clean, babble = bundle.clip("english"), bundle.clip("english_babble")
    tokens = model.to_tokens(clean.text, "en")
    result = patching.sweep(
        model,
        clean=(model.to_mel(clean.path), tokens),
        reference=(model.to_mel(babble.path), tokens),
        sites=patching.heads("decoder.cross_attn"),
        metric=patching.transcript_log_prob(tokens, from_position=len(model.prompt("en"))),
        progress=False,
    )
    changes = result.change.abs().flatten().sort(descending=True).values
    assert changes[0] > 5 * changes.median()


def test_demo_says_and_writes_the_same_twice(tmp_path):
    def demo(folder: Path):
        command = [Path(sys.executable).with_name("hooked-asr"), "demo", "--out", "out"]
        folder.mkdir()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        numbers = {
            file.name: json.loads(file.read_text()) for file in (folder / "out").glob("*.json")
        }
        return done.stdout, numbers, sorted(file.name for file in (folder / "out").iterdir())

    first, second = demo(tmp_path / "first"), demo(tmp_path / "second")
    assert first == second
    text, numbers, files = first
    assert "english" in text
    assert len(numbers) == 3
    assert sum(name.endswith(".png") for name in files) == 3


def test_the_card_says_what_the_evaluation_found(tmp_path):
    package = FOLDER.parent
    found = json.loads((package / "CARD.json").read_text(encoding="utf-8"))
    write_card(tmp_path / "CARD.md", found, TrainingRecord.load(FOLDER))
    card = (package / "CARD.md").read_text(encoding="utf-8")
    assert card == (tmp_path / "CARD.md").read_text(encoding="utf-8")
    assert "synthetic" in card
    assert "For study, not for use" in card
    assert "**over**" not in card


def test_clips_are_told_by_name():
    with pytest.raises(bundle.ClipError, match="there are english, "):
        bundle.clip("klingon")
