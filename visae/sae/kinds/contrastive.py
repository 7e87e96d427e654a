"""Kind `contrastive`."""

from visae.sae.activations import BatchTopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK, Contrast, Other
from visae.sae.registry import register_kind


@register_kind(
    "contrastive",
    formula="batch_topk, z = [c; d] on pairs; + common sum |c - c'| + apart sum d d'",
    paper="Poupart 2024 (CSAE)",
)
def contrastive(
    d: int,
    n_latents: int,
    k: float = 32,
    share: float = 0.5,
    common: float = 0.1,
    apart: float = 0.1,
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """The first latents hold what pairs of tokens have in common, the others what sets them apart.

    Training needs `other` `[n, d]` beside the tokens, the other token of each pair; encoding does not. See
    `visae.sae.penalties.Contrast`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        share: of the latents that are for what pairs have in common.
        common: coefficient of the difference of their codes.
        apart: coefficient of the product of the other latents' codes.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.

    Raises:
        ValueError: for a share outside of (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share of the latents for what pairs have in common lies between 0 and 1, got {share}")
    return Dictionary(
        "contrastive",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=BatchTopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[Other(), Contrast(round(share * n_latents), common, apart), AuxK(aux, k_aux)],
    )
