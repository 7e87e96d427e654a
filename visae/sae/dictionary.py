"""`Dictionary`: a sparse autoencoder put together from an encoder, an activation, atoms, a decode scheme, penalties."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from visae.ops import Coded, Dense, Eager, Ops, Ragged, Rule, share
from visae.sae.activations import Activation
from visae.sae.checks import check_finite
from visae.sae.codes import Codes
from visae.sae.decoders import Decoder
from visae.sae.elementwise import Elementwise
from visae.sae.encoders import Encoder, Linear
from visae.sae.modulation import Modulation
from visae.sae.normalisers import Normaliser, Scale
from visae.sae.penalties import Pass, Penalty
from visae.sae.schemes import Plain, tilted_mean
from visae.sae.side import Rows, unpack

if TYPE_CHECKING:
    from visae.sae.card import Card

CELLS = 2**25
"""Pre-activations that `encode` holds at a time (128 MiB in float32); longer inputs go through in chunks."""


@dataclass(frozen=True)
class Losses:
    """What `Dictionary.losses` found on one batch.

    Attributes:
        terms: name to weighted loss term; the loss is their sum. `recon` is always there.
        codes: the codes of the batch.
        recon: `[n, d]` reconstruction in the space of normalised inputs, detached.
    """

    terms: dict[str, Tensor]
    codes: Coded
    recon: Tensor

    @property
    def total(self) -> Tensor:
        """The loss."""
        return torch.stack(list(self.terms.values())).sum()


class Dictionary(nn.Module):
    """A sparse autoencoder.

    Inputs are normalised inside, see `visae.sae.normalisers`: by default `u = (x - mean) * scale` with `E|u|^2 = d`.
    Codes and atoms live in that space, `decode` and `directions` come back to the space of x. The statistics are
    buffers: no script can lose them.

    Args:
        kind: name in the registry of kinds.
        d: length of an input.
        n_latents: width F.
        encoder: see `visae.sae.encoders`.
        activation: see `visae.sae.activations`.
        decoder: see `visae.sae.decoders`.
        scheme: see `visae.sae.schemes`.
        penalties: see `visae.sae.penalties`.
        normaliser: see `visae.sae.normalisers`; None takes `scale`.
        modulation: of normalised inputs, by what comes beside them; see `visae.sae.modulation`.
        options: what the kind was made with, for the card.
    """

    samples_since_fired: Tensor
    gain: Tensor | None
    turn: Tensor | None

    def __init__(
        self,
        kind: str,
        d: int,
        n_latents: int,
        *,
        encoder: Encoder,
        activation: Activation,
        decoder: Decoder,
        scheme: Plain | None = None,
        penalties: Sequence[Penalty] = (),
        normaliser: Normaliser | None = None,
        modulation: Modulation | None = None,
        options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.kind, self.d, self.n_latents = kind, d, n_latents
        self.options = dict(options or {})
        self.encoder, self.activation, self.decoder = encoder, activation, decoder
        self.scheme = scheme or Plain()
        self.penalties = nn.ModuleList(penalties)
        self.normaliser = normaliser or Scale(d)
        self.modulation = modulation or Modulation()
        self.card: Card | None = None
        self.folded: tuple[str, ...] = ()
        self.register_buffer("gain", None)  # these two only after folding, see visae.sae.folding
        self.register_buffer("turn", None)
        self.register_buffer("samples_since_fired", torch.zeros(n_latents, dtype=torch.int64))

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return self.activation.signed

    @property
    def mean(self) -> Tensor:
        """`[d]` mean of the data that the normaliser was fitted on."""
        return self.normaliser.mean

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the side information that training needs beside tokens; see `visae.sae.side`."""
        parts = (part for child in self.children() for part in child.modules())
        return tuple(dict.fromkeys(name for part in parts for name in getattr(part, "needs", ())))

    @property
    def needs_to_encode(self) -> tuple[str, ...]:
        """Those of them that encoding needs, too; codes carry them on to `decode`."""
        return self.modulation.needs

    @property
    def W_enc(self) -> Tensor:
        """`[F, d]` encoder rows, for kinds with a linear encoder."""
        return cast(Linear, self.encoder).weight

    @property
    def b_enc(self) -> Tensor:
        """`[F]` encoder bias, likewise."""
        return cast(Linear, self.encoder).bias

    @property
    def W_dec(self) -> Tensor:
        """`[F, d]` atoms in the space of normalised inputs."""
        return self.decoder.atoms()

    @property
    def b_dec(self) -> Tensor:
        """`[d]` decoder bias, in the same space."""
        return self.decoder.bias

    def unit_parameters(self) -> set[str]:
        """Names of the parameters whose rows the optimiser keeps at length 1."""
        return {f"decoder.{name}" for name in self.decoder.unit}

    def read(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`normalise`, and the tokens' own scale and shift where the normaliser has them, see `Normaliser.forward`."""
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"this {self.kind} dictionary takes tokens [n, {self.d}]; got {list(x.shape)}")
        return self.normaliser(x.to(self.mean.dtype))

    def normalise(self, x: Tensor | Rows) -> Tensor:
        """`u [n, d]` in the parameters' dtype from raw inputs of any float dtype.

        Raises:
            ValueError: if the inputs are not `[n, d]` of this dictionary's d.
        """
        return self.read(x.rows if isinstance(x, Rows) else x)[0]

    def restore(self, u: Tensor, like: Tensor | None = None) -> Tensor:
        """Reverse of `normalise`, `[n, d]`.

        Args:
            u: `[n, d]` normalised rows.
            like: `[n, d]` raw rows whose own scale and shift they get; needed where the normaliser is `per_token`.
        """
        _, scale, shift = (None, None, None) if like is None else self.read(like)
        return self.normaliser.restore(u, scale, shift)

    def unpack(self, x: Tensor | Rows, **side: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens and what encoding needs beside them; see `visae.sae.side.unpack`."""
        return unpack(x, self.needs_to_encode, side, f"a {self.kind} dictionary")

    def select(
        self, u: Tensor, rule: Rule, ops: Ops, *, pre: Tensor | None = None, among: Tensor | None = None
    ) -> Coded:
        """Codes of normalised inputs by a rule, through the sparse kernels where the encoder is linear."""
        if self.encoder.linear and pre is None:
            return ops.encode_select(u, self.W_enc, self.b_enc, self.decoder.bias, rule, among)
        pre = self.encoder.pre(u, self.decoder.bias) if pre is None else pre
        if among is None:
            return ops.select(pre, rule)
        inside = ops.select(pre[:, among], rule).to_dense()
        return Dense(torch.zeros_like(pre).index_copy(1, among, inside))

    def code(self, u: Tensor, ops: Ops) -> tuple[Coded, Tensor | Ragged | None]:
        """Codes of normalised inputs, and pre-activations that are in the graph: all, or those that matter."""
        activation, rule = self.activation, self.activation.rule()
        if rule is not None and self.encoder.linear:
            return self._weighted(self._thinned(self.select(u, rule, ops, among=activation.among()), u)), None
        if isinstance(activation, Elementwise) and activation.sparse and self.encoder.linear:
            near = self.select(u, activation.reach(), ops)
            if isinstance(near, Ragged):
                codes: Coded = Ragged(near.pattern, activation.at(near.values, near.pattern.columns))
                return self._weighted(codes), near
        pre = self.encoder.pre(u, self.decoder.bias)
        codes = Dense(activation(pre, self._seen(u))) if rule is None else self._thinned(ops.select(pre, rule), u)
        return self._weighted(codes), pre

    def _thinned(self, codes: Coded, u: Tensor) -> Coded:
        return self.activation.thin(codes, *self._compared(u)) if self.activation.thins else codes

    def _compared(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Centred inputs and atoms, detached, for an activation that compares them, as they were before folding."""
        atoms = self.decoder.atoms().detach()
        atoms = atoms if self.gain is None else atoms * self.gain[:, None]
        return cast(Tensor, self._seen(u)).detach(), atoms if self.turn is None else atoms @ self.turn.T

    def _weighted(self, codes: Coded) -> Coded:
        """Codes times the gains that folding left."""
        return codes if self.gain is None else codes.map(lambda values: values, self.gain)

    def _seen(self, u: Tensor) -> Tensor | None:
        """Centred inputs for an activation that looks at them, as they were before folding."""
        if not self.activation.looks:
            return None
        centred = u - self.decoder.bias
        return centred if self.turn is None else centred @ self.turn.T

    def losses(
        self,
        x: Tensor | Rows,
        ops: Ops,
        *,
        dead: Tensor | None = None,
        progress: float = 1.0,
        tilt: float = 0.0,
        **side: Tensor,
    ) -> Losses:
        """Every term of the training objective on raw inputs `[n, d]`.

        Args:
            x: tokens, with the side information that `needs` names, if any.
            ops: the kernels to use.
            dead: `[m]` int64 latents that count as dead now.
            progress: share of the training budget spent.
            tilt: of the mean over tokens in `recon`, see `visae.sae.schemes.tilted_mean`.
            **side: side information by name, where x does not carry it.

        Raises:
            ValueError: for tokens of another length, and see `visae.sae.side.unpack`.
        """
        x, side = unpack(x, self.needs, side, f"training a {self.kind} dictionary")
        u = self.normalise(x)
        v = self.modulation(u, side)
        codes, pre = self.code(v, ops)
        recon, losses = self._compare(u, v, codes, side, ops)
        near, pre = (pre, None) if isinstance(pre, Ragged) else (None, pre)
        if self.training and isinstance(self.activation, Elementwise):
            self.activation.watch(Dense(cast(Tensor, pre)) if near is None else near)
        run = Pass(self, v.detach(), pre, codes, recon, dead, progress, ops, side, near)
        terms = {"recon": tilted_mean(losses, tilt)}
        for penalty in self.penalties:
            if (term := penalty(run)) is not None:
                terms[cast(Penalty, penalty).name] = term
        return Losses(terms, codes, self.modulation.undo(recon, side).detach())

    def _compare(
        self, u: Tensor, v: Tensor, codes: Coded, side: Mapping[str, Tensor], ops: Ops
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction of v, detached, and the losses `[n]`, always in the space of u."""
        atoms, bias = self.decoder.atoms(), self.decoder.bias
        if not self.modulation.needs:
            return ops.reconstruct(v, codes, atoms, bias, self.scheme.nesting())
        recon = ops.decode(codes, atoms, bias)
        return recon.detach(), (self.modulation.undo(recon, side) - u).square().mean(1)

    @torch.no_grad()
    def count(self, codes: Coded) -> None:
        """Counts samples since each latent fired (z != 0), after a training batch; its rows on all processes count."""
        rows = share().rows
        self.samples_since_fired += codes.n_rows * rows.size
        self.samples_since_fired.masked_fill_(codes.fired(), 0)
        self.samples_since_fired.copy_(rows.min(self.samples_since_fired))

    def pre_activations(self, x: Tensor | Rows) -> Iterator[Tensor]:
        """Pre-activations `[m, F]` of raw inputs, in chunks of bounded memory."""
        for part, side in self._parts(*self.unpack(x)):
            yield self.encoder.pre(self.modulation(self.normalise(part), side), self.decoder.bias)

    def _parts(self, x: Tensor, side: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        size = max(1, CELLS // self.n_latents)
        for start in range(0, max(1, x.shape[0]), size):
            yield x[start : start + size], {name: value[start : start + size] for name, value in side.items()}

    def encode(self, x: Tensor | Rows, **side: Tensor) -> Codes:
        """Codes of raw inputs `[n, d]`, by the rule of inference, in training mode too.

        Differentiable; what comes out for a token does not depend on the others in the batch.

        Args:
            x: tokens, with the side information that `needs_to_encode` names, if any.
            **side: side information by name, where x does not carry it.

        Raises:
            ValueError: for tokens of another length, NaN or infinity in them, and see `visae.sae.side.unpack`.
        """
        ops, parts = Eager(), []
        with self._inferring():
            for part, its in self._parts(*self.unpack(x, **side)):
                u, scale, shift = self.read(part)
                check_finite(u.detach())
                codes = Codes.of(self.code(self.modulation(u, its), ops)[0], self.activation.capacity)
                parts.append(replace(codes, scale=scale, shift=shift, side=its, signed=self.signed))
        return Codes.cat(parts) if len(parts) > 1 else parts[0]

    def decode(self, codes: Codes) -> Tensor:
        """Raw reconstructions `[n, d]` of codes; differentiable in values and atoms.

        Raises:
            ValueError: for codes without the scales of their tokens, where the normaliser is `per_token`, or without
                the side information that they were encoded with.
        """
        v = Eager().decode(codes.ragged(), self.decoder.atoms(), self.decoder.bias)
        _, side = self.unpack(v, **codes.side)
        return self.normaliser.restore(self.modulation.undo(v, side), codes.scale, codes.shift)

    def forward(self, x: Tensor | Rows, **side: Tensor) -> Tensor:
        """Reconstruction `[n, d]` of raw inputs, in the parameters' dtype."""
        return self.decode(self.encode(x, **side))

    def directions(self, **side: Tensor) -> Tensor:
        """`[F, d]`: what one unit of each code adds to a raw input.

        Where the normaliser is `per_token`, to an input of typical size; to a given one `Codes.scale` times as much.

        Args:
            **side: for kinds with a modulation, e.g. `sigma=` of one token `[1]`; without, where nothing is modulated.
        """
        atoms = self.decoder.atoms()
        return self.normaliser.back(self.modulation.turn(atoms, side) if side else atoms)

    def fold(self, normaliser: bool = True, norms: bool = True) -> "Dictionary":
        """The same dictionary for inference, with plainer weights; see `visae.sae.folding`.

        Args:
            normaliser: let encoder and decoder take over what the normaliser does, so that weights work on raw inputs.
            norms: bring `directions()` to length 1; codes are multiplied by the lengths they had.
        """
        from visae.sae.folding import fold  # it makes dictionaries

        return fold(self, normaliser, norms)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor | Rows]) -> None:
        """Sets what inference needs (thresholds) from raw held-out batches `[n, d]`."""
        look = self._evidence if self.activation.thins else self.pre_activations
        with self._inferring():
            self.activation.calibrate(found for x in batches for found in look(x))

    def _evidence(self, x: Tensor | Rows) -> Iterator[Tensor]:
        for part, side in self._parts(*self.unpack(x)):
            u, rule = self.modulation(self.normalise(part), side), cast(Rule, self.activation.rule())
            yield self.activation.evidence(self.select(u, rule, Eager()), *self._compared(u))

    @contextmanager
    def _inferring(self) -> Iterator[None]:
        """Context in which the activation goes by the rule of inference."""
        was = self.activation.training
        self.activation.eval()
        try:
            yield
        finally:
            self.activation.train(was)

    def extra_repr(self) -> str:
        """One line for `print`."""
        return f"kind={self.kind!r}, d={self.d}, n_latents={self.n_latents}, normaliser={self.normaliser.name!r}" + (
            f", folded={list(self.folded)}" if self.folded else ""
        )
