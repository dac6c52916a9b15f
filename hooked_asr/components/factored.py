"""Products of two weight matrices, kept as the pair: QK and OV circuits without the big matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FactoredMatrix:
    """`A @ B`, of low rank, without multiplying it out. Both may have the same leading axes.

    >>> m = FactoredMatrix(torch.ones(4, 1), torch.ones(1, 4))
    >>> m.shape, round(m.norm().item(), 3), (m @ torch.ones(4)).tolist()
    (torch.Size([4, 4]), 4.0, [4.0, 4.0, 4.0, 4.0])
    """

    A: Float[Tensor, "*axes rows rank"]
    B: Float[Tensor, "*axes rank columns"]

    @property
    def shape(self) -> torch.Size:
        return torch.Size([*self.A.shape[:-1], self.B.shape[-1]])

    @property
    def AB(self) -> Tensor:
        """The product itself."""
        return self.A @ self.B

    @property
    def T(self) -> FactoredMatrix:
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __getitem__(self, index: int | slice | Tensor) -> FactoredMatrix:
        """One head's circuit, or several: indexes the first leading axis."""
        if self.A.ndim < 3:
            raise IndexError("one circuit only: no leading axis to index")
        return FactoredMatrix(self.A[index], self.B[index])

    def __matmul__(self, other: Tensor | FactoredMatrix) -> Tensor | FactoredMatrix:
        """With a vector: a vector. With a matrix or a factored one: factored again."""
        if isinstance(other, FactoredMatrix):
            return FactoredMatrix(self.A, self.B @ other.A @ other.B)
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: Tensor) -> Tensor | FactoredMatrix:
        """A vector from the left: a vector. A matrix: factored again."""
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return FactoredMatrix(other @ self.A, self.B)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        # Two thin SVDs and one of a rank x rank core: never the full matrix.
        U_a, S_a, Vh_a = torch.linalg.svd(self.A, full_matrices=False)
        U_b, S_b, Vh_b = torch.linalg.svd(self.B, full_matrices=False)
        core = (S_a[..., :, None] * Vh_a) @ (U_b * S_b[..., None, :])
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        return U_a @ U, S, Vh @ Vh_b

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U `[rows rank]`, S `[rank]` and Vh `[rank columns]` of the product."""
        return self._svd

    def norm(self) -> Tensor:
        """Frobenius norm of the product, for each leading index."""
        return self._svd[1].pow(2).sum(-1).sqrt()

    def eigenvalues(self) -> Tensor:
        """The non-zero eigenvalues, complex: those of the small product `B @ A`.

        Raises `ValueError` where the product is not square.
        """
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"eigenvalues need a square matrix; this one is {list(self.shape)}")
        return torch.linalg.eigvals(self.B @ self.A)
