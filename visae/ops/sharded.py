"""Any tier of kernels on a slice of the latents, the others being on other processes with the same tokens.

Processes exchange the largest pre-activations of each token (to find the cut between kept ones and others) and sums of
partial reconstructions `[n, d]`; weights, their gradients and moments stay where they are.

Whatever every process has (the decoder's bias) is counted as one part in so many on each: so gradients of slices are
right as they are, and those of what every process has must be summed over the processes.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from visae.ops.base import Ops
from visae.ops.group import Group
from visae.ops.nesting import Nesting, add_up
from visae.ops.rules import Rule, TopK
from visae.ops.shared import ShardedTopK
from visae.ops.sparse import Coded, Pattern, Ragged


class Sharded:
    """See the module.

    Args:
        inner: the tier that does the work on this process.
        mesh: the processes that hold the latents, in their order; of one dimension.
        first: number of this process's first latent.
    """

    def __init__(self, inner: Ops, mesh: DeviceMesh, first: int):
        self.inner, self.mesh, self.first = inner, mesh, first
        self.group = Group(mesh.get_group())
        self.name = f"{inner.name}, latents over {self.group.size} processes"

    def _rule(self, rule: Rule) -> Rule:
        """The rule over the latents of all processes; others than TopK know about them, or look at entries alone."""
        return ShardedTopK.of(rule, self.group) if isinstance(rule, TopK) else rule

    def encode_select(
        self, u: Tensor, weight: Tensor, bias: Tensor, shift: Tensor, rule: Rule, among: Tensor | None = None
    ) -> Coded:
        """See `visae.ops.base.Ops`; codes of this process's latents, `among` counted from its first."""
        rule = self._rule(rule)
        if among is None or among.numel():
            return self.inner.encode_select(u, weight, bias, shift, rule, among)
        rule.pick(u.new_empty(u.shape[0], 0))  # the others wait for what this process has to offer
        nowhere = torch.zeros(u.shape[0] + 1, dtype=torch.int64, device=u.device)
        return Ragged(Pattern(among, nowhere, weight.shape[0]), u.new_empty(0))

    def select(self, pre: Tensor, rule: Rule) -> Coded:
        """See `visae.ops.base.Ops`."""
        return self.inner.select(pre, self._rule(rule))

    def decode(self, codes: Coded, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See `visae.ops.base.Ops`; the codes of all processes, on each of them."""
        empty = isinstance(codes, Ragged) and not codes.values.numel()
        part = weight.new_zeros(codes.n_rows, weight.shape[1]) if empty else self.inner.decode(codes, weight, None)
        parts = DTensor.from_local(part, self.mesh, [Partial()], run_check=False)
        whole: Tensor = parts.redistribute(placements=[Replicate()]).to_local()
        return whole if bias is None else whole + self._counted(bias)

    def _counted(self, everywhere: Tensor) -> Tensor:
        """A tensor that every process has, with this process's part of its gradient."""
        own = everywhere / self.group.size
        return own + (everywhere - own).detach()

    def reconstruct(
        self, u: Tensor, codes: Coded, weight: Tensor, bias: Tensor, nesting: Nesting | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `visae.ops.base.Ops`.

        Raises:
            ValueError: for levels by rank, which only all codes of a token together have.
        """
        if nesting is not None:
            if nesting.by != "latent":
                raise ValueError("nested numbers of codes cannot be split by latent: ranks need all codes of a token")
            nesting = replace(nesting, ends=tuple(max(0, end - self.first) for end in nesting.ends))
            bias = self._counted(bias)
        return add_up(self, u, codes, weight, bias, nesting)
