"""Trouble that a run may be in: what tells it, what it means, what to do about it. The one home of these warnings."""

import logging
import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from visae.ops import Coded, Ragged, share
from visae.sae import Rows
from visae.sae.dictionary import Losses
from visae.train.callbacks import Callback

if TYPE_CHECKING:
    from visae.train.trainer import Trainer

LOG = logging.getLogger("visae.train")

Stage = Literal["start", "training", "held-out"]

DEAD = 0.1
"""Share of latents that may be dead."""
DENSE, DENSE_SHARE = 0.1, 0.05
"""A latent is dense that fires on more than so many tokens; so many of the latents may be."""
RISE, LINES = 1.25, 5
"""The loss rises where its mean over so many lines is so many times the lowest such mean before."""
FAR, FAR_SHARE = 5.0, 0.05
"""An outlier lies so many times farther from the mean than the median token; so much of the variance may be theirs."""
MISSED = 0.03
"""How far L0 may be from the k that was asked for, as a share of it."""
ROWS_PER_LATENT = 100
"""Different rows to train on per latent, at least."""
SETTLED = 0.4
"""Share of the budget before which dead and dense latents and L0 are still finding their level."""
ENOUGH = 2048
"""Tokens over which densities are taken."""


@dataclass(frozen=True)
class Trouble:
    """What a warning says beside what was found.

    Attributes:
        means: what is wrong.
        do: what helps.
    """

    means: str
    do: str


TROUBLES: dict[str, Trouble] = {
    "dead": Trouble(
        "Dead latents never fire and are width that is paid for and not used.",
        "Train longer, narrower or with more codes per token; kinds with aux revive latents, dense ones can resample "
        "them (resample_every); a large mean or few outliers in the data kill latents as well (normaliser, centre).",
    ),
    "dense": Trouble(
        "Latents that fire so often rarely mean one thing.",
        "Use fewer codes per token or a stronger penalty, and more latents.",
    ),
    "l0": Trouble(
        "With more than d / 2 codes per token any rotation of the space reconstructs as well: nothing was taken apart.",
        "Raise the penalty (l1, l0), or take a kind that fixes the number of codes (topk, batch_topk).",
    ),
    "l0-missed": Trouble(
        "Held-out tokens have another number of codes than was asked for, so metrics are not those at that k.",
        "With fewer codes, dead latents or negative pre-activations leave too few to choose from: train longer, take a "
        "smaller k or more latents; with more, calibrate on tokens like those measured on.",
    ),
    "loss-rising": Trouble(
        "The dictionary is getting worse.",
        "Lower lr or lengthen its warmup; if the data change along the stream, shuffle them. validate_every with best "
        "keeps the best dictionary.",
    ),
    "norm-outliers": Trouble(
        "A few tokens are far longer than the rest and take over the loss: a sign of register tokens or of massive "
        "activations in the model.",
        "Look at where they are; leave them out (tokens, cls and reg), take another layer, or normalise every token "
        "(normaliser).",
    ),
    "few-rows": Trouble(
        "Latents will have seen too little to find their directions.",
        "Train on more rows (rows, more images; more passes only where they run short of one), or take fewer latents.",
    ),
}


@dataclass(frozen=True)
class Notice:
    """One warning.

    Attributes:
        name: key of `TROUBLES`.
        stage: when: at the `start` of a run, while `training`, or on `held-out` tokens.
        found: the numbers that gave rise to it.
    """

    name: str
    stage: Stage
    found: str

    def __str__(self) -> str:
        trouble = TROUBLES[self.name]
        return f"{self.name}: {self.found}. {trouble.means} {trouble.do}"

    def to_dict(self) -> dict[str, str]:
        """JSON form."""
        return asdict(self)


def judge(
    d: int, stage: Stage, *, dead: float = 0.0, dense: float = 0.0, l0: float = 0.0, k: float | None = None
) -> list[Notice]:
    """Warnings about a dictionary for tokens of length d.

    Args:
        d: length of a token.
        stage: see `Notice`.
        dead: share of latents that are dead.
        dense: share of latents that fire on more than a tenth of the tokens.
        l0: codes per token.
        k: codes per token that were asked for; None where there is no such number.
    """
    found = []
    if dead > DEAD:
        found.append(Notice("dead", stage, f"{dead:.0%} of the latents are dead"))
    if dense > DENSE_SHARE:
        found.append(Notice("dense", stage, f"{dense:.0%} of the latents fire on more than {DENSE:.0%} of the tokens"))
    if l0 > d / 2:
        found.append(Notice("l0", stage, f"{l0:.1f} codes per token, of {d} dimensions"))
    if k is not None and abs(l0 - k) > MISSED * k:
        found.append(Notice("l0-missed", stage, f"{l0:.3g} codes per token, and k is {k:.3g}"))
    return found


def outliers(rows: Tensor) -> Notice | None:
    """A warning if few tokens `[n, d]` hold much of the variance."""
    apart = rows.double() - rows.double().mean(0)
    lengths = torch.linalg.vector_norm(apart, dim=1)
    far = lengths > FAR * lengths.median()
    held = float(lengths[far].square().sum() / lengths.square().sum().clamp_min(torch.finfo(lengths.dtype).tiny))
    if held <= FAR_SHARE:
        return None
    return Notice(
        "norm-outliers",
        "start",
        f"{float(far.double().mean()):.2%} of the tokens lie {FAR:.0f} times farther from the mean than the median "
        f"token and hold {held:.0%} of the variance",
    )


