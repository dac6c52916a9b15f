"""What a recogniser is made of: frozen dataclasses, one for each residual stack."""

from __future__ import annotations

from dataclasses import dataclass

from hooked_asr.errors import HookedASRError


class ConfigError(HookedASRError):
    """A configuration that describes no model this library can build."""


@dataclass(frozen=True)
class StackConfig:
    """One residual stack: `n_layers` blocks over a stream `d_model` wide.

    `n_ctx` is the number of positions: encoder positions (50 a second), or tokens.

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

    def __post_init__(self) -> None:
        for name in ("n_layers", "n_heads", "d_model", "d_mlp", "n_ctx"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number, at least 1; got {value!r}")
        if self.d_model % self.n_heads:
            raise ConfigError(
                f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class FrontEndConfig:
    """The two convolutions that turn log-mel frames into encoder positions."""

    n_mels: int = 80


@dataclass(frozen=True)
class ModelConfig:
    """A whole recogniser: front end, encoder, decoder and vocabulary.

    `tied_embeddings`: the unembedding is the token embedding, transposed.
    """

    front_end: FrontEndConfig
    encoder: StackConfig
    decoder: StackConfig
    d_vocab: int
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.d_vocab < 1:
            raise ConfigError(f"d_vocab must be at least 1, got {self.d_vocab}")

    @property
    def n_frames(self) -> int:
        """Log-mel frames of one input window; the second convolution halves them."""
        return 2 * self.encoder.n_ctx

    def stack(self, name: str) -> StackConfig:
        """The stack called "encoder" or "decoder"."""
        if name not in STACKS:
            raise ValueError(f"no stack {name!r}; there are 'encoder' and 'decoder'")
        stack: StackConfig = getattr(self, name)
        return stack


STACKS = ("encoder", "decoder")
