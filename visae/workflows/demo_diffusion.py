"""The second journey, offline: a small text-to-image pipeline, a dictionary over its steps, strips, a page, numbers."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visae.codes.over_time import watch
from visae.json_files import write_json
from visae.show import Concept
from visae.show.sections import Picture, Section
from visae.sites import Site
from visae.store.estimate import duration
from visae.text_table import text_table
from visae.workflows.demo import Demo
from visae.workflows.dictionaries import RECIPE as DICTIONARY
from visae.workflows.dictionaries import SITES
from visae.workflows.drawn import Drawn
from visae.workflows.preserved import Preserved, preserved
from visae.workflows.report import look, save_selections, write_page
from visae.workflows.run import Run, pick_device
from visae.workflows.study import Study
from visae.workflows.timeline import draw_course, when
from visae.workflows.train import train

SITE = SITES[0]
OTHER_SITES = ("unet.down_blocks.1.attentions.0",)
"""The best site of those that were tried, and what stands beside it unless others are asked for."""
STRIPS = {"shape": 3, "style": 2}
"""Factor -> how many of its values get a strip."""
RECIPE: dict[str, Any] = {
    "model": "visae:tiny-sd",
    **DICTIONARY,
    "steps": 20,
    "guidance": 4.0,
    "image_batch": 16,
}
"""What the demo trains; everything else is `visae train`'s default."""
BESIDE, LEAST = 6, 12
"""Times fewer prompts for other sites, held-out ones among them, and how few, so that some are held out."""
LOSSES = 8
"""Prompts on which the denoiser's loss is measured."""


@dataclass(frozen=True)
class Place:
    """What a dictionary at one site gives.

    Attributes:
        site: its name.
        metrics: of the run, on held-out prompts.
        kept: pictures through its reconstructions.
    """

    site: str
    metrics: dict[str, Any]
    kept: Preserved

    @property
    def row(self) -> list[Any]:
        """Of the table of sites."""
        numbers, m = self.kept.numbers, self.metrics
        agreed = [numbers.agreement_plain, numbers.agreement_reconstructed]
        return [self.site, m["fvu_mean"], m["fvu_worst_bin"], m["l0"], m["dead"], *agreed]


HEAD = ["site", "FVU, mean over sigma", "worst bin", "L0", "dead", "judge agrees: plain", "reconstructed"]


