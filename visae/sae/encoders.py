"""Encoder parts: from centred inputs to pre-activations. A new one defines `pre`; nothing else is asked of it."""

import copy
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from visae.sae.decoders import Decoder


class Encoder(nn.Module, ABC):
    """Base of the encoder parts.

    Attributes:
        linear: whether `pre` is `(u - shift) weight^T + bias`, which lets the sparse kernels do the work.
        shards: see `visae.sae.slices`.
    """

    linear: bool = False
    shards: bool = False

    @abstractmethod
    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """Pre-activations `[n, F]` of inputs `[n, d]`; `shift` `[d]` is the decoder's bias."""

    @abstractmethod
    def initialise(self, atoms: Tensor) -> None:
        """Starts as the transpose of the dictionary `[F, d]`; `rescale` follows."""

    @abstractmethod
    def rescale(self, factor: Tensor) -> None:
        """Multiplies the pre-activations by a positive scalar, exactly (the first step's least-squares scale)."""

    def alone(self) -> "Encoder":
        """A copy that shares no parameter with the rest of the dictionary."""
        return copy.deepcopy(self)

    def fold(self, matrix: Tensor, point: Tensor, shift: Tensor, new_shift: Tensor) -> "Encoder":
        """An encoder of v, where this one reads `u = matrix (v - point)`: `new.pre(v, new_shift) = pre(u, shift)`.

        Args:
            matrix: `[d, d]`.
            point: `[d]`.
            shift: `[d]` decoder's bias in the space of u.
            new_shift: `[d]` the same in the space of v.

        Returns:
            Here this encoder behind the matrix; parts that can, take it into their weights.
        """
        del new_shift
        return Turned(self, matrix, point, shift)

    def scaled(self, gain: Tensor) -> "Encoder | None":
        """An encoder whose pre-activations are `gain` `[F]` times as large; None where there is none of this form."""
        del gain
        return None


