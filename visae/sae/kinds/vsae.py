"""Kind `vsae`."""

from visae.sae.activations import NoisyTopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import KL
from visae.sae.registry import register_kind


@register_kind(
    "vsae",
    formula="z ~ N(a, sigma^2), the k largest |z| of a token; + kl / 2 sum a^2",
    paper="Baker and Li 2025 (vSAE)",
    experimental="a worse reconstruction than topk, here and in the literature",
)
def vsae(d: int, n_latents: int, k: int = 32, sigma: float = 0.3, kl: float = 0.01) -> Dictionary:
    """TopK on samples around the pre-activations, with their squared size as the divergence.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        sigma: standard deviation of the samples.
        kl: coefficient of the divergence, summed over all latents.
    """
    return Dictionary(
        "vsae",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=NoisyTopK(k, n_latents, sigma),
        decoder=UnitNorm(d, n_latents),
        penalties=[KL(kl)],
    )
