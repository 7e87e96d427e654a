"""Activation parts: from pre-activations to codes."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from visae import ops
from visae.ops import Coded, Ragged, Rule


class Activation(nn.Module):
    """Base of the activation parts.

    A part either thins out by a rule (`rule` returns one; the kernels keep codes sparse) or is a dense function
    (`rule` returns None and `forward` is used).

    Attributes:
        signed: whether codes may be negative.
        k: codes per token the part aims at; None where it has no such number.
        train_k: the same while training, where it differs; `now` is where annealing stands on the way to it.
        capacity: most codes a token can have at inference; None where it is not fixed.
        looks: whether `forward` or `thin` reads the centred inputs.
        thins: whether `thin` does something; the part is then calibrated by `evidence`.
        shards: see `visae.sae.slices`.
        masks: whether `among` leaves latents out.
    """

    signed: bool = False
    k: float | None = None
    train_k: float = 1.0
    now: float = 1.0
    capacity: int | None = None
    looks: bool = False
    thins: bool = False
    shards: bool = False
    masks: bool = False

    def rule(self) -> Rule | None:
        """The rule now: parts may differ between training and inference (`self.training`)."""
        return None

    def among(self) -> Tensor | None:
        """`[m]` int64 latents that take part in this step, for parts with a rule; None for all."""
        return None

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """Dense codes `[n, F]`, for parts without a rule; here the pre-activations themselves.

        Args:
            pre: `[n, F]` pre-activations.
            x: `[n, d]` centred inputs, for parts with `looks`; None for others.
        """
        return pre

    def thin(self, codes: Coded, _x: Tensor, _atoms: Tensor) -> Coded:
        """Drops codes that the rule kept.

        Args:
            codes: of the rule.
            _x: `[n, d]` centred inputs.
            _atoms: `[F, d]`, in the same space.
        """
        return codes

    def evidence(self, codes: Coded, x: Tensor, atoms: Tensor) -> Tensor:
        """`[n, m]` what parts with `thins` are calibrated by, from what `thin` gets."""
        raise NotImplementedError

    def start(self, pre: Tensor) -> None:
        """Sets what depends on the size of pre-activations, from those `[n, F]` of the first tokens."""

    def rescale(self, factor: Tensor) -> None:
        """Follows an encoder whose pre-activations were multiplied by a positive scalar."""

    def restart(self, latents: Tensor, size: Tensor) -> None:
        """Brings latents `[m]` int64 back to their start, after they were given new encoder rows.

        Args:
            latents: which.
            size: `[m]` their pre-activations on the tokens that the rows were made from, above 0.
        """

    def observe(self, codes: Coded) -> None:
        """Sees the codes of every training step (for running thresholds)."""

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets what inference needs from pre-activations `[n, F]` or `evidence` of held-out batches, after training."""

    def anneal(self, k: float) -> None:
        """Keeps k codes per token in the coming training steps, for parts that aim at a number; inference stays."""

    def scaled(self, gain: Tensor) -> "Activation | None":
        """The part `p` of inference with `p(gain a) = gain self(a)`, for `gain` `[F]` above 0.

        None, as here, where there is no such part, because codes of different latents compete.
        """
        del gain
        return None

    @property
    def anneals(self) -> bool:
        """Whether `anneal` does something."""
        return type(self).anneal is not Activation.anneal

    @property
    def starts(self) -> bool:
        """Whether `start` does something."""
        return type(self).start is not Activation.start

    @property
    def calibrates(self) -> bool:
        """Whether `calibrate` does something."""
        return type(self).calibrate is not Activation.calibrate


def check_k(k: float, n_latents: int) -> None:
    """Refuses a k that no dictionary of this width can have.

    Raises:
        ValueError: with the range.
    """
    if not 0 < k <= n_latents:
        raise ValueError(f"k is the number of codes per token, between 1 and n_latents = {n_latents}; got {k}")


def cut(batches: Iterable[Tensor], k: float) -> Tensor:
    """The scalar that exactly k entries per row of these batches `[n, F]`, of all processes, exceed.

    Raises:
        ValueError: if no batch comes.
    """
    highest, rows = [], 0
    for scores in batches:
        rows += scores.shape[0]
        highest.append(scores.new_empty(0))
        if scores.shape[0]:
            # no batch holds four times its share of the highest values unless batches differ wildly
            pattern = ops.BatchTopK(4 * k).pick(scores)
            highest.append(scores[pattern.rows, pattern.columns].relu())
    if not highest:
        raise ValueError("calibrating the threshold needs at least one batch of held-out tokens, got none")
    values, rows = ops.share().all.cat(torch.cat(highest)), ops.share().rows.total(rows)
    wanted = min(int(k * rows), values.numel() - 1)
    ordered = values.topk(wanted + 1).values
    return (ordered[wanted - 1] + ordered[wanted]) / 2


class TopK(Activation):
    """`z = ReLU(a)` on the k largest entries of a row, 0 elsewhere (Makhzani and Frey 2013; Gao et al. 2024).

    With `signed`, `z = a` on the k entries of largest absolute value.

    Args:
        k: codes per token.
        n_latents: width F.
        signed: whether codes keep their sign.
        alpha: at inference `alpha k` codes are kept.
    """

    shards = True

    def __init__(self, k: int, n_latents: int, signed: bool = False, alpha: float = 1.0):
        super().__init__()
        self.signed = signed
        check_k(k, n_latents)
        if k != int(k):
            raise ValueError(f"topk keeps a whole number of codes per token, got k = {k}; batch_topk takes fractions")
        self.n_latents, self.k = n_latents, round(alpha * k)
        self.train_k = self.now = int(k)
        check_k(self.k, n_latents)
        self.capacity = self.k

    def anneal(self, k: float) -> None:
        """See `Activation.anneal`."""
        check_k(k, self.n_latents)
        self.now = round(k)

    def rule(self) -> Rule:
        """See `Activation.rule`."""
        return ops.TopK(int(self.now if self.training else self.k or 1), self.signed)


