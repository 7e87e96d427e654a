"""Kind `kron`."""

from visae.sae.activations import TopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Kron
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "kron",
    formula="topk of a_hij = sqrt(p_hi q_hj + 1e-5) where both are positive, else 0",
    paper="Kurochkin et al. 2025 (KronSAE)",
    experimental="the small encoder costs reconstruction, here: FVU well above that of topk, on planted pairs, too",
)
def kron(
    d: int, n_latents: int, k: int = 32, m: int = 8, n: int = 8, aux: float = 1 / 32, k_aux: int | None = None
) -> Dictionary:
    """Latents are pairs of two short lists per head, so the encoder is small; see `visae.sae.encoders.Kron`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        m: first list of a head.
        n: second list; F is a multiple of m n.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "kron",
        d,
        n_latents,
        encoder=Kron(d, n_latents, m, n),
        activation=TopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
