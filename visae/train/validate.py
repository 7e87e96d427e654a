"""FVU and L0 on held-out batches while training; the full set of metrics is `visae.evaluate`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from visae.ops import Ops, share
from visae.sae import Dictionary, Moments, Rows


@torch.no_grad()
def validate(sae: Dictionary, batches: Iterable[Tensor | Rows], ops: Ops | None = None) -> dict[str, float]:
    """Fraction of variance unexplained over all batches, and mean L0, by the rule of inference.

    Where processes split the rows of training, each has the same batches here and measures its part of them.

    Args:
        sae: the dictionary.
        batches: tokens `[n, d]`, with side information where the dictionary needs it.
        ops: kernels that know of the latents on other processes, where there are any.

    Raises:
        ValueError: if there is no batch.
    """
    moments, error, codes_seen = Moments(sae.d), 0.0, 0
    for x, side in own_rows(sae, batches):
        x = x.to(sae.mean.device, torch.float32)
        recon, active = _alone(sae, x, side) if ops is None or share().latents.size == 1 else _rebuilt(sae, x, ops)
        error += float((x.double() - recon.double()).square().sum())
        codes_seen += active
        moments.add(x)
    group, pooled = share().rows, Moments(sae.d)
    for packed in group.gather(moments.pack().to(group.device)).cpu():
        pooled.merge_packed(packed)
    if not pooled.n:
        raise ValueError(
            "validation needs at least one batch of tokens [b, d], got none; give batches that can be "
            "iterated again, such as a list"
        )
    sums = group.sum(torch.tensor([error, float(codes_seen)], dtype=torch.float64, device=group.device))
    return {"val_fvu": float(sums[0]) / pooled.total, "val_l0": float(sums[1]) / pooled.n}


def _alone(sae: Dictionary, x: Tensor, side: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Reconstructions `[n, d]`, and how many codes are not 0."""
    codes = sae.encode(x, **side)
    return sae.decode(codes), int(codes.l0().sum())


def _rebuilt(sae: Dictionary, x: Tensor, ops: Ops) -> tuple[Tensor, int]:
    """The same of a dictionary whose latents lie on several processes."""
    was = sae.activation.training
    sae.activation.eval()
    try:
        codes, _ = sae.code(sae.normalise(x), ops)
        recon = sae.restore(ops.decode(codes, sae.W_dec, sae.b_dec), x)
    finally:
        sae.activation.train(was)
    return recon, share().latents.total(int((codes.values != 0).sum()))


def own_rows(sae: Dictionary, batches: Iterable[Any]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Rows of batches that are this process's to measure, and their side information.

    Where n processes have the same batches, each takes every n-th row.
    """
    mine = slice(share().rows.rank, None, share().rows.size)
    for batch in batches:
        x, side = sae.unpack(batch)
        yield x[mine], {name: value[mine] for name, value in side.items()}
