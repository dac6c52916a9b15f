"""The encoder lens: the whole transcript, decoded from where each encoder layer has got to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from hooked_asr.generation import Row, Transcript, decode_rows, end_tokens
from hooked_asr.lenses.encoder_inputs import (
    EACH,
    EncoderLensError,
    check_options,
    clips_of,
    depths_of,
    is_mel,
    label,
    name_of,
    texts_of,
)
from hooked_asr.lenses.encoder_result import ClipLens, EncoderLens, LayerTranscript
from hooked_asr.lenses.tuned import TunedLens
from hooked_asr.lenses.tuned_streams import sites_of
from hooked_asr.patching.loops import longest_loop
from hooked_asr.shapes import Audio, Mel, MelMask
from hooked_asr.speech import cer, language_code, normaliser, token_compression_ratio, wer
from hooked_asr.speech.normalisers import Normaliser
from hooked_asr.speech.repetition import MIN_REPEATS


@dataclass(frozen=True)
class _Settings:
    """How the transcripts are asked for, and judged."""

    language: str | None
    asked: Mapping[str, Any]
    normalise: Normaliser | None
    min_repeats: int
    max_new_tokens: int | None
    sample_rate: int | None
    batch_size: int
    progress: bool
    tuned: TunedLens | None


@torch.no_grad()
def encoder_lens(
    model: Any,
    audio: Any,
    *,
    layers: Sequence[int | str] | None = None,
    language: str | None = None,
    said: str | Sequence[str | None] | None = None,
    normalise: Normaliser | None = None,
    min_repeats: int = MIN_REPEATS,
    max_new_tokens: int | None = None,
    sample_rate: int | None = None,
    batch_size: int = 32,
    tuned: TunedLens | None = None,
    progress: bool = False,
    **asked: Any,
) -> EncoderLens:
    """Stop the encoder behind each layer, and decode the whole transcript from there.

    The stream that leaves the layer goes through the encoder's final norm (pooled before it, where
    the model pools) to the decoder, which is left as it is. The encoder runs once for each clip;
    the layers are decoded as one batch, greedily, by the checkpoint's own rules.

        lens = encoder_lens(model, "clip.wav", said="Ask not what your country can do for you.")
        print(lens.to_pandas()[["layer", "text", "wer"]])

    - `audio`: a clip (a path, or samples), or a list of them, of one window each at most; log-mel
      frames `[clip n_mels frame]` for Whisper, or for Qwen2-Audio what `to_inputs` gives for one
      clip.
    - `layers`: numbers from 0, and "embed" for what enters layer 0; all of these by default. The
      last layer is always among them: it gives the ordinary transcript, token for token.
    - `language`: that of every layer; by default the one that the whole model tells, so that layers
      can be compared; "each" for the one that each layer tells by itself.
    - `said`: what is truly said in the clip, or in each (None where that is not known). Error rates
      are against it, or else against what the last layer gives; where it is known, a loop says the
      same more often than it does.
    - `normalise`: what makes texts comparable; by default Whisper's for the clip's language, with
      the checkpoint's tokenizer ("en" for a model that takes no language).
    - `min_repeats`: see `speech.find_loops`. `sample_rate`: of samples (Hz).
    - `batch_size`: layers at a time; keys and values of each take memory.
    - `tuned`: a lens for the encoder, by which each layer's stream but the last goes to where the
      last one ends, before the final norm. A model that pools does so behind it, which is the same
      as before it: translators are affine, and commute with a mean.
    - `asked`: how the model is asked: `task` for Whisper, `prompt` for Qwen2-Audio.

    Hooks that are attached to the model act here too.

    Raises `EncoderLensError` for layers or options that the model lacks, or as many texts said as
    there are no clips; `LensError` for a `tuned` lens that does not fit; `PromptError` for a
    language that the checkpoint lacks; `AudioError` for clips that are too long; `WordErrorsError`
    where jiwer is not installed.

    Source: "DecoderLens: Layerwise Interpretation of Encoder-Decoder Transformers" (2023), section
    3; "Beyond Transcription: Mechanistic Interpretability in ASR" (2025) has it for Whisper and
    Qwen2-Audio.
    """
    check_options(model, language, asked, batch_size)
    if tuned is not None:
        tuned.check_fits(model, "encoder")
    settings = _Settings(
        language,
        asked,
        normalise,
        min_repeats,
        max_new_tokens,
        sample_rate,
        batch_size,
        progress,
        tuned,
    )
    depths = depths_of(model, layers)
    clips = clips_of(audio)
    texts = texts_of(said, len(clips))
    bar = tqdm(clips, desc="encoder lens", unit="clip", disable=not progress)
    return EncoderLens(
        clips=[
            _clip_lens(model, name_of(clip, i), clip, text, depths, settings)
            for i, (clip, text) in enumerate(zip(bar, texts, strict=True))
        ],
        min_repeats=min_repeats,
        model=model.name,
    )


# --- One clip -------------------------------------------------------------------------------------


def _clip_lens(
    model: Any, name: str, clip: Any, said: str | None, depths: list[int], settings: _Settings
) -> ClipLens:
    mel, mel_mask, prompt = _inputs(model, clip, settings)
    outputs = _outputs(model, mel, mel_mask, depths, settings.tuned)
    told = _told(model, outputs, settings.batch_size)
    spoken = _spoken(told, settings.language)
    prompt = prompt or _prompts(model, spoken, settings.asked)
    rows = _decoded(model, outputs, prompt, settings)
    heard = [_transcript(model, *one) for one in zip(rows, spoken, strict=True)]
    reference = heard[-1].text if said is None else said
    normalise = settings.normalise or normaliser(spoken[-1] or "en", model.tokenizer)
    layers = [
        LayerTranscript(
            layer=label(depth),
            text=one.text,
            tokens=one.tokens,
            ended=row.ended,
            empty=_is_empty(model, one),
            loop=longest_loop(model, one, settings.min_repeats, said),
            language=one.language or None,
            told=own,
            avg_logprob=one.avg_logprob,
            compression_ratio=one.compression_ratio,
            **_error_rates(model, reference, one.text, normalise),
        )
        for depth, row, one, own in zip(depths, rows, heard, told, strict=True)
    ]
    return ClipLens(name, reference, "last layer" if said is None else "said", layers)


def _error_rates(
    model: Any, reference: str, text: str, normalise: Normaliser
) -> dict[str, float | None]:
    if model.tokenizer is None:
        return {"wer": None, "cer": None}
    return {
        "wer": wer(reference, text, normalise),
        "cer": cer(reference, text, normalise),
    }


def _outputs(
    model: Any, mel: Mel, mel_mask: MelMask | None, depths: list[int], tuned: TunedLens | None
) -> Float[Tensor, "layer audio d_enc"]:
    """What the encoder would put out behind so many layers; each layer runs once."""
    n_layers = model.config.encoder.n_layers
    resid = model.encode(mel, mel_mask, stop_at=0)
    streams = [resid]
    for layer in range(n_layers):
        resid = model.encode(resid, mel_mask, start_at=layer, stop_at=layer + 1)
        streams.append(resid)
    if tuned is not None:
        sites = sites_of("encoder", n_layers)
        streams[:-1] = [tuned(*one) for one in zip(sites, streams[:-1], strict=True)]
    # Behind its layers an encoder mixes no rows, and has no use for a mask.
    ends = [model.encode(streams[depth], start_at=n_layers) for depth in depths]
    return torch.cat(ends)


def _decoded(
    model: Any, outputs: Audio, prompt: Mapping[str, Tensor], settings: _Settings
) -> list[Row]:
    """What is said to each of the encoder's outputs; `prompt` has a row for all, or for each."""
    prompt = {name: value.expand(len(outputs), -1) for name, value in prompt.items()}
    n_prompt, new = prompt["tokens"].shape[1], settings.max_new_tokens
    limit = model.token_limit(n_prompt) if new is None else n_prompt + new
    rows: list[Row] = []
    for start in range(0, len(outputs), settings.batch_size):
        here = slice(start, start + settings.batch_size)
        inputs = {name: value[here] for name, value in prompt.items()} | {"audio": outputs[here]}
        rows += decode_rows(model, inputs, limit, progress=settings.progress).rows
    return rows


