"""Kind `feature_choice`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxZipf, Lift, Penalty
from visae.sae.registry import register_kind
from visae.sae.thresholds import FeatureChoice


@register_kind(
    "feature_choice",
    formula="z_j = ReLU(a_j) on the m_j largest a_j of a batch of n, sum m_j = k n; m_j = k n / F, or by Zipf's law, "
    "and no more than are above 0",
    paper="Ayonrinde 2024",
    experimental="all latents fire, too many ones too: with two latents for each feature FVU 0.247 where topk leaves "
    "0.129 (visae bench quality)",
)
def feature_choice(
    d: int,
    n_latents: int,
    k: float = 32,
    zipf: float = 0.0,
    lift: float = 0.1,
    aux: float = 0.0,
    k_aux: int | None = None,
) -> Dictionary:
    """Feature choice: latents pick tokens, so how often each fires is given, and those that die are brought back.

    Nor may any be idle: in a dictionary wider than there are features, latents that are too many fire all the same, and
    reconstruct worse than `topk`. With `lift=0` they may die, and it reconstructs better.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token.
        zipf: exponent of the law of frequencies; 0 lets all latents fire equally often.
        lift: coefficient of the loss that raises dead latents; 0 leaves them dead.
        aux: coefficient of the loss by which latents that fire less often than the law wants explain the error.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    penalties: list[Penalty] = [AuxZipf(n_latents, aux, k, zipf or 1.0, k_aux)] if aux else []
    if lift:
        penalties.append(Lift(lift))
    return Dictionary(
        "feature_choice",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=FeatureChoice(k, n_latents, zipf),
        decoder=UnitNorm(d, n_latents),
        penalties=penalties,
    )