def demo_diffusion(
    out: Path = Path("visae-demo-diffusion"),
    *,
    prompts: int = 420,
    test: int = 60,
    beside: tuple[str, ...] = OTHER_SITES,
    seed: int = 0,
) -> Demo:
    """See what a sparse autoencoder finds in a text-to-image model while it draws, offline.

    Trains a dictionary on the steps of a small Stable Diffusion that ships with visae, measures each noise level, draws
    the same pictures through its reconstructions, shows when and where the latents of shapes and styles fire while the
    image emerges, and writes a page to look at.

    Example:
        visae demo diffusion my-demo

    Args:
        out: folder for the page and the numbers.
        prompts: images that are made for training.
        test: held-out prompts that are drawn with and without reconstructions.
        beside: other sites to compare with, on a sixth of the prompts; about two minutes each. `visae sites
            visae:tiny-sd` names them all.
        seed: of the dictionary.
    """
    begun, out = time.perf_counter(), Path(out)
    places = []
    for site in dict.fromkeys((SITE, *beside)):
        own = site == SITE
        folder, share = (out, 1) if own else (out / "sites" / site, BESIDE)
        data = f"world:prompts?split=train&n={max(min(prompts, LEAST), prompts // share)}&objects=1"
        run = train(folder, site=site, data=data, seed=seed, **RECIPE)
        places.append(Place(site, run.metrics, preserved(run.run.folder, n=max(1, test // share), n_losses=LOSSES)))
    opened = Run.open(out)
    found = look(opened, None, None, None, "auto", factors=None, localise=None, image_batch=16, workers=2)
    save_selections(opened, found)
    sections = [over_noise(places[0]), same_pictures(places), over_time(opened, found, out)]
    page = write_page(opened, found, out / "index.html", sections=sections)
    summary = summarise(places[0], time.perf_counter() - begun)
    write_json(out / "summary.json", summary)
    return Demo(out, summary, tell(places, summary, page))


def summarise(place: Place, seconds: float) -> dict[str, float]:
    """The numbers of the demo, shares as fractions, all on held-out prompts."""
    numbers, metrics = place.kept.numbers, place.metrics
    assert numbers.agreement_plain is not None
    assert numbers.agreement_reconstructed is not None
    return {
        "fvu_mean": metrics["fvu_mean"],
        "fvu_worst_bin": metrics["fvu_worst_bin"],
        "l0": metrics["l0"],
        "dead_share": metrics["dead"],
        "agreement_plain": numbers.agreement_plain,
        "agreement_reconstructed": numbers.agreement_reconstructed,
        "seconds": seconds,
    }


def over_noise(place: Place) -> Section:
    """The table of noise levels."""
    rows = [[s, m["fvu"], m["l0"], m["dead"], m["dense"], m["n"]] for s, m in place.metrics["by_sigma"].items()]
    return Section(
        "Each noise level",
        ["Tokens of held-out prompts by the noise level of their step, from the finished image (0) to pure noise."],
        ["sigma", "FVU", "L0", "dead", "dense", "tokens"],
        rows,
    )


def same_pictures(places: Sequence[Place]) -> Section:
    """Pictures of the same seeds, and what each site gives."""
    text = [
        "The same prompts and seeds, drawn as they are and with the site's activations replaced by reconstructions.",
        "The judge is a classifier of the built-in world; it agrees where it sees what the prompt asks for.",
    ]
    if len(places) > 1:
        text.append(f"Other sites were trained and measured on {BESIDE} times fewer prompts.")
    picture = Picture.of(places[0].kept.file, f"above as they are, below through {places[0].site}")
    return Section("The same pictures through reconstructions", text, HEAD, [p.row for p in places], [picture])


def over_time(run: Run, found: Study, out: Path) -> Section:
    """Strips and moving pictures for the best told shapes and styles."""
    pipeline = run.pipeline(pick_device("auto"))
    sae, known = run.sae(pipeline).to(pipeline.device), run.card.sampling
    drawn, pictures, rows = found.test_data, [], []
    assert isinstance(drawn, Drawn)
    for concept in chosen(found.concepts):
        name, latent = concept.selection.name, concept.selection.latents[0]
        number = found.test.factors[concept.selection.factor].index(concept.selection.value)
        item = int(found.test.shows(concept.selection.factor)[number].nonzero()[0][0])
        prompt = drawn.prompts[item]
        (course,) = watch(
            pipeline, sae, Site.from_dict(run.card.site), [prompt.text], [prompt.seed],
            steps=known["steps"], guidance=known["guidance"],
        )  # fmt: skip
        strip, moving = draw_course(course, [latent], out / "strips" / name.replace("=", "-"))
        pictures += [Picture.of(strip, f"{name}, latent {latent}"), Picture.of(moving, f"{name}, moving", 420)]
        share = when([course], [latent])[latent]
        peak = max(range(len(share)), key=share.__getitem__)
        rows.append([name, latent, concept.measured.f1, f"{course.sigmas[peak]:.2g}", share[peak]])
    text = ["Held-out prompts; the image is what the denoiser expects in the end. One scale for each strip."]
    head = ["label", "latent", "F1 held out", "strongest at sigma", "share of its sum there"]
    return Section("Latents over time", text, head, rows, pictures)


def chosen(concepts: Sequence[Concept]) -> list[Concept]:
    """The best told values of the factors that get strips."""
    best = sorted(concepts, key=lambda c: -c.measured.f1)
    return [c for f, n in STRIPS.items() for c in [b for b in best if b.selection.factor == f][:n]]


def tell(places: Sequence[Place], summary: dict[str, float], page: Path) -> str:
    """The summary in the terminal."""
    levels = [[s, m["fvu"], m["l0"], m["dead"]] for s, m in places[0].metrics["by_sigma"].items()]
    lost = summary["agreement_plain"] - summary["agreement_reconstructed"]
    lines = [
        text_table(["sigma", "FVU", "L0", "dead"], levels),
        "",
        text_table(HEAD, [place.row for place in places]),
        "",
        f"{places[0].site}, held-out prompts:",
        f"  FVU averaged over sigma {summary['fvu_mean']:.3f} (wanted: 0.15), worst bin {summary['fvu_worst_bin']:.3f} "
        "(wanted: 0.3)",
        f"  dead latents {summary['dead_share']:.1%} (wanted: under 5 %)",
        f"  judge agrees with the prompt: {summary['agreement_plain']:.1%} plain, "
        f"{summary['agreement_reconstructed']:.1%} through reconstructions ({100 * lost:+.1f} points lost; wanted: 3)",
        f"  {duration(summary['seconds'])}",
        "",
        f"Open {page}",
    ]
    return "\n".join(lines)
