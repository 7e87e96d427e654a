"""Decode schemes: which reconstructions the loss compares with the inputs."""

from torch import Tensor, nn
from torch.nn import functional

from visae.ops import Coded, Ops
from visae.sae.decoders import Decoder


class Plain(nn.Module):
    """One reconstruction from all codes."""

    def forward(self, u: Tensor, codes: Coded, decoder: Decoder, ops: Ops) -> tuple[Tensor, Tensor]:
        """Reconstruction `[n, d]` and loss.

        The loss is `sum |u - r|^2 / (n d)`. Inputs are scaled to `E|u - mean|^2 = d`, so it is the fraction of
        variance unexplained, with the variance of the statistics taken before training: coefficients and learning
        rates keep their meaning from one site to the next.
        """
        recon = ops.decode(codes, decoder.atoms(), decoder.bias)
        return recon, functional.mse_loss(recon, u)
