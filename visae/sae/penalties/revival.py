"""Penalties that reach latents beyond those that a token keeps: dead ones, or the next best."""

import torch
from torch import Tensor
from torch.nn import functional

from visae import ops as kernels
from visae.sae.penalties.base import Pass, Penalty
from visae.sae.thresholds import filled


class AuxK(Penalty):
    """Dead latents learn to explain the error (Gao et al. 2024, appendix A.2).

    `e = u - r`, detached; `e' = sum of ReLU(a_j) d_j` over the `k_aux` largest pre-activations of dead latents,
    WITHOUT the decoder's bias; the term is `coefficient * sum |e - e'|^2 / sum |e - mean e|^2`. Published code has
    the sign of e reversed, adds the bias to e', or lets no gradient reach the encoder; `tests/sae/test_sae_auxk.py`
    holds us to the formula.

    Args:
        coefficient: 1/32 in the paper.
        k_aux: codes per token; None takes `min(d / 2, 512)`.
    """

    name = "auxk"
    shards = True

    def __init__(self, coefficient: float = 1 / 32, k_aux: int | None = None):
        super().__init__()
        self.coefficient, self.k_aux = coefficient, k_aux

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if run.dead is None or self.coefficient == 0:
            return None
        return self.coefficient * unexplained(run, run.dead, self.k_aux)


def unexplained(run: Pass, among: Tensor, k_aux: int | None) -> Tensor:
    """What share of the variance of the error the `k_aux` best of some latents `[m]` leave, where they explain it.

    0 where the error has none but rounding's, as in a batch of one token.
    """
    error = run.u - run.recon
    k_aux = k_aux or max(1, min(run.u.shape[1] // 2, 512))
    alone = kernels.share().latents.size == 1  # else other processes may have more such latents
    rule = kernels.TopK(min(k_aux, among.shape[0]) if alone else k_aux, signed=run.sae.signed)
    codes = run.sae.select(run.u, rule, run.ops, pre=run.pre, among=among)
    guess = run.ops.decode(codes, run.sae.decoder.atoms(), None)
    rows = kernels.share().rows
    spread, size = rows.variance(error).mean(), rows.mean(error.square().mean())
    varies = spread > torch.finfo(error.dtype).eps * size
    return functional.mse_loss(guess, error) / torch.where(varies, spread, torch.inf)


class AuxZipf(Penalty):
    """As `AuxK`, but for latents that fire less often than Zipf's law wants at their rank (Ayonrinde 2024).

    Latents are ranked by the running share of tokens they fire on; rank r should have the r-th of the shares
    proportional to `r^-zipf` that sum to k.

    Args:
        n_latents: width F.
        coefficient: as of `AuxK`.
        k: codes per token of the dictionary.
        zipf: exponent of the law.
        k_aux: codes per token; None takes `min(d / 2, 512)`.
        rate: of the running shares.
    """

    name = "aux_zipf"
    frequency: Tensor
    wanted: Tensor

    def __init__(
        self,
        n_latents: int,
        coefficient: float,
        k: float,
        zipf: float = 1.0,
        k_aux: int | None = None,
        rate: float = 0.02,
    ):
        super().__init__()
        self.coefficient, self.k_aux, self.rate = coefficient, k_aux, rate
        ranks = torch.arange(1, n_latents + 1, dtype=torch.float64) ** -zipf
        self.register_buffer("wanted", filled(ranks / ranks.sum(), k).float())
        self.register_buffer("frequency", self.wanted.clone())

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if run.sae.training:
            now = kernels.share().rows.mean(run.codes.counts() / run.codes.n_rows).to(self.frequency)
            self.frequency.lerp_(now, self.rate)
        order = self.frequency.argsort(descending=True, stable=True)
        below = order[self.frequency[order] < self.wanted.to(self.frequency)]
        return self.coefficient * unexplained(run, below, self.k_aux) if below.numel() else None


class MultiTopK(Penalty):
    """FVU of a second reconstruction from the `factor * k` largest codes, times `coefficient` (Gao et al. 2024, A.3).

    Keeps the dictionary usable where more codes are allowed than it was trained with.

    Args:
        coefficient: 1/8 in the paper.
        k: codes per token of the dictionary.
        factor: 4 in the paper.
    """

    name = "multi_topk"
    shards = True

    def __init__(self, coefficient: float, k: int, factor: int = 4):
        super().__init__()
        self.coefficient, self.k = coefficient, factor * k

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if self.coefficient == 0:
            return None
        decoder = run.sae.decoder
        rule = kernels.TopK(min(self.k, run.sae.n_latents), signed=run.sae.signed)
        codes = run.sae.select(run.u, rule, run.ops, pre=run.pre)
        return self.coefficient * functional.mse_loss(run.ops.decode(codes, decoder.atoms(), decoder.bias), run.u)


class Lift(Penalty):
    """`coefficient * mean ReLU(-a)` over tokens and dead latents: they rise until they fire again.

    A latent whose entries are negative on all tokens picks some, but ReLU leaves nothing of them and no gradient.

    Args:
        coefficient: of the term; 0.01 is too little to bring all of them back.
    """

    name = "lift"

    def __init__(self, coefficient: float = 0.1):
        super().__init__()
        self.coefficient = coefficient

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if run.dead is None:
            return None
        sae = run.sae
        pre = functional.linear(run.u - sae.b_dec.detach(), sae.W_enc[run.dead], sae.b_enc[run.dead])
        return self.coefficient * functional.relu(-pre).mean()
