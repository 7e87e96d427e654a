"""`TrainConfig`: every number of a training run, and the rules behind its defaults."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from visae.sae.init import Centre, Start

FREE = frozenset({"shard_latents", "log_every", "checkpoint_every", "keep", "validate_every", "device"})
"""Settings that may change when a run is resumed; all others decide the weights."""


CHOICES = {
    "precision": ("auto", "fp32", "bf16"),
    "start": ("data", "random", "given"),
    "centre": ("mean", "median"),
    "anneal_shape": ("linear", "exponential"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Give the budget as `steps` or as `tokens`.

    Attributes:
        steps: optimiser steps.
        tokens: rows to train on, over all processes; the steps follow from it and `batch`.
        batch: rows per step and process; a loader must bring batches of this size where the budget is in tokens. A run
            that goes on with another number of processes keeps the rows per step of all of them together.
        lr: peak learning rate; None follows `default_lr`.
        warmup: share of the steps over which the rate rises linearly from 0.
        decay: share of the steps, the last ones, over which it falls linearly to 0.
        betas: of Adam.
        seed: of the initial weights and of anything drawn while training.
        start: atoms start near data points or at `random` directions, see `visae.sae.initialise`; `given` keeps the
            weights and the statistics of the inputs that the dictionary has (fine-tuning).
        centre: reconstructions start from the `mean` of the data or from their geometric `median`.
        start_k: codes per token at the first step, for kinds with k; they move to k over the first `anneal` steps.
            With more codes at first, more latents get gradients. None keeps k throughout.
        anneal: share of the steps over which k moves.
        anneal_shape: `linear`, or `exponential` (by a constant factor per step).
        sparsity_warmup: share of the steps over which penalties on the size or number of codes rise from 0; None
            leaves each kind its own. A full penalty at once kills latents.
        tilt: t of the tilted mean `(1/t) log mean exp(t l_n)` of the tokens' losses; 0 is the mean, above 0 the tokens
            explained worst count more. For fine-tuning on rare things (`visae specialise`); by itself it costs quality.
        mfr: coefficient of mutual feature regularisation (`visae.sae.penalties.Mutual`) among the members of a `Suite`
            that differ in nothing but the seed; it draws them towards one another.
        resample_every: steps between looks for dead latents, which are given new weights (see
            `visae.train.resample`); for `relu_l1`, `gated`, `jumprelu` and the like. None never does.
        ema: decay of a moving average of the weights, which is measured and exported in their place; None for none.
        patience: validations without a lower FVU after which the run ends early; None never ends it.
        best: end with the dictionary that had the lowest FVU at a validation; it is kept in `checkpoints/best-STEP`.
        precision: of the encoder's matrix product, the only large one: `bf16`, `fp32`, or `auto`, which takes what
            accelerate was launched with, else bf16 where the device multiplies it in hardware.
        shard_latents: over how many processes the latents are split, for a dictionary that does not fit one device and
            kinds that can be split (see `visae.sae.slices`). So many neighbouring processes must see the same rows.
        ops: tier of kernels, see `visae.ops.make_ops`.
        device: `auto` leaves the choice to accelerate; otherwise e.g. `cpu`.
        stat_rows: rows read before training for mean, scale and first atoms; the loader is rewound afterwards.
        dead_window: a latent is dead after so many samples without firing; None takes 5 % of the budget, at most 10 M.
        calibration_rows: held-out rows for thresholds, read at the end; no more than the run trained on.
        log_every: steps between lines of `metrics.jsonl`.
        checkpoint_every: steps between checkpoints; one more is written at the end.
        keep: newest checkpoints kept, beside the best.
        validate_every: steps between passes over the validation batches; None: only at the end. `patience` and `best`
            need it.
    """

    steps: int | None = None
    tokens: int | None = None
    batch: int = 4096
    lr: float | None = None
    warmup: float = 0.05
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    seed: int = 0
    start: Start | Literal["given"] = "data"
    centre: Centre = "mean"
    start_k: float | None = None
    anneal: float = 0.2
    anneal_shape: Literal["linear", "exponential"] = "linear"
    sparsity_warmup: float | None = None
    tilt: float = 0.0
    mfr: float = 0.0
    resample_every: int | None = None
    ema: float | None = None
    patience: int | None = None
    best: bool = False
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    shard_latents: int = 1
    ops: str = "auto"
    device: str = "auto"
    stat_rows: int = 65_536
    dead_window: int | None = None
    calibration_rows: int = 65_536
    log_every: int = 25
    checkpoint_every: int = 1000
    keep: int = 2
    validate_every: int | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError(
                f"give the budget as steps or as tokens, one of them; got steps={self.steps}, tokens={self.tokens}"
            )
        least = {
            "steps": 1,
            "tokens": 1,
            "batch": 1,
            "stat_rows": 2,
            "dead_window": 1,
            "calibration_rows": 1,
            "log_every": 1,
            "checkpoint_every": 1,
            "keep": 1,
            "validate_every": 1,
            "resample_every": 1,
            "patience": 1,
            "shard_latents": 1,
        }
        for name, low in least.items():
            if (value := getattr(self, name)) is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be above 0, got {self.lr}; None takes the default of the width and budget")
        if self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup and decay are shares of the steps and sum to at most 1; got {self.warmup} and {self.decay}"
            )
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}; got {value!r}")
        for name in ("anneal", "sparsity_warmup"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a share of the steps, between 0 and 1; got {value}")

    def total_steps(self, rows_per_step: int | None = None) -> int:
        """Steps of the run; `rows_per_step` counts the rows of all processes, `batch` if not given."""
        return self.steps if self.steps is not None else -(-int(self.tokens or 0) // (rows_per_step or self.batch))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "TrainConfig":
        """Reverse of `to_dict`."""
        return cls(**{**data, "betas": tuple(data["betas"])})


def default_lr(n_latents: int, steps: int) -> float:
    """Peak learning rate from the width F and the budget: `4e-3 * sqrt(1024 / F) * sqrt(1500 / steps)`.

    The law in F is the usual one (1 / sqrt F). The constant is where planted dictionaries are recovered best in 1500
    steps (F = 1024): topk, batch_topk and jumprelu leave FVU .129, .132 and .130 at 4e-3, .130, .133 and .131 at 2e-3.
    Shorter runs want more: with F = 2048 and 97 steps, 3e-3, 6e-3 and 11e-3 leave .31, .28 and .24. The factor of the
    budget stays within 1/4 and 4.
    """
    budget = min(4.0, max(0.25, (1500 / steps) ** 0.5))
    return 4e-3 * (1024 / n_latents) ** 0.5 * budget


def schedule(step: int, steps: int, warmup: float, decay: float) -> float:
    """Factor of the learning rate at a step (0-based): up, flat, down. Pure, so a resume needs one integer."""
    rise, fall = int(warmup * steps), int(decay * steps)
    up = (step + 1) / rise if step < rise else 1.0
    down = (steps - step) / fall if fall and step >= steps - fall else 1.0
    return min(up, down)


def annealed_k(step: int, steps: int, start_k: float, k: float, share: float, shape: str = "linear") -> float:
    """Codes per token at a step (0-based): from `start_k` to k over the first `share` of the steps. Pure.

    `linear` moves by the same number each step, `exponential` by the same factor, so more of the way is spent near k.
    """
    along = min(1.0, step / (share * steps)) if share else 1.0
    return start_k * (k / start_k) ** along if shape == "exponential" else start_k + (k - start_k) * along
