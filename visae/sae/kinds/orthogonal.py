"""Kind `orthogonal`."""

from visae.sae.activations import BatchTopK
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK, Orthogonal
from visae.sae.registry import register_kind


@register_kind(
    "orthogonal",
    formula="batch_topk; + ortho mean_i max_j cos(d_i, d_j)^2 in random chunks",
    paper="Korznikov et al. 2025 (OrtSAE)",
)
def orthogonal(
    d: int,
    n_latents: int,
    k: float = 32,
    ortho: float = 0.25,
    chunk: int = 8192,
    every: int = 1,
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """BatchTopK whose atoms keep apart; see `visae.sae.penalties.Orthogonal`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token; may be a fraction.
        ortho: coefficient.
        chunk: atoms compared with one another.
        every: steps between evaluations.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "orthogonal",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=BatchTopK(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux), Orthogonal(ortho, chunk, every)],
    )
