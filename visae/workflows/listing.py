"""What there is: models that can be loaded, the sites of one, kinds of dictionary."""

from visae import model as floor
from visae import sae
from visae.check import check_geometry
from visae.pipelines import AdaptedPipeline
from visae.sae import ABOUT, About, kind_options
from visae.sites import Site, rows
from visae.text_table import text_table


def models(pattern: str = "*", *, family: str | None = None) -> list[str]:
    """List model names that `load_model` takes.

    Example:
        visae models "timm:*dinov2*"

    Args:
        pattern: shell pattern, e.g. `timm:vit_*` or `*dinov2*`.
        family: one family only, e.g. `open_clip`, `timm`, `transformers`, `visae`.
    """
    return floor.models(pattern, family=family)


class KindTable(dict[str, About]):
    """Kinds of dictionary and what they are; prints as a table."""

    def __str__(self) -> str:
        blocks = [
            f"{name}  ({about.paper}), {about.status.partition(':')[0]}\n    {about.formula}"
            + (f"\n    Mind: {about.experimental}" if about.experimental else "")
            + f"\n    options: {', '.join(f'{k}={v!r}' for k, v in kind_options(name).items())}"
            for name, about in self.items()
        ]
        head = (
            f"a: pre-activations, z: codes, F: width, n: tokens in a batch\nnormalisers: {', '.join(sae.normalisers())}"
        )
        return "\n\n".join([head, *blocks, f"baselines (visae.sae.fit_baseline): {', '.join(sae.baselines())}"])


def kinds() -> KindTable:
    """Print the kinds of dictionary: name, paper, status (stable or experimental, and why), formula, options.

    Example:
        visae kinds
    """
    foreign = About("no formula given", "another package", "registered without a description")
    return KindTable({name: ABOUT.get(name, foreign) for name in sae.kinds()})


class SiteTable(list[Site]):
    """Sites of one model; prints as a table."""

    def __init__(self, sites: list[Site], model_id: str, verdicts: dict[str, str] | None = None):
        super().__init__(sites)
        self.model_id = model_id
        self.verdicts = verdicts or {}

    def __str__(self) -> str:
        head = ["name", "path", "kind", "native", "shape", "tokens", *(["checked"] if self.verdicts else [])]
        lines = []
        for row in rows({site.name: site for site in self}):
            lines.append([*row.values(), *([self.verdicts.get(row["name"], "")] if self.verdicts else [])])
        return f"{self.model_id}: {len(self)} sites\n\n" + text_table(head, lines)


def sites(
    model: str = "visae:tiny-clip",
    *,
    pretrained: bool = True,
    image_size: tuple[int, int] | None = None,
    check: bool = False,
) -> SiteTable:
    """Print the sites of a model or pipeline: name, module path, kind, native layout, shape and tokens.

    Example:
        visae sites timm:vit_small_patch14_reg4_dinov2 --no-pretrained

    Args:
        model: model name, see `visae models`.
        pretrained: load trained weights; `--no-pretrained` builds the model with random ones, without a network.
        image_size: height and width of the input in pixels; the model's own if not given.
        check: paint a square under some tokens and see that those tokens, and no others, answer.
    """
    adapted = floor.load_model(model, pretrained=pretrained, image_size=image_size)
    found = list(adapted.sites().values())
    verdicts = {site.name: _verdict(adapted, site) for site in found} if check else None
    return SiteTable(found, adapted.id, verdicts)


def _verdict(adapted: "floor.AdaptedModel | AdaptedPipeline", site: Site) -> str:
    if site.grid is None:
        return "no grid"
    checked = check_geometry(adapted, site)
    if checked.silent:
        return "nothing changes here"
    return "ok" if checked.ok else f"{checked.share:.0%} of the squares found"
