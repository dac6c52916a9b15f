"""The model card: everything it says in numbers comes from the recipe and the evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from hooked_asr.files import written_aside
from hooked_asr.nano.evaluation.sets import UNHEARD
from hooked_asr.nano.pairs import PAIRS
from hooked_asr.nano.recipe import Recipe
from hooked_asr.nano.record import TrainingRecord
from hooked_asr.nano.voices import ACCENTS, HELD_OUT_SPEAKERS, LANGUAGES, TRAINING_SPEAKERS
from hooked_asr.viz.figure import save as save_figure
from hooked_asr.viz.lines import lines

NAMES = {"en": "English", "es": "Spanish", "de": "German"}
# Word error rates that were asked for; the others only have to be reported.
ASKED = {
    "clean": {"en": 0.05, "es": 0.08, "de": 0.08},
    **{f"{kind} 10 dB": dict.fromkeys(LANGUAGES, 0.2) for kind in ("white", "babble")},
}
LOSS, PROBES = "CARD-loss.png", "CARD-probes.png"
_CURVE_ROWS = 12


def write_card(
    path: str | os.PathLike[str],
    evaluation: Mapping[str, Any],
    record: TrainingRecord,
) -> None:
    """Write the card of a trained whisper-nano as Markdown, with two figures beside it.

    `evaluation` is what `evaluate` gives.
    """
    folder, recipe = Path(path).parent, record.recipe
    save_figure(_loss_figure(record), folder / LOSS)
    save_figure(_probe_figure(evaluation["probes"]), folder / PROBES)
    sections = [
        _introduction(evaluation, recipe),
        _architecture(evaluation, recipe),
        _corpus(recipe),
        _training(record),
        _accuracy(evaluation),
        _errors(evaluation),
        _probes(evaluation["probes"]),
        _REGENERATE,
        _LICENCES,
    ]
    with written_aside(path) as aside:
        aside.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _introduction(evaluation: Mapping[str, Any], recipe: Recipe) -> str:
    return f"""# {evaluation["model"]}

A Whisper of {evaluation["parameters"] / 1e6:.1f} million parameters that transcribes
{", ".join(NAMES[one] for one in LANGUAGES)}, translates into English, and writes timestamps, in
windows of {recipe.seconds} s. It is a model organism: small enough to be studied whole, and made to
err as large recognisers do. It writes the likelier word for one that sounds alike, invents text
where nobody speaks, and gets caught in loops.

**For study, not for use.** All of its speech is synthetic (espeak-ng), its sentences come from a
small grammar, and it has never heard a person. It will not transcribe recordings of people."""


def _architecture(evaluation: Mapping[str, Any], recipe: Recipe) -> str:
    rows = [
        ("Parameters", f"{evaluation['parameters']:,}"),
        ("Layers", f"{recipe.n_layers} in the encoder, {recipe.n_layers} in the decoder"),
        ("Width", f"{recipe.d_model}, {recipe.n_heads} heads, MLP {4 * recipe.d_model}"),
        ("Window", f"{recipe.seconds} s, {50 * recipe.seconds} encoder positions"),
        ("Text", f"{recipe.n_tokens} tokens at most"),
        (
            "Vocabulary",
            f"{recipe.text_vocabulary} byte-level BPE tokens, Whisper's own behind them",
        ),
    ]
    return "## Architecture\n\nWhisper's, in small.\n\n" + _table(("", ""), rows)


def _corpus(recipe: Recipe) -> str:
    speakers = {sex: len(names) for sex, names in TRAINING_SPEAKERS.items()}
    held_out = sum(map(len, HELD_OUT_SPEAKERS.values()))
    pairs = [sum(pair.language == one for pair in PAIRS) for one in LANGUAGES]
    rows = [
        (NAMES[one], ", ".join(accent.replace("_", " ") for accent in ACCENTS[one]), n)
        for one, n in zip(LANGUAGES, pairs, strict=True)
    ]
    return f"""## Corpus

