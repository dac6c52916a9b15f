"""Qwen2-Audio, hooked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2AudioProcessor

from hooked_asr.audio import log_mel_and_mask
from hooked_asr.cache import ActivationCache
from hooked_asr.generation import (
    DecodingOptions,
    Generated,
    Generation,
    GenerationError,
    Window,
    seeded,
)
from hooked_asr.generation.lockstep import Reference, encoding_beside, references
from hooked_asr.generation.recorder import StepRecorder
from hooked_asr.generation.window import Watched, decode_window
from hooked_asr.hooks import Hooks
from hooked_asr.models.audio_prefix import PrefixEncoderDecoder
from hooked_asr.models.audio_spans import frame_counts
from hooked_asr.models.inputs import InputError
from hooked_asr.models.qwen2_audio_prompt import Prompt, as_conversation, prompts
from hooked_asr.models.recogniser import Recogniser
from hooked_asr.names import Selector, select
from hooked_asr.shapes import Mel, MelMask, TokenMask, Tokens
from hooked_asr.timing import pooled_length
from hooked_asr.weights.qwen2_audio import QWEN2_AUDIO

TRANSCRIBE = "Transcribe the speech."
_NEW_TOKENS = 256  # where neither the caller nor the checkpoint says how many


class HookedQwen2Audio(PrefixEncoderDecoder, Recogniser):
    """Qwen2-Audio, from its config alone: encoder, pool, projector and Qwen2 decoder all hooked.

        inputs = model.to_inputs("clip.flac", prompt="What is said, and who says it?")
        logits, cache = model.run_with_cache(**inputs)
        print(model.generate(**inputs)[0].text)

    What a config says of regularisation in training (dropout, layer drop) is kept for `to_hf`, and
    not applied here.
    """

    source = QWEN2_AUDIO
    asked_by = ("prompt",)

    # --- Sound and text in ------------------------------------------------------------------------

    def to_inputs(
        self,
        audio: Any = None,
        prompt: Any = None,
        *,
        text: str | Sequence[str] | None = None,
        chat: bool = True,
        sample_rate: int | None = None,
        padding_side: str = "left",
    ) -> dict[str, Tensor]:
        """The inputs of a forward: `mel`, `mel_mask`, `tokens` and `attention_mask`.

        - `audio`: a clip (a path, or samples with their `sample_rate` in Hz), or a list of clips
          that one prompt holds; 30 s each at most.
        - `prompt`: the user's words; or a conversation, a list of messages as chat templates take
          them, whose audio parts may name their recordings. With None, the clips alone.
        - A batch: `prompt` a list of these, and `audio` as long a list of clips, lists or None.
        - `text`: what the model is made to say, behind the prompt (teacher forcing).
        - `chat=False`: no chat template; the prompt stands as it is, with
          "<|audio_bos|><|AUDIO|><|audio_eos|>" in each clip's place. For the base model.
        - `padding_side`: of rows of unequal length; decoding needs "left".

        Raises `InputError` where prompts and clips do not fit, `AudioError` for what cannot be read
        or is too long.
        """
        rows = prompts(audio, prompt)
        clips = [clip for row in rows for clip in row.clips]
        heard = self._heard(clips, sample_rate) if clips else {}
        lengths = self._lengths(heard.get("mel_mask"), len(clips))
        asked = self._with_places([self._ids(row, chat) for row in rows], rows, lengths)
        said = [self._encode(one) for one in _for_each(text, len(rows))]
        whole = [before + behind for before, behind in zip(asked, said, strict=True)]
        return {**heard, **self._padded(whole, padding_side)}

    # --- Text out ---------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        mel: Mel | None = None,
        tokens: Tokens | None = None,
        mel_mask: MelMask | None = None,
        attention_mask: TokenMask | None = None,
        *,
        temperature: float | None = 0.0,
        num_beams: int = 1,
        max_new_tokens: int | None = None,
        seed: int | None = None,
        fwd_hooks: Hooks = (),
        interventions: Hooks = (),
        names_filter: Selector = None,
        progress: bool = False,
    ) -> Generation[Generated]:
        """What the model answers to each prompt, decoded by the checkpoint's own rules.

        - The inputs are `to_inputs`'.
        - `temperature`: 0 for the likeliest tokens (of `num_beams` beams); or that to draw them at,
          among as many as the checkpoint's `top_k` and `top_p` leave; None for the checkpoint's own
          way. `seed`: of what is drawn; by default PyTorch's generator goes on from where it is.
        - `max_new_tokens`: as many as the checkpoint says, or 256.
        - `fwd_hooks`, `interventions`: alive in the encoder, the prompt and every cached step; one
          that had nothing to do warns. A source may be a `Lockstep` of other inputs.
        - `names_filter`: activations to keep (see `names.select`; "*" for all but lazy ones).

        Raises `GenerationError` for prompts padded on the right, references that do not fit,
        options that contradict each other, or no room for an answer.
        """
        given: dict[str, Any] = {"mel": mel, "tokens": tokens, "audio": None, "resid": None}
        given |= {"mel_mask": mel_mask, "attention_mask": attention_mask}
        self._check_inputs(given, None, None)
        inputs = {name: value for name, value in given.items() if value is not None}
        n_prompt = inputs["tokens"].shape[1]
        options = DecodingOptions(
            temperatures=(self._own_temperature if temperature is None else temperature,),
            num_beams=num_beams,
        )
        names = () if names_filter is None else tuple(select(names_filter, self.hook_table))
        encoder = StepRecorder()
        with self.decoding_hooks([*fwd_hooks, *interventions]), seeded(seed):
            theirs = [(one, self._reference_inputs(one, inputs)) for one in references(self)]
            if theirs and num_beams > 1:
                raise GenerationError("a Lockstep follows one row: leave out num_beams")
            watching = self.hooks([(list(names), encoder)] if names else [])
            with encoding_beside(theirs) as beside, watching:
                encoded = self.encoded(inputs)
            limit = self.token_limit(n_prompt, max_new_tokens)
            decoded = decode_window(
                self, {**encoded, **beside}, n_prompt, limit, options, Watched(names), progress
            )
        cache = ActivationCache({**encoder.joined(), **decoded.activations}, self)
        rows = list(range(len(decoded.heard)))
        window = Window(rows, [0.0] * len(rows), decoded.whole, cache if names else None)
        said = [one.row.tokens for one in decoded.heard]
        return Generation([Generated(self.text_of(row), row) for row in said], [window])

    @property
    def _own_temperature(self) -> float:
        rules = self.generation_config
        return float(rules.temperature or 1.0) if rules.do_sample else 0.0

    def transcribe(
        self, audio: Any, prompt: str = TRANSCRIBE, sample_rate: int | None = None, **options: Any
    ) -> Any:
        """What the model answers when asked to transcribe a clip (each of a list of clips).

        `prompt`: how it is asked. The options are `generate`'s.
        """
        several = isinstance(audio, list | tuple)
        clips = list(audio) if several else [audio]
        inputs: Any = self.to_inputs(clips, [prompt] * len(clips), sample_rate=sample_rate)
        texts = [answer.text for answer in self.generate(**inputs, **options)]
        return texts if several else texts[0]

    def settled(self, audio: Any, prompt: str | None = None) -> dict[str, Any]:
        """How one clip is asked for: the prompt, or the usual one."""
        return {"prompt": TRANSCRIBE if prompt is None else prompt}

    def token_limit(self, n_prompt: int, max_new_tokens: int | None = None) -> int:
        """How many tokens prompt and answer may have together.

        Raises `GenerationError` where the decoder has no positions for them.
        """
        n_ctx, rules = self.config.decoder.n_ctx, self.generation_config
        if max_new_tokens is None:
            limit = n_prompt + (rules.max_new_tokens or _NEW_TOKENS)
            if not rules.max_new_tokens and rules.max_length:
                limit = rules.max_length
            return min(limit, n_ctx)
        if not 0 < max_new_tokens <= n_ctx - n_prompt:
            raise GenerationError(
                f"the prompt has {n_prompt} tokens and the decoder {n_ctx} positions: "
                f"max_new_tokens is 1 to {n_ctx - n_prompt}; got {max_new_tokens}"
            )
        return n_prompt + max_new_tokens

    def _reference_inputs(self, reference: Reference, target: Mapping[str, Any]) -> dict[str, Any]:
        """A reference's inputs, for each of the target's prompts."""
        own = reference.lockstep.audio
        if not isinstance(own, Mapping) or "tokens" not in own:
            raise GenerationError(
                f"a Lockstep of this model takes the inputs that model.to_inputs(audio, prompt) "
                f"gives; got {type(own).__name__}"
            )
        given = dict.fromkeys(("mel", "tokens", "audio", "resid", "mel_mask", "attention_mask"))
        self._check_inputs({**given, **own}, None, None)
        (rows, length), theirs = target["tokens"].shape, own["tokens"].shape
        if theirs[0] not in (1, rows) or theirs[1] != length:
            raise GenerationError(
                f"tokens {[rows, length]} take a Lockstep of as many, in one row or in {rows}; got "
                f"{list(theirs)}. Clips of one length, asked for alike, take as many"
            )
        copies = rows // theirs[0]
        return {
            name: value.repeat(copies, *[1] * (value.ndim - 1))
            for name, value in own.items()
            if value is not None
        }

    # --- From prompts to token ids ----------------------------------------------------------------

    def _heard(self, clips: list[Any], sample_rate: int | None) -> dict[str, Tensor]:
        mel, mel_mask = log_mel_and_mask(clips, self.working_extractor, sample_rate)
        short = [i for i, n in enumerate(frame_counts(mel_mask)) if pooled_length(n) < 1]
        if short:
            raise InputError(
                f"clip {short[0]} is too short to be heard: a position of the decoder takes more "
                "than 20 ms"
            )
        return {"mel": mel.to(self.device, self.dtype), "mel_mask": mel_mask.to(self.device)}

    def _ids(self, row: Prompt, chat: bool) -> list[int]:
        """A prompt's tokens, with one audio token for each clip."""
        if chat:
            messages: Any = as_conversation(row)
            words = self._processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        elif isinstance(row.words, str):
            words = row.words
        else:
            raise InputError("a conversation needs the chat template: leave out chat=False")
        ids: list[int] = self._tokenizer(words)["input_ids"]
        return ids

    def _with_places(
        self, ids: list[list[int]], rows: list[Prompt], lengths: list[int]
    ) -> list[list[int]]:
        """Each audio token as often as its clip has positions."""
        audio_token, left = self.prefix.audio_token, iter(lengths)
        for row, prompt in zip(ids, rows, strict=True):
            places, clips = row.count(audio_token), len(prompt.clips)
            if places != clips:
                raise InputError(
                    f"the prompt has {places} places for audio, but {clips} clips were given. "
                    "Without the chat template, each clip is written "
                    "<|audio_bos|><|AUDIO|><|audio_eos|>"
                )
        return [
            [t for token in row for t in [token] * (next(left) if token == audio_token else 1)]
            for row in ids
        ]

    def _padded(self, rows: list[list[int]], side: str) -> dict[str, Tensor]:
        if side not in ("left", "right"):
            raise InputError(f"padding_side is 'left' or 'right'; got {side!r}")
        longest = max(map(len, rows))
        tokens = torch.full((len(rows), longest), self._padding_token)
        attention_mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            own = slice(longest - len(row), None) if side == "left" else slice(len(row))
            tokens[i, own] = torch.tensor(row)
            attention_mask[i, own] = 1
        return {
            "tokens": tokens.to(self.device),
            "attention_mask": attention_mask.to(self.device),
        }

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False) if text else []

    @property
    def _padding_token(self) -> int:
        tokens = (self.generation_config.pad_token_id, self._tokenizer.pad_token_id, 0)
        return next(token for token in tokens if token is not None)

    @property
    def _processor(self) -> Qwen2AudioProcessor:
        template = self._tokenizer.chat_template
        # One that knows nothing of audio is the text model's: the processor then has its own.
        heard = isinstance(template, str) and "audio" in template
        return Qwen2AudioProcessor(
            self.working_extractor, self._tokenizer, chat_template=template if heard else None
        )


def _for_each(text: str | Sequence[str] | None, n_rows: int) -> list[str]:
    if text is None or isinstance(text, str):
        return [text or ""] * n_rows
    if len(text) != n_rows:
        raise InputError(f"{n_rows} prompts take as many texts; got {len(text)}")
    return list(text)
