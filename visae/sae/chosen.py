"""Values of a few latents, made without the others where a dictionary allows it: what an edit needs of a token."""

import torch
from torch import Tensor

from visae.ops import Threshold
from visae.sae.checks import check_finite
from visae.sae.dictionary import Dictionary
from visae.sae.elementwise import Elementwise


def alone(sae: Dictionary) -> bool:
    """Whether a latent's value does not depend on the others', at inference: thresholds and elementwise activations."""
    with sae._inferring():
        rule, activation = sae.activation.rule(), sae.activation
        if not sae.encoder.linear or activation.thins or activation.looks or activation.among() is not None:
            return False
        return isinstance(rule, Threshold) or (rule is None and isinstance(activation, Elementwise))


def chosen_values(sae: Dictionary, x: Tensor, latents: Tensor, **side: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `encode` says about some latents; differentiable.

    Args:
        sae: the dictionary.
        x: `[n, d]` raw tokens.
        latents: `[m]` int64.
        **side: side information, see `Dictionary.encode`.

    Returns:
        Values `[n, m]`, and `Codes.scale`: what a code of each token adds in units of `directions()`, or None.

    Raises:
        ValueError: for tokens that are not finite or of another length.
    """
    if not alone(sae):
        codes = sae.encode(x, **side)
        return codes.to_dense()[:, latents], codes.scale
    tokens, its = sae.unpack(x, **side)
    u, scale, _ = sae.read(tokens)
    check_finite(u.detach())
    centred = sae.modulation(u, its) - sae.decoder.bias
    pre = centred @ sae.W_enc[latents].T + sae.b_enc[latents]
    with sae._inferring():
        rule = sae.activation.rule()
        if isinstance(rule, Threshold):
            limit = rule.threshold if rule.threshold.ndim == 0 else rule.threshold[latents]
            kept = Threshold(limit, rule.signed).mask(pre)
            values = torch.where(kept, pre if rule.signed else pre.relu(), torch.zeros_like(pre))
        else:
            assert isinstance(sae.activation, Elementwise)
            values = sae.activation.at(pre.flatten(), latents.repeat(len(pre))).view_as(pre)
    return values if sae.gain is None else values * sae.gain[latents], scale


def chosen_directions(sae: Dictionary, latents: Tensor, **side: Tensor) -> Tensor:
    """The rows `latents` `[m]` of `Dictionary.directions`, `[m, d]`."""
    atoms = sae.decoder.atoms()[latents]
    return sae.normaliser.back(sae.modulation.turn(atoms, side) if side else atoms)
