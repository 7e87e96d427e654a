"""Kind `feature_choice`."""

from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.registry import register_kind
from visae.sae.thresholds import FeatureChoice


@register_kind(
    "feature_choice",
    formula="z_j = ReLU(a_j) on the k n / F largest a_j of a batch",
    paper="Ayonrinde 2024",
)
def feature_choice(d: int, n_latents: int, k: float = 32) -> Dictionary:
    """Feature choice: latents pick tokens, so every one fires equally often and none dies.

    Args:
        d: length of a token.
        n_latents: width F.
        k: mean codes per token.
    """
    return Dictionary(
        "feature_choice",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=FeatureChoice(k, n_latents),
        decoder=UnitNorm(d, n_latents),
    )
