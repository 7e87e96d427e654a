"""Adam with rows that stay on the unit sphere: the constraint lives in the step, so nobody can forget it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


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
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        unit: Iterable[str] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-10,
        fused: bool = True,
    ):
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        self.unit = frozenset(unit) & self.parameters.keys()
        self.betas, self.eps = betas, eps
        self.first = {name: torch.zeros_like(p, memory_format=torch.contiguous_format) for name, p in self.items()}
        self.second = {name: torch.zeros_like(m) for name, m in self.first.items()}
        self.count = 0
        self._fused: torch.optim.Adam | None = None
        if fused:
            self._fused = torch.optim.Adam(self.parameters.values(), betas=betas, eps=eps, fused=True)
            self._share_state()

    def items(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters."""
        return self.parameters.items()

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update from the gradients, which are dropped afterwards."""
        for name in self.unit:
            if (grad := self.parameters[name].grad) is not None:
                project_rows(grad, self.parameters[name])
        self.count += 1
        if self._fused is None:
            self._plain(lr)
        else:
            self._fused.param_groups[0]["lr"] = lr
            self._fused.step()
        for name in self.unit:
            unit_rows(self.parameters[name])
        for parameter in self.parameters.values():
            parameter.grad = None

    def _plain(self, lr: float) -> None:
        low, high = self.betas
        for name, p in self.items():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.first[name].mul_(low).add_(grad, alpha=1 - low)
            self.second[name].mul_(high).addcmul_(grad, grad, value=1 - high)
            first = self.first[name] / (1 - low**self.count)
            second = self.second[name] / (1 - high**self.count)
            p.sub_(lr * first / (second.sqrt() + self.eps))

    def _share_state(self) -> None:
        """Makes torch's optimiser work on our moments, so that saving needs no translation."""
        assert self._fused is not None
        for name, p in self.items():
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
        if self._fused is not None:
            self._share_state()