class Linear(Encoder):
    """`a = (u - b_dec) W_enc^T + b_enc`, with `W_enc` `[F, d]`."""

    shards = True

    linear = True

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, d: int, n_latents: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_latents, d))
        self.bias = nn.Parameter(torch.zeros(n_latents))

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        return nn.functional.linear(u - shift, self.weight, self.bias)

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, bias: Tensor) -> "Linear":
        """An encoder with copies of a weight `[F, d]` and a bias `[F]`."""
        made = cls(weight.shape[1], weight.shape[0]).to(weight)
        made.weight.copy_(weight)
        made.bias.copy_(bias)
        return made

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Encoder.initialise`."""
        self.weight.copy_(atoms)
        self.bias.zero_()

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Encoder.rescale`."""
        self.weight.mul_(factor)
        self.bias.mul_(factor)

    def fold(self, matrix: Tensor, point: Tensor, shift: Tensor, new_shift: Tensor) -> "Linear":
        """See `Encoder.fold`; the bias takes up what rounding left between the two shifts."""
        return Linear.of(self.weight @ matrix, self.bias + self.weight @ (matrix @ (new_shift - point) - shift))

    def scaled(self, gain: Tensor) -> "Linear":
        """See `Encoder.scaled`."""
        return Linear.of(self.weight * gain[:, None], self.bias * gain)


class Tied(Encoder):
    """`a = (u - b_dec) D^T + b_enc`: the dictionary itself reads (k-sparse autoencoders, Makhzani and Frey 2013).

    Args:
        decoder: the dictionary's part.
        n_latents: width F.
        bias: whether `b_enc` is learnt; else it stays 0.
    """

    shards = True

    linear = True
    bias: Tensor

    def __init__(self, decoder: Decoder, n_latents: int, bias: bool = True):
        super().__init__()
        self._decoder = [decoder]  # in a list: it is the dictionary's part, and must not be registered twice
        if bias:
            self.bias = nn.Parameter(torch.zeros(n_latents))
        else:
            self.register_buffer("bias", torch.zeros(n_latents))

    @property
    def weight(self) -> Tensor:
        """`[F, d]` rows: the atoms."""
        return self._decoder[0].atoms()

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        return nn.functional.linear(u - shift, self.weight, self.bias)

    @torch.no_grad()
    def initialise(self, _atoms: Tensor) -> None:
        """See `Encoder.initialise`; the atoms are shared already."""
        self.bias.zero_()

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """Scales the reconstruction: by the root of the factor where atoms read, and once more where they write.

        Atoms that are kept at length 1 stay; their activation takes the scale.
        """
        if self._decoder[0].unit:
            return
        cast(nn.Parameter, self.weight).mul_(factor.sqrt())
        self.bias.mul_(factor.sqrt())

    def alone(self) -> Linear:
        """See `Encoder.alone`: rows of its own."""
        return Linear.of(self.weight, self.bias)


class Kron(Encoder):
    """Pre-activations are pairs, `a = mAND(p, q)` of two short lists per head (KronSAE, Kurochkin et al. 2025).

    `p = ReLU((u - b) P + b_p)`, `q = ReLU((u - b) Q + b_q)`, `a_{h,i,j} = sqrt(p_{h,i} q_{h,j} + 1e-5)` where both are
    above 0, else 0: a soft AND. Only `heads (m + n)` rows instead of `heads m n`.

    Args:
        d: length of an input.
        n_latents: width `F = heads m n`.
        m: first list of a head.
        n: second list.

    Raises:
        ValueError: if F is not a multiple of m n.
    """

    def __init__(self, d: int, n_latents: int, m: int, n: int):
        super().__init__()
        if m < 1 or n < 1 or n_latents % (m * n):
            raise ValueError(f"the width must be a multiple of m n = {m} * {n} = {m * n}, got {n_latents}")
        self.m, self.n, self.heads = m, n, n_latents // (m * n)
        self.first, self.second = Linear(d, self.heads * m), Linear(d, self.heads * n)

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        p = self.first.pre(u, shift).relu().view(-1, self.heads, self.m, 1)
        q = self.second.pre(u, shift).relu().view(-1, self.heads, 1, self.n)
        product = p * q
        both = product > 0
        root = torch.sqrt(torch.where(both, product, torch.ones_like(product)) + 1e-5)
        return torch.where(both, root, torch.zeros_like(root)).flatten(1)

    @torch.no_grad()
    def initialise(self, atoms: Tensor) -> None:
        """See `Encoder.initialise`; each row starts as the mean of the atoms that it takes part in."""
        blocks = atoms.view(self.heads, self.m, self.n, -1)
        for part, mean in ((self.first, blocks.mean(2)), (self.second, blocks.mean(1))):
            part.initialise(nn.functional.normalize(mean.flatten(0, 1), dim=1))

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        """See `Encoder.rescale`; exact but for the 1e-5."""
        self.first.rescale(factor)
        self.second.rescale(factor)

    def fold(self, matrix: Tensor, point: Tensor, shift: Tensor, new_shift: Tensor) -> "Kron":
        """See `Encoder.fold`; pairs multiply, so `scaled` has no such form."""
        made = copy.deepcopy(self)
        made.first = self.first.fold(matrix, point, shift, new_shift)
        made.second = self.second.fold(matrix, point, shift, new_shift)
        return made


class Turned(Encoder):
    """Another encoder behind a matrix: what is left of folding where weights cannot take it.

    Args:
        inner: the encoder, of u.
        matrix: `[d, d]`, with `u = matrix (v - point)`.
        point: `[d]`.
        shift: `[d]` decoder's bias in the space of u.
    """

    matrix: Tensor
    point: Tensor
    shift: Tensor

    def __init__(self, inner: Encoder, matrix: Tensor, point: Tensor, shift: Tensor):
        super().__init__()
        self.inner = inner
        for name, value in (("matrix", matrix), ("point", point), ("shift", shift)):
            self.register_buffer(name, value.detach().clone())

    def pre(self, u: Tensor, shift: Tensor) -> Tensor:
        """See `Encoder.pre`."""
        del shift
        return self.inner.pre((u - self.point) @ self.matrix.T, self.shift)

    def initialise(self, atoms: Tensor) -> None:
        """See `Encoder.initialise`."""
        self.inner.initialise(atoms @ self.matrix.T)

    def rescale(self, factor: Tensor) -> None:
        """See `Encoder.rescale`."""
        self.inner.rescale(factor)