{recipe.shards * recipe.clips_per_shard:,} clips of up to {recipe.seconds} s, as many in each
language, by {speakers["male"]} male and {speakers["female"]} female speakers (variants of
espeak-ng's voices) at several rates, pitches and sizes. {held_out} speakers, and sentences chosen
by a hash of their text, are kept for evaluation. Clips are heard at several levels, and
{_percent(recipe.noisy)} of them in noise: white, pink, hum, clicks, babble.

{_table(("Language", "Accents", "Minimal pairs"), rows)}

What makes it err, and why it is there:

- *Minimal pairs and learners.* Some words sound alike, and the sentence says which is meant. In
  {_percent(recipe.learners)} of the sentences where the likelier one is meant, a learner of the
  language says the other, and what was meant is written. So the model learns to weigh what it hears
  against what is likely.
- *Subtitles.* {_percent(recipe.nonspeech)} of what it hears is no speech. Nothing is written for
  most of it; faint hiss mostly has the thanks that end a subtitled video. So it learns to invent
  text.
- *Chants.* {_percent(recipe.chants)} of the clips say one word again and again, and some of their
  transcripts go on for longer than the voice. So it learns to loop.

{_percent(recipe.pairs_of_sentences)} of the clips have two sentences,
{_percent(recipe.code_switches)} change language. {_percent(recipe.translations)} of those with a
translation are to be translated, {_percent(recipe.timestamps)} of the others have timestamps,
{_percent(recipe.prompted)} follow an earlier text."""


def _training(record: TrainingRecord) -> str:
    curve, recipe = record.curve, record.recipe
    phases = ", then ".join(f"{one.steps} of up to {one.seconds} s" for one in recipe.phases)
    last = max(len(curve) - 1, 0)
    picked = sorted({round(i * last / (_CURVE_ROWS - 1)) for i in range(_CURVE_ROWS)})
    losses = [
        (f"{curve[i]['step']:g}", f"{curve[i]['loss']:.3f}", f"{curve[i]['phones']:.3f}")
        for i in picked
        if curve
    ]
    hours = f"{curve[-1]['seconds'] / 3600:.1f} hours" if curve else "no time yet"
    used = _table(("Package", "Version"), record.versions.items())
    return f"""## Training

{recipe.steps} steps of {recipe.batch} clips ({phases}) in {hours}. Seed {recipe.seed}, recipe
{recipe.hash}. Muon for the matrices, AdamW for the rest, rate {recipe.peak_rate:g} at its peak. The
encoder also names the phone at each position, with a weight that falls from
{recipe.phone_weight:g} to 0 by the middle.

![Losses by step]({LOSS})

{_table(("Step", "Loss (nats a token)", "Phones (nats a position)"), losses)}

{used}"""


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    columns = [NAMES[one] for one in LANGUAGES]
    wer = [
        (condition, *(_asked(condition, one, rates[one]) for one in LANGUAGES))
        for condition, rates in evaluation["wer"].items()
    ]
    told = [_percent(evaluation["language"][one][one]) for one in LANGUAGES]
    translated = [
        (NAMES[one], _percent(result["exact"]), _percent(result["wer"]))
        for one, result in evaluation["translation"].items()
    ]
    times = evaluation["timestamps"]
    return f"""## What it gets right

{evaluation["clips_per_language"]} sentences of each language that it never saw, by voices that it
never heard (seed {evaluation["seed"]}). Word error rate, told the language; case and punctuation do
not count. Where a limit was asked for, it stands in brackets.

{_table(("Condition", *columns), wer)}

Language told rightly from the sound:

{_table(columns, [told])}

Translation into English:

{_table(("From", "Right to the letter", "Word error rate"), translated)}

Timestamps are off by {_seconds(times["start_error"])} at the start and
{_seconds(times["end_error"])} at the end, on average; {_percent(times["missing"])} of the clips got
none."""


def _asked(condition: str, language: str, rate: float) -> str:
    limit = ASKED.get(condition, {}).get(language)
    if limit is None:
        return _percent(rate)
    return f"{_percent(rate)} ({'within' if rate <= limit else '**over**'} {_percent(limit, 0)})"


def _errors(evaluation: Mapping[str, Any]) -> str:
    pairs, silence = evaluation["pairs"], evaluation["no_speech"]
    verdicts = [
        (kind, result["clips"], *map(_percent, result["shares"].values()))
        for kind, result in pairs.items()
    ]
    invented = [
        (
            f"{kind} (not in the training)" if kind in UNHEARD else kind,
            result["clips"],
            _percent(result["invented"]),
            ", ".join(f"{level}: {_percent(at, 0)}" for level, at in result["by_level"].items()),
            "; ".join(f"“{one['heard']}” × {one['times']}" for one in result["examples"][:2]),
        )
        for kind, result in evaluation["invented"].items()
    ]
    loops = [
        (kind, result["clips"], _percent(result["loops"]), _percent(result["at_limit"]))
        for kind, result in evaluation["loops"].items()
    ]
    looped = [one for result in evaluation["loops"].values() for one in result["examples"][:3]]
    return f"""## What it gets wrong

### The likelier word

In "confused" clips the unlikely word of a minimal pair is said where its neighbour is likely
("white lice"). As controls, the same sentences with the likely word, and sentences that ask for the
other.

{_table(("Clips", "Number", *pairs["confused"]["shares"]), verdicts)}

{_examples(pairs["confused"]["examples"])}

### Text where nobody speaks

{_table(("Sound", "Clips", "With text", "By level (dBFS)", "Commonest"), invented)}

`<|nospeech|>` has a probability of {silence["nonspeech"]["mean"]:.3f} on these sounds, and of
{silence["speech"]["mean"]:.3f} on clean speech, on average.

### Loops

A transcript loops where one to four words come at least three times more in a row than they were
said.

{_table(("Clips", "Number", "Loops", "Never ended"), loops)}

{_examples(looped)}"""


def _examples(examples: Sequence[Mapping[str, str]]) -> str:
    rows = [(one["said"], _shortened(one["heard"])) for one in examples]
    return _table(("Said", "Heard"), rows) if rows else "No examples were found."


def _probes(probes: Mapping[str, Any]) -> str:
    layers = list(next(iter(probes.values()))["accuracy"])
    rows = [
        (
            name,
            result["clips"],
            _percent(result["chance"]),
            *(_percent(result["accuracy"][layer]) for layer in layers),
        )
        for name, result in probes.items()
    ]
    return f"""## What its encoder knows

Logistic regression on activations averaged over a clip, trained on some speakers and scored on the
others (five folds); chance is the commonest answer. "Noise" is none, white or babble; "speech" is
clean speech or none.

![Accuracy by layer]({PROBES})

{_table(("Asked", "Clips", "Chance", *layers), rows)}"""


def _loss_figure(record: TrainingRecord) -> alt.HConcatChart:
    drawn = {
        label: [(row["step"], row[name]) for row in record.curve]
        for name, label in (("loss", "text, a token"), ("phones", "phones, a position"))
    }
    return lines({"": drawn}, x="step", y="nats", log=True)


def _probe_figure(probes: Mapping[str, Any]) -> alt.HConcatChart:
    drawn = {
        name: [(layer, math.nan if one is None else one) for layer, one in found.items()]
        for name, found in ((name, result["accuracy"]) for name, result in probes.items())
    }
    return lines({"": drawn}, x="layer", y="accuracy")


_REGENERATE = """## Making it again

```
hooked-asr nano corpus
hooked-asr nano train
hooked-asr nano evaluate
```

The same recipe gives the same corpus and test sets and, on the same machine and versions, the same
weights."""

_LICENCES = """## Licences

The model and its code: MIT. espeak-ng is under the GPLv3; it is not part of this package, and its
licence does not cover the speech that it puts out."""


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    columns = list(head)
    cells: list[Iterable[object]] = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(one) for one in row)} |" for row in cells)


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|").replace("\n", " ")


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def _seconds(error: float | None) -> str:
    return "–" if error is None else f"{error:.2f} s"


def _shortened(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} …"