class BatchTopK(Activation):
    """Training keeps the `n * k` largest entries of a batch; inference every entry above `threshold`.

    Inference so does not depend on what else is in the batch (Bussmann et al. 2024). While training, `threshold`
    follows the batches' smallest kept value with rate `rate`; `calibrate` replaces it by the exact quantile at which
    held-out tokens keep k codes on average. A running minimum alone is biased or slow, and both shift L0.

    Args:
        k: mean codes per token; may be a fraction.
        n_latents: width of the dictionary.
        rate: of the running estimate.
    """

    shards = True

    threshold: Tensor
    seen: Tensor

    def __init__(self, k: float, n_latents: int, rate: float = 0.05):
        super().__init__()
        check_k(k, n_latents)
        self.n_latents, self.rate = n_latents, rate
        self.k = self.train_k = self.now = k
        self.register_buffer("threshold", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0, dtype=torch.int64))

    def rule(self) -> Rule:
        """See `Activation.rule`."""
        return ops.batch_topk(float(self.now)) if self.training else ops.Threshold(self.threshold)

    def anneal(self, k: float) -> None:
        """See `Activation.anneal`."""
        check_k(k, self.n_latents)
        self.now = k

    @torch.no_grad()
    def observe(self, codes: Coded) -> None:
        """Moves the running threshold; the first batches count fully, so there is no start-up bias."""
        values = codes.values if isinstance(codes, Ragged) else codes.to_dense()
        least = torch.where(values > 0, values, torch.inf).flatten()
        lowest = ops.share().all.min(torch.cat([least, least.new_full((1,), torch.inf)]).amin())  # it may hold none
        self.seen += 1
        rate = torch.clamp(1 / self.seen.to(self.threshold.dtype), min=self.rate)
        moved = torch.lerp(self.threshold, lowest.to(self.threshold.dtype), rate)
        self.threshold.copy_(torch.where(torch.isfinite(lowest), moved, self.threshold))

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Sets `threshold` to the value that exactly `k` codes per token of these batches exceed.

        Raises:
            ValueError: if no batch comes.
        """
        self.threshold.copy_(cut(batches, float(self.k or 1)))

    @torch.no_grad()
    def scaled(self, gain: Tensor) -> Activation:
        """See `Activation.scaled`: one threshold per latent, which is a JumpReLU."""
        from visae.sae.thresholds import JumpReLU  # built on this module

        made = JumpReLU(len(gain), float(self.k or 1), eps=0.5).to(gain)
        made.threshold.copy_(self.threshold * gain)
        return made


class Heads(Activation):
    """k heads, and latent j in head `j mod k`; in each head the largest fires, `z = ReLU(a)`: a token is k integers.

    Args:
        k: heads.
        n_latents: width F.
    """

    def __init__(self, k: int, n_latents: int):
        super().__init__()
        check_k(k, n_latents)
        if k != int(k):
            raise ValueError(f"k is a whole number of heads, got {k}")
        self.k = self.train_k = self.now = self.capacity = int(k)

    def rule(self) -> Rule:
        """See `Activation.rule`."""
        return ops.GroupMax(int(self.k or 1))


class TopAFA(Activation):
    """As many of the largest `ReLU(a)` as bring the length of the codes nearest to that of the input.

    Top-AFA (Lee et al. 2025): with nearly orthogonal atoms `|x| = |z|`, so no k has to be chosen.
    `k_n = argmin_k | |z_1..k| - |x_n| |`.
    """

    looks = True

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        if x is None:
            raise ValueError("top-AFA needs the centred inputs beside their pre-activations, got none")
        z = pre.relu()
        ordered, order = z.detach().sort(dim=1, descending=True)
        lengths = ordered.double().square().cumsum(1).sqrt()  # small codes at the end must still count
        k = (lengths - torch.linalg.vector_norm(x, dim=1, keepdim=True)).abs().argmin(1, keepdim=True) + 1
        ranks = torch.arange(z.shape[1], device=z.device).expand_as(order)
        return z * torch.zeros_like(z, dtype=torch.bool).scatter(1, order, ranks < k)


class NoisyTopK(TopK):
    """TopK on a sample of `N(a, sigma^2)` while training, on the mean a at inference; signed (vSAE, Baker and Li 2025).

    Args:
        k: codes per token.
        n_latents: width F.
        sigma: fixed standard deviation, in the units of normalised inputs.
    """

    def __init__(self, k: int, n_latents: int, sigma: float):
        super().__init__(k, n_latents, signed=True)
        self.sigma = sigma

    def rule(self) -> Rule | None:  # type: ignore[override]
        """See `Activation.rule`."""
        return None if self.training else super().rule()

    def forward(self, pre: Tensor, x: Tensor | None = None) -> Tensor:
        """See `Activation.forward`."""
        z = pre + self.sigma * ops.randn_like(pre)
        return z * ops.TopK(int(self.now), signed=True).mask(z.detach())
