"""Kind `adaptive_k`."""

from visae.sae.adaptive import AdaptiveTopK, By
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "adaptive_k",
    formula="z = ReLU(a) on the k_n largest a of token n, k_n = argmin_j |u - r_j|^2 / d + price j",
    paper="after Yao and Du 2025 (AdaptiveK), without their labels",
)
def adaptive_k(
    d: int,
    n_latents: int,
    k: float = 32,
    k_min: int = 1,
    k_max: int | None = None,
    by: By = "error",
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """TopK with as many codes as the token needs; see `visae.sae.adaptive.AdaptiveTopK`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        k_min: fewest codes of a token.
        k_max: most codes of a token; None takes 2 k.
        by: `error`: inference measures what the token needs, in a first pass with k_max codes; `probe`: a ridge probe
            of the input guesses it.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    most = min(n_latents, round(2 * k)) if k_max is None else k_max
    return Dictionary(
        "adaptive_k",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=AdaptiveTopK(k, n_latents, d, min(k_min, int(k)), most, by),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
