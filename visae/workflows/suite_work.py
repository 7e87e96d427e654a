"""The work of a suite: what is to be trained, training it, putting ensembles together, measuring."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from visae.data.sample import ImageData, PromptData
from visae.evaluate import Evaluation
from visae.model import AdaptedModel
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary, Ensemble, load_sae, make_sae, save_sae
from visae.store import StoreMeta
from visae.store.errors import human
from visae.store.estimate import duration
from visae.train import Member, Suite, TrainConfig, Trainer
from visae.train.stacking import CELLS
from visae.workflows.estimate import TrainingEstimate, training_estimate
from visae.workflows.extract import announce
from visae.workflows.held_out import judged, wanted
from visae.workflows.options import Schemes, kind_choices
from visae.workflows.prepare import begin, describe, finished, plain
from visae.workflows.run import Run
from visae.workflows.site_rows import SiteRows
from visae.workflows.suite_report import Entry, Row, compare
from visae.workflows.sweep import Setting


@dataclass(frozen=True)
class Job:
    """A member of the suite and where it lies.

    Attributes:
        name: of its folder.
        setting: what it is.
        run: its folder.
        config: its settings.
        meta: what makes the rows of its site.
        after: dictionaries on whose leavings it is trained.
    """

    name: str
    setting: Setting
    run: Run
    config: TrainConfig
    meta: StoreMeta
    after: tuple[Dictionary, ...] = ()

    def sae(self) -> Dictionary:
        """The dictionary, empty."""
        one, d = self.setting, self.meta.d
        return make_sae(one.kind, d, one.width(d), normaliser=one.normaliser, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """All options of the kind, of the types that it wants."""
        return kind_choices(self.setting.kind, self.setting.k or 0, self.setting.options)

    @property
    def schemes(self) -> dict[str, Any]:
        """How it is trained, as settings of `TrainConfig`."""
        return {key: getattr(self.config, key) for key in Schemes().settings()}

    def check(self) -> None:
        """Refuses what its dictionary cannot be, and schemes that it has no use for.

        Raises:
            ValueError: with its name, where schemes are the reason.
        """
        sae = self.sae()
        try:
            Trainer(sae, replace(self.config, mfr=0.0), progress=False)  # alone it has no peers
        except ValueError as error:
            raise ValueError(
                f"{self.name}: {error}. In a sweep, schemes for some only stand in their case, as in "
                "cases: [{}, {kind: relu_l1, schemes: {resample_every: 500}}]"
            ) from error

    @property
    def finished(self) -> bool:
        """Whether its dictionary lies there already."""
        return finished(self.run, self.meta, self.config)


class Work:
    """Everything the steps of a suite need.

    Args:
        adapted: the model, or a pipeline.
        rows: of its sites.
        common: options that all members share, for their folders.
        out: folder of the suite.
        order: seed of the order of the rows.
        schemes: how training departs from the plain run, where a setting has no other.
        held_out: images or prompts to measure on, and to look at while training, where schemes do.
    """

    def __init__(
        self,
        adapted: AdaptedModel | AdaptedPipeline,
        rows: SiteRows,
        common: dict[str, Any],
        out: Path,
        *,
        order: int,
        schemes: Schemes,
        held_out: ImageData | PromptData,
    ):
        self.adapted, self.rows, self.common, self.out = adapted, rows, common, out
        self.order, self.schemes, self.held_out = order, schemes, held_out

    def plan(self, settings: Sequence[Setting], configs: Mapping[str, TrainConfig]) -> list[Job]:
        """A folder with its options for each setting.

        Args:
            settings: what is to be trained.
            configs: how, by site.

        Raises:
            ValueError: if a folder holds a run with other options, each named; for two settings of one name, a
                dictionary that cannot be, or schemes that it cannot have.
        """
        jobs: dict[str, Job] = {}
        for setting in settings:
            meta = self.rows.metas[setting.site]
            name = setting.name(meta.d)
            if name in jobs:
                raise ValueError(f"two settings of the sweep come to the same dictionary, {name}: name one of them")
            own = {"lr": setting.lr, "seed": setting.seed, "mfr": setting.mfr, **setting.schemes}
            config = replace(configs[setting.site], **own)
            jobs[name] = Job(name, setting, Run(self.out / name, {}), config, meta)
        for job in jobs.values():
            job.check()  # before anything runs or is written
        return [replace(job, run=self._begin(job.name, job.setting, job.meta)) for job in jobs.values()]

    def _begin(self, name: str, setting: Setting, meta: StoreMeta, **more: Any) -> Run:
        schemes = asdict(self.schemes) | setting.schemes
        told = asdict(setting) | {"latents": setting.width(meta.d), "schemes": schemes} | more
        return begin(self.out / name, plain(self.common | told))

    def train(self, jobs: Sequence[Job], stages: int = 1) -> dict[str, str]:
        """Trains what is not there yet; returns why members failed, by name."""
        todo = _with_peers(jobs)
        announce(estimate(todo, len(jobs)) + f"; then {stages - 1} more such stages of boosting" * (stages > 1))
        if not todo:
            return {}
        failed: dict[str, str] = {}
        for together in _by_budget(todo):
            failed |= self._fit(together)
        return failed

    def _fit(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Trains jobs of one budget in lockstep and saves them; returns why members failed, by name."""
        sites = list(dict.fromkeys(job.setting.site for job in jobs))
        members = [Member(job.name, job.sae(), job.config, job.setting.site, job.after) for job in jobs]
        loaders = self.rows.loaders(jobs[0].config.batch, self.order, sites)
        looks = self.rows.first(self.held_out, sites) if jobs[0].config.validate_every else None
        result = Suite(members, self.out).fit(loaders, looks, resume=True)
        for job, member in zip(jobs, members, strict=True):
            if job.name in result.results:
                source = self.rows.sources[job.setting.site]
                save_sae(
                    member.sae, job.run.folder, describe(self.adapted, source, job.config, result.results[job.name])
                )
        return result.failed

    def entry(self, job: Job) -> Entry:
        """A finished dictionary, to be measured."""
        sae = load_sae(job.run.folder, model=self.adapted, device=job.config.device)
        return Entry(job.name, job.setting, sae, job.run.folder)

    def bags(self, jobs: Sequence[Job]) -> list[Entry]:
        """The mean of all seeds of each setting that has several."""
        found = []
        for peers in _by_setting(jobs):
            if len(peers) > 1:
                bag = Ensemble("bag", [self.entry(job).sae for job in peers])
                found.append(self._keep(bag, peers[0], f"bag{len(peers)}", f"bag of {len(peers)}"))
        return found

    def boosts(self, jobs: Sequence[Job], stages: int) -> list[Entry]:
        """So many dictionaries one after another, the first being the first seed of each setting."""
        chains = [[(job := peers[0], self.entry(job).sae)] for peers in _by_setting(jobs)]
        for stage in range(1, stages):
            coming = []
            for chain in chains:
                first, after = chain[0][0], tuple(sae for _, sae in chain)
                setting = replace(first.setting, seed=first.setting.seed + stage, mfr=0.0)
                name = f"{first.name}-boost{stages}/stage-{stage}"
                config = replace(first.config, seed=setting.seed, mfr=0.0)
                run = self._begin(name, setting, first.meta, stage=stage)
                coming.append(Job(name, setting, run, config, first.meta, after))
            failed = self.train(coming)
            chains = [
                [*chain, (job, self.entry(job).sae)]
                for chain, job in zip(chains, coming, strict=True)
                if job.name not in failed
            ]
        return [
            self._keep(Ensemble("boost", [s for _, s in chain]), chain[0][0], f"boost{stages}", f"boost of {stages}")
            for chain in chains
        ]

    def _keep(self, ensemble: Ensemble, first: Job, suffix: str, label: str) -> Entry:
        """Saves an ensemble in a folder beside those of its members."""
        name = f"{first.name}-{suffix}"
        self._begin(name, first.setting, first.meta, ensemble=label)
        save_sae(ensemble, self.out / name, first.run.card.updated(metrics={}))
        return Entry(name, first.setting, cast(Dictionary, ensemble), self.out / name, label)

    def measure(self, entries: Sequence[Entry], data: ImageData | PromptData) -> tuple[list[Row], int, str]:
        """Measures every dictionary in one pass over the held-out images, and writes it into the cards.

        Args:
            entries: the dictionaries.
            data: images or prompts that were trained on.

        Returns:
            Rows of the comparison, tokens measured at a site, name of the held-out images or prompts.
        """
        held_out = self.held_out
        evaluations = {entry.name: Evaluation(entry.sae, scale=self.rows.scale) for entry in entries}
        for parts in self.rows.held_out(held_out):
            for entry in entries:
                if entry.setting.site in parts:
                    evaluations[entry.name].add(parts[entry.setting.site])
        measured = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
        for entry in entries:
            told = plain(measured[entry.name].to_dict()) | {"data": held_out.name, "held_out": held_out is not data}
            save_sae(entry.sae, entry.folder, judged(Run(entry.folder, {}).card, told, entry.folder, wanted(entry.sae)))
        return compare(entries, measured), next(iter(measured.values())).n, held_out.name


