"""FVU and L0 on held-out batches while training; the full set of metrics is `visae.evaluate`."""

from collections.abc import Iterable

import torch
from torch import Tensor

from visae.sae import Dictionary, Moments


@torch.no_grad()
def validate(sae: Dictionary, batches: Iterable[Tensor]) -> dict[str, float]:
    """Fraction of variance unexplained over all batches, and mean L0, by the rule of inference.

    Raises:
        ValueError: if there is no batch.
    """
    moments, error, codes_seen = Moments(sae.d), 0.0, 0
    for batch in batches:
        x, side = sae.unpack(batch)
        x = x.to(sae.mean.device, torch.float32)
        codes = sae.encode(x, **side)
        error += float((x.double() - sae.decode(codes).double()).square().sum())
        codes_seen += int(codes.l0().sum())
        moments.add(x)
    if not moments.n:
        raise ValueError(
            "validation needs at least one batch of tokens [b, d], got none; give batches that can be "
            "iterated again, such as a list"
        )
    return {"val_fvu": error / moments.total, "val_l0": codes_seen / moments.n}
