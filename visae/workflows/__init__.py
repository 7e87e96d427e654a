"""The jobs a user has, one file each; every one is a command of the same name, and a function for notebooks."""

from visae.workflows.bench_erase import bench_erase
from visae.workflows.blocks import blocks
from visae.workflows.demo import demo
from visae.workflows.demo_diffusion import demo_diffusion
from visae.workflows.demo_erase import demo_erase
from visae.workflows.erase import erase
from visae.workflows.estimate import estimate
from visae.workflows.extract import extract
from visae.workflows.heatmap import heatmap
from visae.workflows.layer_groups import layer_groups
from visae.workflows.listing import kinds, models, sites
from visae.workflows.options import Schemes
from visae.workflows.preserved import preserved
from visae.workflows.report import report
from visae.workflows.run import Run
from visae.workflows.specialise import specialise
from visae.workflows.suite import suite
from visae.workflows.timeline import timeline
from visae.workflows.timesteps import timesteps
from visae.workflows.train import train

__all__ = [
    "Run", "Schemes", "bench_erase", "blocks", "demo", "demo_diffusion", "demo_erase", "erase", "estimate", "extract",
    "heatmap", "kinds", "layer_groups",
    "models", "preserved", "report", "sites", "specialise", "suite", "timeline", "timesteps", "train",
]  # fmt: skip
