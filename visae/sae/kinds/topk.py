"""Kind `topk`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK, MultiTopK
from visae.sae.registry import register_kind


@register_kind("topk", formula="z = ReLU(a) on the k largest a of a token", paper="Gao et al. 2024")
def topk(
    d: int, n_latents: int, k: int = 32, aux: float = 1 / 32, k_aux: int | None = None, multi: float = 0.0
) -> Dictionary:
    """TopK with AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
        multi: coefficient of a second reconstruction from 4 k codes (1/8 in the paper), for use with other k later.
    """
    return Dictionary(
        "topk",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux), *([MultiTopK(multi, k)] if multi else [])],
    )
