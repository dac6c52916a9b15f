"""Whisper, hooked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hooked_asr.generation import (
    DecodingOptions,
    Generation,
    GenerationError,
    Steps,
    Transcript,
    Transcription,
    end_tokens,
    seeded,
)
from hooked_asr.generation.row_recordings import RowRecordings
from hooked_asr.generation.window import Watched
from hooked_asr.hooks import Hooks
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.models.whisper_prompt import is_multilingual, prompt_tokens
from hooked_asr.models.whisper_recordings import (
    alignment_heads,
    is_mel,
    previous_tokens,
    recordings_of,
    references_of,
    transcript_of,
)
from hooked_asr.names import Selector, select
from hooked_asr.shapes import Audio, Mel, MelMask, Tokens
from hooked_asr.weights.whisper import WHISPER


class HookedWhisper(Recogniser):
    """Any Whisper, from its config alone: tiny to large-v3, English-only, turbo, distilled.

    What a config says of regularisation in training (dropout, layer drop, SpecAugment) is kept for
    `to_hf`, and not applied here.

    >>> from hooked_asr import HookedWhisper, ModelConfig, FrontEndConfig, StackConfig
    >>> stack = StackConfig(n_layers=2, n_heads=2, d_model=16, d_mlp=32, n_ctx=50)
    >>> model = HookedWhisper(ModelConfig(FrontEndConfig(n_mels=8), stack, stack, d_vocab=10))
    >>> logits, cache = model.run_with_cache(torch.zeros(1, 8, 100), torch.tensor([[1, 2, 3]]))
    >>> logits.shape, cache["z", 1, "cross_attn"].shape
    (torch.Size([1, 3, 10]), torch.Size([1, 3, 2, 8]))
    """

    source = WHISPER
    asked_by = ("language", "task")

    # --- Sound and text in ------------------------------------------------------------------------

    def prompt(
        self, language: str | None = None, task: str = "transcribe", timestamps: bool = False
    ) -> list[int]:
        """The token ids that stand before the text: start, language, task, no timestamps.

        Raises `PromptError` for a language or a task that the checkpoint lacks.
        """
        return prompt_tokens(self.generation_config, language, task, timestamps)

    def to_inputs(
        self,
        audio: Any,
        text: str | Sequence[str] | None = None,
        sample_rate: int | None = None,
        **prompt: Any,
    ) -> dict[str, Tensor]:
        """The inputs of a forward, `mel` and `tokens`: the prompt alone, or `text` behind it.

        `prompt`: language, task and timestamps, as `to_tokens` takes them.
        """
        mel = self.to_mel(audio, sample_rate)
        tokens = self.to_tokens([""] * len(mel) if text is None else text, **prompt)
        return {"mel": mel, "tokens": tokens}

    def to_tokens(
        self,
        text: str | Sequence[str],
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        append_eot: bool = False,
    ) -> Tokens:
        """Token ids `[batch pos]` of a transcript behind Whisper's prompt, for teacher forcing.

        A leading space is put in front of the text, as the model writes it. Several texts are
        padded on the right with the end token, which changes nothing before it.

        Raises `PromptError` for a language or a task that the checkpoint lacks.
        """
        texts = [text] if isinstance(text, str) else list(text)
        prompt = self.prompt(language, task, timestamps)
        end = self._end_token
        rows = [[*prompt, *self.encode_text(one), *([end] if append_eot else [])] for one in texts]
        longest = max(map(len, rows))
        padded = [row + [end] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self.device)

    # --- Text out ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        audio: Any,
        *,
        language: str | Sequence[str] | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        words: bool = False,
        temperature: float | Sequence[float] = 0.0,
        num_beams: int = 1,
        compression_ratio_threshold: float | None = None,
        logprob_threshold: float | None = None,
        no_speech_threshold: float | None = None,
        condition_on_prev_tokens: bool | None = None,
        prompt: str | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        fwd_hooks: Hooks = (),
        interventions: Hooks = (),
        names_filter: Selector = None,
        mel_mask: MelMask | None = None,
        sample_rate: int | None = None,
        progress: bool = False,
    ) -> Generation[Transcript]:
        """What is heard in recordings of any length, decoded by the checkpoint's own rules.

        - `audio`: a path, or samples at `sample_rate` (Hz); a list of them; or log-mel frames
          `[clip n_mels frame]` with, for recordings of unequal length, `mel_mask` `[clip frame]`.
          What is longer than a window (30 s) is decoded window after window, with time stamps.
        - `language`: a code or a name, or one for each recording; told from the sound where open.
        - `task`: "transcribe", or "translate" (into English).
        - `timestamps`, `words`: also tell when each segment, each word, is spoken.
        - `temperature`: 0 for the likeliest tokens (of `num_beams` beams); or that to draw them at;
          or several, tried in turn while a window is too repetitive or too unlikely, as
          `compression_ratio_threshold` (of token bytes: 1.35) and `logprob_threshold` (mean, nats:
          -1.0) say. `no_speech_threshold` (0.6): a window that is unlikely and likelier silence
          than that is left out.
        - `condition_on_prev_tokens`: tell each window what was heard before; `prompt`: text (or
          the token ids that stand before the start token) of what came before the recording.
        - `seed`: of what is drawn; by default PyTorch's generator goes on from where it is.
        - `fwd_hooks`, `interventions`: alive in the encoder and in every cached step, of every
          window; one that had nothing to do warns. A source may be a `Lockstep`, a reference that
          is decoded beside.
        - `names_filter`: activations to keep (see `names.select`; "*" for all but lazy ones).

        Raises `GenerationError` for options that contradict each other or leave no room,
        `PromptError` for a language or task that the checkpoint lacks, `AudioError`.

        Source: "Robust Speech Recognition via Large-Scale Weak Supervision" (2022), section 4.5.
        """
        recordings = recordings_of(self, audio, sample_rate, mel_mask, language)
        options = DecodingOptions.of(
            self.generation_config,
            temperature,
            task=task,
            timestamps=timestamps or any(r.n_frames > self.config.n_frames for r in recordings),
            words=words,
            num_beams=num_beams,
            compression_ratio_threshold=compression_ratio_threshold,
            logprob_threshold=logprob_threshold,
            no_speech_threshold=no_speech_threshold,
            condition_on_prev_tokens=condition_on_prev_tokens,
            prompt=previous_tokens(self, prompt),
            max_new_tokens=max_new_tokens,
        )
        names = () if names_filter is None else tuple(select(names_filter, self.hook_table))
        watched = Watched(names, alignment_heads(self) if words else ())
        with self.decoding_hooks([*fwd_hooks, *interventions]), seeded(seed):
            beside = references_of(self)
            transcription = Transcription(self, recordings, options, watched, beside)
            transcription.run(progress)
        return Generation([transcript_of(self, one) for one in recordings], transcription.windows)

    @torch.no_grad()
    def generate_rows(
        self,
        audio: Any,
        rows: Sequence[Any],
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = False,
        prompt: str | Sequence[int] | None = None,
        max_new_tokens: int | None = None,
        fwd_hooks: Hooks = (),
        sample_rate: int | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[Transcript]:
        """One recording under many interventions: what `generate` gives with each, in one batch.

        - `rows`: an intervention each, or a list of interventions and hooks that act together.
        - `batch_size`: rows at a time; keys and values of each take memory.
        - `fwd_hooks`: alive in every row. For the rest see `generate`; decoding is greedy.

        The recording is encoded once, and cross-attention keys and values are shared by all rows
        that do not touch them. A row whose interventions act position by position (all but custom
        ones, raw functions and means over the running clip) is first checked against the untouched
        transcript in one pass, and decoded only from where it differs.

        Raises as `generate`, and `GenerationError` for several recordings.
        """
        recordings = recordings_of(self, audio, sample_rate, None, language)
        if len(recordings) != 1:
            raise GenerationError(f"rows are of one recording; got {len(recordings)}")
        options = DecodingOptions.of(
            self.generation_config,
            0.0,
            task=task,
            timestamps=timestamps or recordings[0].n_frames > self.config.n_frames,
            prompt=previous_tokens(self, prompt),
            max_new_tokens=max_new_tokens,
        )
        hooks = [[row] if _is_hook(row) else list(row) for row in rows]
        with self.decoding_hooks(fwd_hooks):
            heard = RowRecordings(self, recordings[0], hooks, options).run(batch_size, progress)
        return [transcript_of(self, one) for one in heard]

    def transcribe(self, audio: Any, language: str | None = None, **options: Any) -> Any:
        """The transcript of a clip (a list of them, for a list of clips).

        The options are `generate`'s, which gives more than the text.
        """
        texts = [heard.text for heard in self.generate(audio, language=language, **options)]
        return texts if isinstance(audio, list | tuple) or is_mel(audio) else texts[0]

    @torch.no_grad()
    def detect_language(self, mel: Mel) -> list[str]:
        """The language of each clip, as a code: the likeliest language behind the start token.

        An English-only checkpoint says "en" to everything.
        """
        return self.languages_of(self.encode(mel))

    def settled(self, audio: Any, language: str | None = None, **prompt: Any) -> dict[str, Any]:
        """How one clip is asked for: the prompt's options, its language told where it is open."""
        return {"language": language or self.detect_language(self.to_mel(audio))[0], **prompt}

    def token_limit(self, n_prompt: int) -> int:
        """How many tokens prompt and text may have together, by the checkpoint's rules."""
        n_ctx = self.config.decoder.n_ctx
        # As in the reference, whose own limit does not count the prompt.
        allowed = self.generation_config.max_length or n_ctx
        return min(allowed + min(n_prompt, n_ctx // 2 - 1), n_ctx)

    def languages_of(self, encoded: Audio, n_rows: int | None = None, **beside: Any) -> list[str]:
        """As `detect_language`, from the encoder's output, which `n_rows` may share.

        `beside`: as `Steps` takes it.
        """
        n_rows = n_rows or len(encoded)
        rules: Any = self.generation_config
        if not is_multilingual(rules):
            return ["en"] * n_rows
        start = torch.full((n_rows, 1), rules.decoder_start_token_id, device=self.device)
        logits = Steps(self, {"audio": encoded, "tokens": start, **beside}, limit=1)(start)[:, -1]
        names = list(rules.lang_to_id)
        best = logits[:, list(rules.lang_to_id.values())].argmax(-1)
        return [names[i].strip("<|>") for i in best.tolist()]

    # --- What belongs to the checkpoint -----------------------------------------------------------

    @property
    def _end_token(self) -> int:
        ends = end_tokens(self.generation_config)
        return ends[0] if ends else self._tokenizer.eos_token_id

    def encode_text(self, text: str) -> list[int]:
        """A transcript's token ids, with the space that the model writes in front of it."""
        spaced = text if text.startswith((" ", "<|")) or not text else f" {text}"
        return self._tokenizer.encode(spaced, add_special_tokens=False)


def _is_hook(row: Any) -> bool:
    """Whether a row is one intervention, or one (selector, function), and no list of them."""
    if not isinstance(row, tuple | list):
        return True
    return isinstance(row, tuple) and len(row) == 2 and callable(row[1]) and not callable(row[0])