def _transcript(model: Any, row: Row, language: str | None) -> Transcript:
    ends = end_tokens(model.generation_config)
    # Behind the end token come Whisper's time stamps, which are no words.
    words = row.tokens if not ends else [token for token in row.tokens if token < min(ends)]
    end = ends[:1] if row.ended else []
    return Transcript(
        text=model.text_of(words),
        tokens=row.tokens,
        language=language or "",
        segments=[],
        avg_logprob=row.avg_logprob,
        no_speech_prob=None,
        compression_ratio=token_compression_ratio(row.tokens + end, model.config.d_vocab),
        temperature=0.0,
    )


def _is_empty(model: Any, heard: Transcript) -> bool:
    if model.tokenizer is None:
        return not heard.tokens
    return re.search(r"\w", heard.text) is None


# --- What the decoder is asked --------------------------------------------------------------------


def _inputs(
    model: Any, clip: Any, settings: _Settings
) -> tuple[Mel, MelMask | None, dict[str, Tensor] | None]:
    """A clip's frames and their mask, and the prompt, where that does not hang on a language."""
    if not model.config.prefix:
        mel = clip if is_mel(clip) else model.to_mel(clip, settings.sample_rate)
        return mel, None, None
    given = clip
    if not isinstance(clip, Mapping):
        asked = model.settled(clip, **settings.asked)
        given = model.to_inputs(clip, sample_rate=settings.sample_rate, **asked)
    mel = given.get("mel")
    if mel is None or len(mel) != 1 or len(given["tokens"]) != 1:
        raise EncoderLensError(
            "the inputs of a clip are one prompt with one clip in it: give the lens a list of such "
            "inputs for several"
        )
    prompt = {name: value for name, value in given.items() if name != "mel" and value is not None}
    return mel, given.get("mel_mask"), prompt


def _told(model: Any, outputs: Audio, batch_size: int) -> Sequence[str | None]:
    """The language that each layer tells; None for a model that is asked in the prompt's words."""
    if model.config.prefix:
        return [None] * len(outputs)
    return [one for batch in torch.split(outputs, batch_size) for one in model.languages_of(batch)]


def _spoken(told: Sequence[str | None], language: str | None) -> Sequence[str | None]:
    """The language in which each layer is asked."""
    if language == EACH:
        return told
    if language is not None:
        return [language_code(language)] * len(told)
    return [told[-1]] * len(told)


def _prompts(
    model: Any, spoken: Sequence[str | None], asked: Mapping[str, Any]
) -> dict[str, Int[Tensor, "layer pos"]]:
    rows = [model.prompt(language, **asked) for language in spoken]
    return {"tokens": torch.tensor(rows, device=model.device)}
