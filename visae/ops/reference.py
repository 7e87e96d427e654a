"""The oracle: plain torch and autograd on dense tensors. Slow, short, and what every other tier is compared with."""

import torch
from torch import Tensor

from visae.ops.nesting import Nesting, add_up
from visae.ops.rules import Rule
from visae.ops.sparse import Coded, Dense


class Reference:
    """Dense codes, dense gradients, the dtype of the inputs."""

    name = "reference"

    def encode_select(
        self, u: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, rule: Rule, among: Tensor | None = None
    ) -> Coded:
        """See `visae.ops.base.Ops`."""
        pre = (u - shift) @ weight.T + bias
        if among is None:
            return self.select(pre, rule)
        inside = self.select(pre[:, among], rule).to_dense()
        return Dense(torch.zeros_like(pre).index_copy(1, among, inside))

    def select(self, pre: Tensor, rule: Rule) -> Coded:
        """See `visae.ops.base.Ops`."""
        values = pre if rule.signed else pre.relu()
        return Dense(torch.where(rule.mask(pre.detach()), values, torch.zeros_like(values)))

    def decode(self, codes: Coded, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `visae.ops.base.Ops`."""
        out = codes.to_dense() @ weight
        return out if bias is None else out + bias

    def reconstruct(
        self, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `visae.ops.base.Ops`."""
        return add_up(self, u, codes, weight, bias, nesting)
