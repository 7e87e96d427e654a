"""Kind `archetypal`."""

from typing import Literal

from visae.registry import UnknownName
from visae.sae.activations import BatchTopK, TopK
from visae.sae.decoders import Archetypal
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK, TargetL0
from visae.sae.registry import register_kind
from visae.sae.thresholds import JumpReLU


@register_kind(
    "archetypal",
    formula="topk; D = exp(s) (W C + Lambda), rows of W convex over data points C, |Lambda_i| <= delta",
    paper="Fel et al. 2025",
)
def archetypal(
    d: int,
    n_latents: int,
    k: int = 32,
    points: int = 1024,
    delta: float = 0.1,
    activation: Literal["topk", "batch_topk", "jumprelu"] = "topk",
    aux: float = 1 / 32,
    k_aux: int | None = None,
) -> Dictionary:
    """Atoms that stay near mixtures of data points; see `visae.sae.decoders.Archetypal`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token.
        points: data points that atoms are mixtures of.
        delta: how far an atom may leave their hull, in mean lengths of a data point.
        activation: `topk`, `batch_topk` (k holds on average over a batch) or `jumprelu` (learnt thresholds).
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    parts = {
        "topk": lambda: (TopK(k, n_latents), []),
        "batch_topk": lambda: (BatchTopK(k, n_latents), []),
        "jumprelu": lambda: (JumpReLU(n_latents, k, eps=0.5), [TargetL0(0.1)]),
    }
    if activation not in parts:
        raise UnknownName("activation", activation, parts)
    chosen, penalties = parts[activation]()
    return Dictionary(
        "archetypal",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=chosen,
        decoder=Archetypal(d, n_latents, points, delta),
        penalties=[*penalties, AuxK(aux, k_aux)],
    )