def _by_setting(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that differ in nothing but the seed, together."""
    groups: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[repr(job.setting.without_seed())].append(job)
    return list(groups.values())


def _by_budget(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that see as many rows, together; sites that bring other numbers of tokens are trained by themselves.

    So are those that look at held-out rows: thresholds would be set on them for all.
    """
    groups: dict[Any, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.config.tokens, job.config.stat_rows, job.config.validate_every is None].append(job)
    return list(groups.values())


def _with_peers(jobs: Sequence[Job]) -> list[Job]:
    """What is to be trained; peers that are drawn together are trained together or not at all."""
    due = set()
    for peers in _by_setting(jobs):
        missing = [job.name for job in peers if not job.finished]
        due |= {job.name for job in peers} if missing and peers[0].config.mfr else set(missing)
    return [job for job in jobs if job.name in due]


def check_ensembles(jobs: Sequence[Job]) -> None:
    """Refuses settings whose codes do not add up, before anything runs.

    Raises:
        ValueError: see `Ensemble`.
    """
    for job in jobs:
        Ensemble("bag", [job.sae()])


def estimate(todo: Sequence[Job], members: int) -> str:
    """What training will cost, in words; time from a few steps of every kind and width."""
    if not todo:
        return f"suite: all {members} dictionaries are there already"
    costs: dict[Any, TrainingEstimate] = {}
    memory, seconds, cells, most = 0, 0.0, 0, max(job.config.tokens or 0 for job in todo)
    for job in todo:
        one, d, config = job.setting, job.meta.d, job.config
        form, rows = (one.kind, d, one.width(d)), config.tokens or 0
        key = *form, rows, repr(one.schemes)
        if key not in costs:
            costs[key] = training_estimate(*form, job.options, rows, config.batch, config.device, job.schemes)
        cells += config.batch * one.width(d)
        memory += costs[key].memory - 2 * config.batch * one.width(d)
        seconds += costs[key].seconds
    memory += 2 * min(cells, CELLS)  # pre-activations, of one product at a time
    steps, shapes = max(cost.steps for cost in costs.values()), {key[:3] for key in costs}
    checkpoints = sum(job.config.keep * 12 * 2 * job.meta.d * job.setting.width(job.meta.d) for job in todo)
    return (
        f"suite: {len(todo)} of {members} dictionaries to train, {len(shapes)} shapes, at "
        f"{len({job.setting.site for job in todo})} sites: {steps:,} steps on {most:,} rows; "
        f"{human(memory)} of memory, {human(checkpoints)} on disk for checkpoints, about {duration(seconds)}"
    )
