"""Pictures: heat over images, figures with colour bars, and the report page. From data to pictures, nothing else."""

from visae.show.figures import density_figure, grid_figure, heat_figure, label_figure, latent_figure, strongest_figure
from visae.show.overlay import colour, overlay
from visae.show.report import Concept, ReportInputs, build_report

__all__ = [
    "Concept",
    "ReportInputs",
    "build_report",
    "colour",
    "density_figure",
    "grid_figure",
    "heat_figure",
    "label_figure",
    "latent_figure",
    "overlay",
    "strongest_figure",
]
