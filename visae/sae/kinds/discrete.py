"""Kind `discrete`."""

from visae.sae.activations import Heads
from visae.sae.decoders import UnitNorm
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Linear
from visae.sae.penalties import AuxK
from visae.sae.registry import register_kind


@register_kind(
    "discrete",
    formula="z = ReLU(a) on the largest a of each of k heads; latent j is in head j mod k",
    paper="after O'Neill and Bui 2024",
    experimental="with several heads a far worse reconstruction than topk, here: concepts of a head exclude each other",
)
def discrete(d: int, n_latents: int, k: int = 32, aux: float = 1 / 32, k_aux: int | None = None) -> Dictionary:
    """Codes that are k integers, one per head; see `visae.sae.activations.Heads`.

    O'Neill and Bui read the output of an attention head as the number of its largest latent, and find the heads of a
    circuit by the numbers that only occur where it is at work. Here the choice is made while training, too.

    Args:
        d: length of a token.
        n_latents: width F.
        k: heads.
        aux: coefficient of the loss that revives dead latents.
        k_aux: codes per token in that loss; None takes `min(d / 2, 512)`.
    """
    return Dictionary(
        "discrete",
        d,
        n_latents,
        encoder=Linear(d, n_latents),
        activation=Heads(k, n_latents),
        decoder=UnitNorm(d, n_latents),
        penalties=[AuxK(aux, k_aux)],
    )
