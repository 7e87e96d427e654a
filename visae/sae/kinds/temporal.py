"""Kind `temporal`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.modulation import NoiseLevel
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "temporal",
    formula="topk on v = u exp(g(sigma)) + b(sigma); reconstructions go back to u",
    paper="Huang et al. 2025 (TIDE)",
)
def temporal(
    d: int, n_latents: int, k: int = 32, hidden: int = 64, aux: float = 1 / 32, k_aux: int | None = None
) -> Dictionary:
    """TopK for tokens of a diffusion model, whose scale and offset follow the noise level; see `NoiseLevel`.

    Training, encoding and decoding need `sigma` `[n]` beside the tokens.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        hidden: units of the hidden layer between the noise level and the modulation.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "temporal",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
        modulation=NoiseLevel(d, hidden),
    )
