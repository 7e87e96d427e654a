"""Folding: the same dictionary with plainer weights, for inference elsewhere or to compare codes across latents.

*Normaliser.* With `u = T (x - m)` an encoder of x reads by `W T`, and the decoder writes `T^-1 D` around `T^-1 b + m`:
exact for `none`, `scale` and `whiten`, and codes do not change. A token's own scale (`unit`, `layer_norm`) is no matter
of weights: there the normaliser stays, and only the typical scale moves. Parts that cannot take T into their weights
keep it as a buffer: an unknown encoder behind `Turned`, a modulation inside `Within`, an activation that looks at
inputs in `Dictionary.turn`.

*Norms.* `directions()` get length 1 and codes are multiplied by the lengths g they had, so codes of different latents
compare. Where every latent is decided for itself, encoder rows, biases and thresholds take g. Where latents compete
(top-k) or share rows (pairs) that would change which are kept: there the factors stay, in `Dictionary.gain`.

Both give the same reconstructions, in any order, before and after saving. A folded dictionary is for inference: it
has no penalties, its atoms are `Free`, rules of a batch are thresholds.
"""

import copy

import torch
from torch import Tensor, nn

from visae.sae.decoders import Free
from visae.sae.dictionary import Dictionary
from visae.sae.modulation import Within

STEPS = ("normaliser", "norms")
"""What can be folded, in the order of the card."""


@torch.no_grad()
def fold(sae: Dictionary, normaliser: bool = True, norms: bool = True) -> Dictionary:
    """A folded copy; see the module. What is folded already stays so.

    Args:
        sae: the dictionary; it is not changed.
        normaliser: whether to fold the normaliser.
        norms: whether to fold the lengths of the directions.

    Returns:
        A dictionary in eval mode, without gradients; `folded` says what it is, and `normaliser.name` what is left.

    Raises:
        ValueError: if nothing is to be folded.
    """
    if not normaliser and not norms:
        raise ValueError("fold the normaliser, the norms, or both: nothing was asked for")
    made, dtype = copy.deepcopy(sae), sae.mean.dtype
    made.double()  # products of weights are rounded once
    made.encoder = made.encoder.alone()
    made.decoder = Free.of(made.decoder.atoms(), made.decoder.bias)
    made.penalties = nn.ModuleList()
    if normaliser and "normaliser" not in made.folded:
        _fold_normaliser(made, dtype)
    if norms and "norms" not in made.folded:
        _fold_norms(made)
    wanted = {"normaliser": normaliser, "norms": norms}
    made.folded = tuple(step for step in STEPS if wanted[step] or step in sae.folded)
    return made.to(dtype).eval().requires_grad_(False)


def _fold_normaliser(made: Dictionary, dtype: torch.dtype) -> None:
    left, matrix, point = made.normaliser.folded()
    atoms, shift = made.decoder.atoms(), made.decoder.bias
    new_shift = (made.normaliser.back(shift) + point).to(dtype).to(shift)  # rounded, as the encoder will see it
    made.encoder = made.encoder.fold(matrix, point, shift, new_shift)
    if made.activation.looks:
        made.turn = matrix
    if made.modulation.needs:
        inverse = made.normaliser.back(torch.eye(len(point)).to(point)).T
        made.modulation = Within(made.modulation, matrix, inverse, point)
    made.decoder = Free.of(made.normaliser.back(atoms), new_shift)
    made.normaliser = left


def _fold_norms(made: Dictionary) -> None:
    gain = _lengths(made.directions())
    encoder, activation = made.encoder.scaled(gain), made.activation.scaled(gain)
    if encoder is None or activation is None:
        made.gain = gain
    else:
        made.encoder, made.activation = encoder, activation
    made.decoder = Free.of(made.decoder.atoms() / gain[:, None], made.decoder.bias)


def _lengths(directions: Tensor) -> Tensor:
    """`[F]` lengths of directions `[F, d]`, 1 for one that is zero."""
    lengths = torch.linalg.vector_norm(directions, dim=1)
    return torch.where(lengths > 0, lengths, 1.0)
