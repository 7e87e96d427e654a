"""Encoders of many dictionaries in one matrix product."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visae.ops.eager import Eager, Ready


class Stack:
    """Encoder weights of one shape in one `[S * F, d]` matrix, and the pre-activations of a batch in one product.

    The parameters become views of the matrix: each stays the parameter of an ordinary dictionary. Every dictionary
    reads `u - b` with a bias b of its own, so the product is a batched one, `[S, n, d] x [S, d, F]`. With the biases
    folded into the offsets it could be a plain product on common inputs, but in bfloat16 that rounds other numbers,
    near-ties fall otherwise, and a dictionary would no longer be the one that training it alone gives.

    Args:
        weights: S parameters `[F, d]` of one shape, dtype and device.
        rooms: working memory by dtype, shared with stacks that are not in use at the same time.
    """

    def __init__(self, weights: Sequence[nn.Parameter], rooms: dict[torch.dtype, Tensor]):
        self.weights, self._rooms = torch.stack([weight.detach() for weight in weights]), rooms
        for weight, own in zip(weights, self.weights, strict=True):
            weight.data = own
        self._parameters = list(weights)

    @torch.no_grad()
    def prepare(
        self, which: Sequence[int], inputs: Sequence[Tensor], biases: Sequence[Tensor], ops: Sequence[Eager]
    ) -> None:
        """Multiplies, and leaves each dictionary's pre-activations with its kernels.

        Args:
            which: m of the S dictionaries, by number, rising.
            inputs: their batches `[n, d]`, each less its dictionary's bias.
            biases: their encoder biases `[F]`.
            ops: their kernels, all of one tier and precision.
        """
        dtype, width = ops[0].product_dtype(inputs[0].dtype), self.weights.shape[1]
        shape = (len(which), inputs[0].shape[0], width)
        size = shape[0] * shape[1] * shape[2]
        room = self._rooms.get(dtype)
        if room is None or room.numel() < size:
            room = self._rooms[dtype] = torch.empty(size, dtype=dtype, device=self.weights.device)
        out = room[:size].view(shape)
        weights = self.weights if len(which) == len(self.weights) else self.weights[list(which)]
        x, rows = torch.stack([x.to(dtype) for x in inputs]), weights.to(dtype).transpose(1, 2)
        if ops[0].product_has_bias:
            torch.baddbmm(torch.stack(list(biases)).to(dtype)[:, None], x, rows, out=out)
        else:
            torch.bmm(x, rows, out=out)
        for own, pre in zip(ops, out, strict=True):
            own.ready = Ready(pre)

    def release(self) -> None:
        """Gives each parameter memory of its own again."""
        for weight in self._parameters:
            weight.data = weight.data.clone()
