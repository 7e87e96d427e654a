"""Adam with rows that stay on the unit sphere: the constraint lives in the step, so nobody can forget it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from visae.ops.fused import Fused


def project_rows(grad: Tensor, rows: Tensor) -> None:
    """Takes from each gradient row `[F, d]` its part along the unit row, in place.

    Adam's moments would otherwise fill with the radial part, which the renormalisation throws away.
    """
    grad.addcmul_(rows, torch.linalg.vecdot(grad, rows)[:, None], value=-1)


def unit_rows(rows: Tensor) -> None:
    """Scales each row to length 1, in place."""
    # linalg.vector_norm over rows is ten times slower than this on a CPU
    rows.div_(torch.linalg.vecdot(rows, rows).sqrt_().clamp_min_(torch.finfo(rows.dtype).tiny)[:, None])


class Adam:
    """Adam (Kingma and Ba 2015) over named parameters: project, step, renormalise.

    Args:
        parameters: name to parameter; frozen ones are left out.
        unit: names of `[F, d]` parameters whose rows keep length 1.
        betas: decay of the two moments.
        eps: added to the root of the second moment. Losses here are ratios, so gradients are about d times smaller
            than those of a summed squared error and the usual 1e-8 would matter.
        fused: torch's fused kernel; False spells the formulas out (the oracle).
        ops: kernels that update `[F, d]` parameters row by row, from sparse gradients; they are adopted. None updates
            all parameters from their `grad`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        unit: Iterable[str] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        fused: bool = True,
        ops: Fused | None = None,
    ):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.unit = frozenset(unit) & self.parameters.keys()
        self.betas, self.eps = betas, eps
        self.first = {name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in self.items()}
        self.second = {name: torch.zeros_like(m) for name, m in self.first.items()}
        self.count = 0
        self.ops = ops
        able = {name for name, p in self.items() if p.ndim == 2 and p.is_contiguous() and p.dtype == torch.float32}
        self.rows = [name for name, _ in self.items() if ops is not None and name in able]
        if ops is not None:
            ops.adopt(self.parameters[name] for name in self.rows)
        self._fused: torch.optim.Adam | None = None
        if fused:
            rest = [p for name, p in self.items() if name not in self.rows]
            self._fused = torch.optim.Adam(rest, betas=betas, eps=eps, fused=True) if rest else None
            self._share_state()

    def items(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters."""
        return self.parameters.items()

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients, which are dropped afterwards."""
        whole = self.unit.difference(self.rows)
        for name in whole:
            if (grad := self.parameters[name].grad) is not None:
                project_rows(grad, self.parameters[name])
        self.count += 1
        self._by_row(lr)
        if self._fused is None:
            self._plain(lr)
        else:
            self._fused.param_groups[0]["lr"] = lr
            self._fused.step()
        for name in whole:
            unit_rows(self.parameters[name])
        for parameter in self.parameters.values():
            parameter.grad = None

    def _by_row(self, lr: float) -> None:
        for name in self.rows:
            assert self.ops is not None
            p = self.parameters[name]
            self.ops.kernels.update(
                p, self.first[name], self.second[name], self.ops.take(p),
                None if p.grad is None else p.grad.contiguous(), self.ops.half_of(p), name in self.unit,
                lr, self.betas, self.eps, self.count,
            )  # fmt: skip
        if self.ops is not None:
            self.ops.reclaim()

    def _plain(self, lr: float) -> None:
        low, high = self.betas
        for name, p in self.items():
            if name in self.rows:
                continue
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.first[name].mul_(low).add_(grad, alpha=1 - low)
            self.second[name].mul_(high).addcmul_(grad, grad, value=1 - high)
            first = self.first[name] / (1 - low**self.count)
            second = self.second[name] / (1 - high**self.count)
            p.sub_(lr * first / (second.sqrt() + self.eps))

    def _share_state(self) -> None:
        """Makes torch's optimiser work on our moments, so that saving needs no translation."""
        if self._fused is None:
            return
        for name, p in self.items():
            if name in self.rows:
                continue
            self._fused.state[p] = {
                "step": torch.tensor(float(self.count), device=p.device),
                "exp_avg": self.first[name],
                "exp_avg_sq": self.second[name],
            }

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and step count, named after the parameters."""
        state = {f"first.{name}": m for name, m in self.first.items()}
        state |= {f"second.{name}": m for name, m in self.second.items()}
        return state | {"count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Reverse of `state_dict`.

        Raises:
            ValueError: naming the entries that are missing or not known.
        """
        if differing := sorted(self.state_dict().keys() ^ state.keys()):
            raise ValueError(f"the optimiser's state does not fit these parameters; differing entries: {differing}")
        for name in self.first:
            self.first[name].copy_(state[f"first.{name}"])
            self.second[name].copy_(state[f"second.{name}"])
        self.count = int(state["count"])
        self._share_state()
