"""Concepts in the bundled model: its language, steered and erased where it is told."""

import pytest
import torch

from hooked_asr import HookedWhisper
from hooked_asr.concepts import ErasureFitter, concept_effect, mean_difference, steering
from hooked_asr.nano import bundle

ENGLISH = [bundle.clip(name) for name in ("english", "scottish", "likely", "unlikely")]
GERMAN, SPANISH = bundle.clip("german"), bundle.clip("spanish")
LATE, MIDDLE = "decoder.3.hook_resid_post", "encoder.2.hook_resid_post"


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return HookedWhisper.from_pretrained("whisper-nano", dtype=torch.float32)


def rows(clips):
    return [
        {"audio": one.path, "id": one.name, "text": one.text, "language": one.language}
        for one in clips
    ]


def at_start(model, clips):
    """The stream at the start token, behind which the language is told."""
    mel = model.to_mel([one.path for one in clips])
    start = torch.tensor([model.prompt("en")[:1]] * len(clips))
    _, cache = model.run_with_cache(mel, start, names_filter=[LATE, MIDDLE])
    return cache


@pytest.fixture(scope="module")
def direction(model):
    with torch.no_grad():
        german, english = at_start(model, [GERMAN]), at_start(model, ENGLISH[1:])
    return mean_difference(
        german[LATE][:, 0], english[LATE][:, 0], LATE, name="German", model=model
    )


def test_english_is_steered_to_german(model, direction):
    direction.check(model)
    doses = steering(direction, [-1.0, 0.0, 1.5], positions=[0])
    effect = concept_effect(model, rows(ENGLISH), doses, progress=False)
    table = effect.to_pandas(language="de").set_index("strength")
    assert table["identified"].tolist() == [0.0, 0.0, 1.0]
    assert table["changed"].tolist()[:2] == [0.0, 0.0]
    assert {clip.before.language for clip in effect.clips} == {"en"}
    assert table["wer_before"].iloc[0] < 0.1


def test_a_clip_steered_back_says_what_it_said(model, direction):
    doses = steering(direction, [-1.5], positions=[0])
    effect = concept_effect(model, rows([GERMAN]), doses, progress=False)
    (outcome,) = effect.outcomes[0]
    assert (effect.clips[0].before.language, outcome.language) == ("de", "en")
    # Told in which language to hear it, the model hears what it heard: only the telling moved.
    asked = concept_effect(model, rows([GERMAN]), doses, language="own", progress=False)
    assert asked.outcomes[0][0].language == "en"
    assert asked.outcomes[0][0].text == asked.clips[0].before.text == GERMAN.text


def test_sound_whose_language_is_erased_linearly_is_heard_all_the_same(model):
    clips = [*ENGLISH[:2], GERMAN, SPANISH]
    fitter = ErasureFitter(["en", "de", "es"])
    frames, labels = [], []
    for clip in clips:
        frames.append(at_start(model, [clip])[MIDDLE][0, :150])
        labels += [clip.language] * 150
        fitter.update(frames[-1], [clip.language] * 150)
    erasure = fitter.fit(MIDDLE, name="language", model=model)
    erased = erasure.apply(torch.cat(frames).double())
    means = [
        erased[[i for i, one in enumerate(labels) if one == code]].mean(0)
        for code in ("en", "de", "es")
    ]
    for mean in means[1:]:  # no class's mean differs from another's: nothing for a linear probe
        torch.testing.assert_close(mean, means[0], rtol=0, atol=1e-6)
    effect = concept_effect(model, rows(clips), [erasure.intervention()], progress=False)
    table = effect.to_pandas()
    assert table["language_changed"].tolist() == [0.0]
    assert table["wer"].iloc[0] <= table["wer_before"].iloc[0] + 0.1
