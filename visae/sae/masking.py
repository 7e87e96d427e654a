"""Activation part that leaves less important latents out of some steps of training."""

import torch
from torch import Tensor

from visae.ops import Coded, share
from visae.sae.activations import BatchTopK


class MaskedTopK(BatchTopK):
    """BatchTopK among the latents that are not masked (adaptive temporal masking, Li and Ren 2025).

    The importance `I_j` of a latent is the mean of three running means over tokens, each over its own mean over
    latents: of its codes (magnitude), of their being there (frequency), and of their squares, which is what they add to
    the length of the reconstruction (contribution). With `theta = mean I + spread std I`, a latent with `I_j < theta`
    is left out of a step with probability `1 - exp(-rate (theta - I_j) / theta)`. Inference leaves out none.

    Frequent latents have to do without rarer companions now and then, so the latent of a parent concept learns to fire
    where a child has its own, too: otherwise the child's takes over the parent's direction ("absorption"). The paper
    masks an autoencoder with a sparsity penalty; BatchTopK in its place keeps the number of codes asked for.

    Args:
        k: mean codes per token; may be a fraction.
        n_latents: width F.
        spread: of the threshold, in standard deviations.
        rate: of masking.
    """

    masks = True
    means: Tensor

    def __init__(self, k: float, n_latents: int, spread: float, rate: float):
        super().__init__(k, n_latents)
        if rate < 0:
            raise ValueError(f"the rate of masking is not negative, got {rate}")
        self.spread, self.masking = spread, rate
        self.register_buffer("means", torch.ones(3, n_latents))
        self._kept: Tensor | None = None

    def importance(self) -> Tensor:
        """`[F]`, 1 on average."""
        return (self.means / self.means.mean(1, keepdim=True).clamp_min(torch.finfo(self.means.dtype).tiny)).mean(0)

    def among(self) -> Tensor | None:
        """See `Activation.among`; drawn anew at every call."""
        if not self.training:
            return None
        importance = self.importance()
        theta = importance.mean() + self.spread * importance.std(correction=0)
        stay = torch.exp(-self.masking * ((theta - importance) / theta).clamp_min(0))
        self._kept = torch.rand(stay.shape, dtype=stay.dtype, device=stay.device) <= stay
        return self._kept.nonzero()[:, 0]

    @torch.no_grad()
    def observe(self, codes: Coded) -> None:
        """Moves the threshold, and the running means of the latents that took part."""
        super().observe(codes)
        sums = (codes.sums(torch.abs), codes.counts(), codes.sums(torch.square))
        now = torch.stack([one.to(self.means.dtype) for one in sums]) / codes.n_rows
        rate = torch.clamp(1 / self.seen.to(self.means.dtype), min=self.rate)
        moved = torch.lerp(self.means, share().rows.mean(now), rate)
        self.means.copy_(moved if self._kept is None else torch.where(self._kept, moved, self.means))
