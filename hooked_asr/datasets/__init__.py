"""Data sets of synthetic speech, made by the call: recordings, labels, times.

    from hooked_asr import datasets

    manifest = datasets.sentences("speech", n=240, noises=("clean", "white", "babble"))
    datasets.minimal_pairs("pairs", vocabulary="open", tts="piper -m {voice} -f {out}",
                           voices=["lessac.onnx:female", "ryan.onnx:male"])

Every builder gives the path of `out/manifest.csv`, which all that takes recordings takes; they lie
in `out/audio` (FLAC, 16 kHz). Its columns are `audio`, `id`, `text`, `language`, `group` (the
speaker), and labels: `sex`, `accent`, `noise` ("clean", "white 10 dB"), `kind`, `speech` ("yes",
"no"), and each builder's own. When what is said is in `words.json` and `phones.json` (IPA without
stress; `[label, start, end]`, in s), for `sae.reading`'s `words=` and `phones=`; `dataset.json` has
the recipe, versions, and a hash over manifest and samples.

Arguments of all builders of speech:

- `held_out`: voices and sentences that whisper-nano's training never had; False for the others.
- `sex` ("female", "male"), `accents` (as in "scottish"): only these voices of espeak-ng.
- `vocabulary`: "nano", what whisper-nano knows, in clips of 6 s at most; "open", many more words,
  in clips of 30 s at most.
- `tts`: a command of any text-to-speech program, run for each text without a shell, in the place of
  espeak-ng: `"piper -m {voice} -f {out}"`. `{out}` is the sound file that it is to write, of any
  rate; `{voice}`, `{language}` and `{rate}` (words a minute) may be told; the text comes on stdin,
  or as `{text}`. It tells no times. `voices`: what `{voice}` may be, each alone or with labels:
  `"a.onnx"`, `"a.onnx:female"`, `"a.onnx:male:scottish"`, and `"de=b.onnx:female"` for one language
  only. `jobs`: how many are said at a time.
- `seed`: the same arguments give the same manifest and samples to the bit, with the espeak-ng of
  the `espeakng-loader` wheel and the same versions; a `tts` program, as far as it does.

`in_noise` and `altered` (as loud as each other; backwards) take recordings that there are.

What was killed goes on when it is called again, and what is whole is left as it is.

Raise `DatasetError` for arguments that do not fit, a folder with something else in it, and a
command that fails, with what it said; `OtherDatasetError` (which is one, and a `RecordsError`) for
a folder with a set of other arguments, naming them; `SynthesisError` where espeak-ng is missing.
"""

from hooked_asr.datasets.altered import altered, in_noise
from hooked_asr.datasets.broken import fragments
from hooked_asr.datasets.errors import DatasetError, OtherDatasetError
from hooked_asr.datasets.minimal import minimal_pairs
from hooked_asr.datasets.nonspeech import noises
from hooked_asr.datasets.plain import sentences
from hooked_asr.datasets.repeated import repeated_words
from hooked_asr.datasets.semantic import semantic_categories
from hooked_asr.datasets.switching import code_switching

__all__ = [
    "DatasetError",
    "OtherDatasetError",
    "altered",
    "code_switching",
    "fragments",
    "in_noise",
    "minimal_pairs",
    "noises",
    "repeated_words",
    "semantic_categories",
    "sentences",
]
