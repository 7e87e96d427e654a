"""Kind `archetypal`."""

from collections.abc import Sequence
from typing import Any, cast

from visae.registry import UnknownName
from visae.sae.activations import TopAFA
from visae.sae.decoders import Archetypal
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import Penalty
from visae.sae.registry import KINDS, kind_options, register_kind
from visae.sae.schemes import Plain


@register_kind(
    "archetypal",
    formula="any activation; D = exp(s) (W C + Lambda), rows of W convex over data points C, |Lambda_i| <= delta",
    paper="Fel et al. 2025",
)
def archetypal(
    d: int,
    n_latents: int,
    k: float = 32,
    points: int = 1024,
    delta: float = 0.1,
    activation: str = "topk",
    aux: float | None = None,
    k_aux: int | None = None,
    l1: float | None = None,
    l0: float | None = None,
) -> Dictionary:
    """Atoms that stay near mixtures of data points; see `visae.sae.decoders.Archetypal`.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token, for activations that have it.
        points: data points that atoms are mixtures of.
        delta: how far an atom may leave their hull, in mean lengths of a data point.
        activation: the kind whose activation and penalties it has: `topk`, `batch_topk`, `jumprelu`, `relu_l1`,
            `gated`, `abs_topk`, `adaptive_k`, ...
        aux: coefficient of the loss that revives dead latents; this and the next three: None takes that kind's own.
        k_aux: codes per token in that loss.
        l1: coefficient of the penalty of `relu_l1`, `gated` and `p_anneal`.
        l0: coefficient of that of `jumprelu`.

    Raises:
        UnknownName: for an activation that is no kind.
        ValueError: for a kind that is more than an activation and penalties, or counts on atoms of length 1, or lacks
            an option that is given.
    """
    if activation not in KINDS:
        raise UnknownName("activation", activation, KINDS)
    known = kind_options(activation)
    given = {"aux": aux, "k_aux": k_aux, "l1": l1, "l0": l0}
    chosen = {name: value for name, value in given.items() if value is not None}
    if spare := [name for name in chosen if name not in known]:
        raise ValueError(f"activation {activation!r} has no {spare[0]}: leave it out")
    base = _base(activation, d, n_latents, **chosen, **({"k": k} if "k" in known else {}))
    return Dictionary(
        "archetypal",
        d,
        n_latents,
        encoder=base.encoder,
        activation=base.activation,
        decoder=Archetypal(d, n_latents, points, delta),
        penalties=cast(Sequence[Penalty], base.penalties),
    )


def _base(activation: str, d: int, n_latents: int, **options: Any) -> Dictionary:
    """The dictionary whose activation and penalties are taken."""
    instead = "take topk, batch_topk, jumprelu, relu_l1, gated, abs_topk or the like"
    base = None if activation == "archetypal" else KINDS[activation](d, n_latents, **options)
    # other encoders may read with the atoms; nested reconstructions and noise levels are no activation
    if base is None or type(base.encoder) is not Linear or type(base.scheme) is not Plain or base.modulation.needs:
        raise ValueError(f"kind {activation!r} is more than an activation and penalties on a linear encoder: {instead}")
    if isinstance(base.activation, TopAFA):
        raise ValueError(f"kind {activation!r} needs atoms of length 1, which archetypal ones have not: {instead}")
    return base
