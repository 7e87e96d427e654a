"""Kind `msae_rw`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind
from visae.sae.schemes import NestedK, halvings


@register_kind(
    "msae_rw",
    formula="topk; FVU of the k / 8, k / 4, k / 2 and k largest codes, falling weights",
    paper="Zaigrajew et al. 2025",
)
def msae_rw(
    d: int, n_latents: int, k: int = 32, levels: int = 4, aux: float = 1 / 32, k_aux: int | None = None
) -> Dictionary:
    """Nested numbers of codes, the smallest weighted most; see `visae.sae.schemes.NestedK`.

    The paper's numbers double up to all latents, which is a dense product; here the largest is k.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token, the largest number.
        levels: how often it is halved, and one.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    activation = TopK(k, n_latents)  # refuses fractions
    ks = halvings(k, levels)
    return Dictionary(
        "msae_rw",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=activation,
        decoder=UnitNorm(d, n_latents),
        scheme=NestedK(ks, [float(weight) for weight in range(len(ks), 0, -1)]),
        penalties=[AuxK(aux, k_aux)],
    )
