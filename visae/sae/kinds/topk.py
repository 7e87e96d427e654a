"""Kind `topk`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import KINDS


@KINDS.register("topk")
def topk(d: int, n_latents: int, k: int = 32, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """TopK with AuxK (Gao et al. 2024, "Scaling and evaluating sparse autoencoders").

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "topk",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
