"""Kind `k_sparse`."""

from visae.sae.activations import TopK
from visae.sae.decoders import Free
from visae.sae.dictionary import Dictionary
from visae.sae.encoders import Tied
from visae.sae.registry import register_kind


@register_kind(
    "k_sparse",
    formula="z = ReLU(a) on the k largest a, a = (u - b) D^T + b_enc; alpha k at inference",
    paper="Makhzani and Frey 2013",
)
def k_sparse(d: int, n_latents: int, k: int = 32, alpha: float = 1.0) -> Dictionary:
    """k-sparse autoencoder: one matrix reads and writes, and nothing revives latents.

    Args:
        d: length of a token.
        n_latents: width F.
        k: codes per token while training.
        alpha: at inference `alpha k` codes are kept; the paper takes 1 to 3.
    """
    decoder = Free(d, n_latents)
    return Dictionary(
        "k_sparse",
        d,
        n_latents,
        encoder=Tied(decoder, n_latents),
        activation=TopK(k, n_latents, alpha=alpha),
        decoder=decoder,
    )
