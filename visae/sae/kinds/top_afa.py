"""Kind `top_afa`."""

from visae.sae.activations import TopAFA
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK, SameLength
from visae.sae.registry import register_kind


@register_kind(
    "top_afa",
    formula="z = ReLU(a) on the k_n largest a of token n, k_n = argmin_k | |z| - |u_n - b| |",
    paper="Lee et al. 2025 (top-AFA)",
    experimental="goes dense: many more codes than the data need; watch L0",
)
def top_afa(d: int, n_latents: int, afa: float = 0.1, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """No k to choose: as many codes as make them as long as the input; see `visae.sae.activations.TopAFA`.

    Args:
        d: length of a token.
        n_latents: width F.
        afa: coefficient of the squared difference of the lengths.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "top_afa",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=TopAFA(),
        decoder=UnitNorm(d, n_latents),
        penalties=[SameLength(afa), AuxK(aux, k_aux)],
    )
