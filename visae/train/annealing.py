"""What moves in a dictionary while it trains, by settings of the run: its number of codes, its penalties."""

from collections.abc import Iterable
from typing import cast

from visae.sae import Dictionary
from visae.sae.penalties import Penalty
from visae.train.config import TrainConfig, annealed_k
from visae.train.coupling import Mutual


def prepare(sae: Dictionary, config: TrainConfig) -> None:
    """Hands the settings of a run to the parts of a dictionary.

    Raises:
        ValueError: for settings that the dictionary has no use for.
    """
    penalties = list(cast(Iterable[Penalty], sae.penalties))
    if config.start_k is not None:
        if not sae.activation.anneals:
            raise ValueError(f"kind {sae.kind!r} has no number of codes to anneal: leave start_k out")
        sae.activation.anneal(config.start_k)  # refuses what no dictionary of this width can have
    if config.sparsity_warmup is not None:
        rising = [penalty for penalty in penalties if penalty.warmup is not None]
        if not rising:
            raise ValueError(f"kind {sae.kind!r} has no penalty that rises: leave sparsity_warmup out")
        for penalty in rising:
            penalty.warmup = config.sparsity_warmup
    if config.mfr and not any(penalty.name == Mutual.name for penalty in penalties):
        raise ValueError("mfr draws dictionaries towards their peers: train several in a Suite, of different seeds")


def anneal(sae: Dictionary, config: TrainConfig, step: int, steps: int) -> None:
    """Sets the number of codes of a step (0-based)."""
    if config.start_k is not None:
        k = sae.activation.train_k
        sae.activation.anneal(annealed_k(step, steps, config.start_k, k, config.anneal, config.anneal_shape))
