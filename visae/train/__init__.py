"""Training: any stream of tokens in, a dictionary out; checkpoints that resume bit for bit."""

from visae.train.boost import boost
from visae.train.callbacks import Callback
from visae.train.config import FREE, TrainConfig, annealed_k, default_lr, schedule
from visae.train.feed import Feed, LoaderEnded
from visae.train.planted import Planted, PlantedConfig, absorption, recovery
from visae.train.processes import Processes, ProcessFailed
from visae.train.record import Recorder, read_metrics
from visae.train.resuming import rows_done, rows_per_step
from visae.train.shared import split_columns
from visae.train.specialise import specialise
from visae.train.suite import Member, Suite, SuiteResult
from visae.train.trainer import Trainer, TrainResult
from visae.train.validate import validate

__all__ = [
    "FREE", "Callback", "Feed", "LoaderEnded", "Member", "Planted", "PlantedConfig", "ProcessFailed", "Processes",
    "Recorder", "Suite", "SuiteResult", "TrainConfig", "TrainResult", "Trainer", "absorption", "annealed_k", "boost",
    "default_lr", "read_metrics", "recovery", "rows_done", "rows_per_step", "schedule", "specialise",
    "split_columns", "validate",
]  # fmt: skip
