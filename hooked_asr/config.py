"""What a recogniser is made of: frozen dataclasses, one for each residual stack."""

from __future__ import annotations

from dataclasses import dataclass

from hooked_asr.errors import HookedASRError


class ConfigError(HookedASRError):
    """A configuration that describes no model this library can build."""


@dataclass(frozen=True)
class StackConfig:
    """One residual stack: `n_layers` blocks over a stream `d_model` wide.

    - `n_ctx`: the number of positions: encoder positions (50 a second), or tokens.
    - `group_size`: query heads that share one head of keys and values (grouped-query attention).
    - `rotary_base`: positions are rotations of queries and keys, with wavelengths from 2π positions
      to nearly 2π times this; None where they are vectors added to the stream.
    - `gated_mlp`, `rms_norm`: the MLP and the norm of language models since LLaMA.

    >>> StackConfig(n_layers=4, n_heads=6, d_model=384, d_mlp=1536, n_ctx=448).d_head
    64
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    n_ctx: int
    activation: str = "gelu"
    norm_eps: float = 1e-5
    group_size: int = 1
    rotary_base: float | None = None
    gated_mlp: bool = False
    rms_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_mlp", "n_ctx", "group_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number, at least 1; got {value!r}")
        for name, of in (("n_heads", "d_model"), ("group_size", "n_heads")):
            if getattr(self, of) % getattr(self, name):
                raise ConfigError(
                    f"{of} ({getattr(self, of)}) must be a multiple of {name} "
                    f"({getattr(self, name)})"
                )
        if self.rotary_base is not None and self.d_head % 2:
            raise ConfigError(f"rotary positions need an even d_head, got {self.d_head}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_heads // self.group_size


@dataclass(frozen=True)
class FrontEndConfig:
    """The two convolutions that turn log-mel frames into encoder positions."""

    n_mels: int = 80


@dataclass(frozen=True)
class PrefixConfig:
    """Audio as a prefix: the encoder's output stands in the decoder's own stream, among the tokens.

    - `audio_token`: the token in whose places it stands, one for each pooled position.
    - `pool`: encoder positions that are averaged into one.
    """

    audio_token: int
    pool: int = 2


@dataclass(frozen=True)
class ModelConfig:
    """A whole recogniser: front end, encoder, decoder and vocabulary.

    - `tied_embeddings`: the unembedding is the token embedding, transposed.
    - `prefix`: how the decoder reads the audio; None where every layer has cross-attention to it.
    """

    front_end: FrontEndConfig
    encoder: StackConfig
    decoder: StackConfig
    d_vocab: int
    tied_embeddings: bool = True
    prefix: PrefixConfig | None = None

    def __post_init__(self) -> None:
        if self.d_vocab < 1:
            raise ConfigError(f"d_vocab must be at least 1, got {self.d_vocab}")
        if self.prefix and not 0 <= self.prefix.audio_token < self.d_vocab:
            raise ConfigError(
                f"the audio token must be one of the {self.d_vocab} tokens; "
                f"got {self.prefix.audio_token}"
            )

    @property
    def n_frames(self) -> int:
        """Log-mel frames of one input window; the second convolution halves them."""
        return 2 * self.encoder.n_ctx

    @property
    def n_pooled(self) -> int:
        """Positions of the encoder's output: its own, or the pooled ones."""
        return self.encoder.n_ctx // (self.prefix.pool if self.prefix else 1)

    def stack(self, name: str) -> StackConfig:
        """The stack called "encoder" or "decoder"."""
        if name not in STACKS:
            raise ValueError(f"no stack {name!r}; there are 'encoder' and 'decoder'")
        stack: StackConfig = getattr(self, name)
        return stack


STACKS = ("encoder", "decoder")