def few_rows(trainer: "Trainer") -> Notice | None:
    """A warning if a run has few rows per latent; those that come again count once, where the loader tells."""
    budget, latents = trainer.steps * trainer.rows_per_step, trainer.sae.n_latents
    rows = min(budget, trainer.pass_rows or budget)
    if rows >= ROWS_PER_LATENT * latents:
        return None
    seen = f"{rows:,} rows" if rows == budget else f"{rows:,} different rows, seen {budget / rows:.1f} times,"
    text = f"{seen} for {latents:,} latents are {rows / latents:.0f} for each"
    return Notice("few-rows", "start", f"{text}, fewer than {ROWS_PER_LATENT}")


def firings(codes: Coded) -> Tensor:
    """`[F]` int64: tokens of the batch on which each latent of the whole dictionary fires, over all processes."""
    if isinstance(codes, Ragged):
        counts = torch.zeros(codes.pattern.n_latents, dtype=torch.int64, device=codes.values.device)
        counts.index_add_(0, codes.pattern.columns, (codes.values != 0).long())
    else:
        counts = (codes.values != 0).sum(0)
    return share().latents.cat(share().rows.sum(counts))


class Watch(Callback):
    """Warns by name, each at most once per stage: in the log, in the line of `metrics.jsonl` that comes next."""

    name = "warnings"

    def __init__(self) -> None:
        self.raised: list[str] = []
        self.pending: list[dict[str, str]] = []
        self.losses: list[float] = []
        self.lowest = math.inf
        self.fired: Tensor | None = None
        self.rows = 0

    def begin(self, trainer: "Trainer", rows: Tensor | Rows) -> None:
        """See `Callback.begin`."""
        for notice in (outliers(trainer.sae.normalise(rows)), few_rows(trainer)):
            if notice is not None:
                self._raise(trainer, notice)

    @torch.no_grad()
    def logged(self, trainer: "Trainer", losses: Losses, metrics: dict[str, Any]) -> None:
        """See `Callback.logged`."""
        for notice in [*self._levels(trainer, losses, metrics), *self._rising(trainer, metrics)]:
            if notice.name not in self.raised:
                self._raise(trainer, notice)
        if self.pending:
            metrics["warnings"], self.pending = self.pending, []

    def validated(self, trainer: "Trainer", metrics: dict[str, Any]) -> None:
        """See `Callback.validated`; parts whose thresholds are calibrated at the end may miss k until then."""
        part = trainer.sae.activation
        if "l0-missed" in self.raised or part.calibrates or not _settled(trainer):
            return
        for notice in judge(trainer.sae.d, "held-out", l0=metrics["val_l0"], k=part.k):
            if notice.name == "l0-missed":
                self._raise(trainer, notice)
                metrics["warnings"], self.pending = self.pending, []

    def _raise(self, trainer: "Trainer", notice: Notice) -> None:
        if notice.stage != "start":
            self.raised.append(notice.name)
        self.pending.append(notice.to_dict())
        if trainer.accelerator.is_main_process:
            LOG.warning("%s%s", f"{trainer.out}: " if trainer.out is not None else "", notice)

    def _levels(self, trainer: "Trainer", losses: Losses, metrics: dict[str, Any]) -> list[Notice]:
        """Dead and dense latents, and L0."""
        if not _settled(trainer):
            return []
        counts = firings(losses.codes)
        self.fired = counts if self.fired is None else self.fired.to(counts.device) + counts
        self.rows += losses.codes.n_rows * share().rows.size
        dense = 0.0
        if self.rows >= ENOUGH:
            dense = float((self.fired > DENSE * self.rows).double().mean())
            self.fired, self.rows = None, 0
        return judge(trainer.sae.d, "training", dead=metrics["dead"], dense=dense, l0=metrics["l0"])

    def _rising(self, trainer: "Trainer", metrics: dict[str, Any]) -> list[Notice]:
        """The loss, less the term that comes and goes with dead latents, against its lowest so far."""
        if trainer.step < max(trainer.config.warmup, _moving(trainer)) * trainer.steps:
            return []
        if metrics["fvu"] > 1:  # worse than the mean of the batch; every start is better
            return [Notice("loss-rising", "training", f"the FVU is {metrics['fvu']:.3g}, worse than the data's mean")]
        self.losses = [*self.losses, metrics["loss"] - metrics.get("auxk", 0.0)][-LINES:]
        if len(self.losses) < LINES:
            return []
        now, lowest = statistics.fmean(self.losses), self.lowest
        self.lowest = min(lowest, now)
        if now <= RISE * lowest:
            return []
        return [Notice("loss-rising", "training", f"the loss rose to {now:.3g} after {lowest:.3g}")]

    def state_dict(self) -> dict[str, Any]:
        """See `Callback.state_dict`."""
        tensors = {"losses": torch.tensor([self.lowest, *self.losses], dtype=torch.float64)}
        if self.fired is not None:
            tensors["fired"] = self.fired
        return {"raised": self.raised, "pending": self.pending, "rows": self.rows, **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback.load_state_dict`."""
        self.raised, self.pending, self.rows = state["raised"], state["pending"], state["rows"]
        self.lowest, *self.losses = state["losses"].tolist()
        self.fired = state.get("fired")


def _settled(trainer: "Trainer") -> bool:
    """Whether dead and dense latents and L0 have found their level."""
    return trainer.step >= max(SETTLED, _moving(trainer)) * trainer.steps


def _moving(trainer: "Trainer") -> float:
    """Share of the steps after which k and the penalties stay."""
    config = trainer.config
    rising = [penalty.warmup for penalty in trainer.sae.penalties if isinstance(penalty.warmup, float)]
    return max([0.0, *rising, config.anneal if config.start_k is not None else 0.0])


def told(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The warnings in the lines of a run, each with its step."""
    return [{**notice, "step": line["step"]} for line in history for notice in line.get("warnings", [])]
