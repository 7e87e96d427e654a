"""Refusals of tokens that nothing can be learnt or told from."""

import torch
from torch import Tensor

from visae.sae.moments import Moments


def check_finite(u: Tensor) -> None:
    """Refuses normalised tokens `[n, d]` with NaN or infinity: NaN is above no threshold, so codes would just be 0.

    Raises:
        ValueError: with their number.
    """
    if not torch.isfinite(u.sum()) and (bad := int((~torch.isfinite(u)).any(1).sum())):  # a sum may overflow, too
        raise ValueError(
            f"{bad} of {u.shape[0]} tokens hold values that are NaN or infinite, and have no codes. Look at the output "
            "of the model at this site; float16 overflows above 65504, so run the model in bfloat16 or float32"
        )


def check_moments(moments: Moments) -> None:
    """Refuses inputs that cannot be normalised.

    Raises:
        ValueError: if there are fewer than two rows, a value is not finite, or the rows do not vary.
    """
    if moments.n < 2:
        raise ValueError(f"the mean and scale of the inputs need at least 2 rows, got {moments.n}")
    finite = torch.isfinite(moments.mean) & torch.isfinite(moments.squares)
    if bad := int((~finite).sum()):
        raise ValueError(
            f"{bad} of {finite.numel()} input dimensions have a mean or variance that is not finite over the first "
            f"{moments.n} rows: look for NaN or overflow in the activations (float16 ends at 65504: use bfloat16)"
        )
    variance, size = moments.total / moments.n, float(moments.mean.square().sum())
    if variance <= 1e-12 * size or variance == 0:
        raise ValueError(
            f"the inputs are constant: over the first {moments.n} rows the variance is {variance:.3g} and the squared "
            f"mean {size:.3g}, so there is nothing to learn. Check the site and that the images differ"
        )
