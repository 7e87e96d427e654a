"""Penalties that reach latents beyond those that a token keeps: dead ones, or the next best."""

import torch
from torch import Tensor
from torch.nn import functional

from visae import ops as kernels
from visae.sae.penalties.base import Pass, Penalty


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

    def __init__(self, coefficient: float = 1 / 32, k_aux: int | None = None):
        super().__init__()
        self.coefficient, self.k_aux = coefficient, k_aux

    def forward(self, run: Pass) -> Tensor | None:
        """See `Penalty.forward`."""
        if run.dead is None or self.coefficient == 0:
            return None
        error = run.u - run.recon
        k_aux = self.k_aux or max(1, min(run.u.shape[1] // 2, 512))
        rule = kernels.TopK(min(k_aux, run.dead.shape[0]), signed=run.sae.signed)
        codes = run.sae.select(run.u, rule, run.ops, pre=run.pre, among=run.dead)
        guess = run.ops.decode(codes, run.sae.decoder.atoms(), None)
        spread = kernels.share().rows.variance(error).mean().clamp_min(torch.finfo(error.dtype).tiny)
        return self.coefficient * functional.mse_loss(guess, error) / spread


class MultiTopK(Penalty):
    """FVU of a second reconstruction from the `factor * k` largest codes, times `coefficient` (Gao et al. 2024, A.3).

    Keeps the dictionary usable where more codes are allowed than it was trained with.

    Args:
        coefficient: 1/8 in the paper.
        k: codes per token of the dictionary.
        factor: 4 in the paper.
    """

    name = "multi_topk"

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
