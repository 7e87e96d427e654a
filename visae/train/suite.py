"""`Suite`: many dictionaries from one stream of tokens."""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from visae.sae import Dictionary, Rows
from visae.train import resuming
from visae.train.config import TrainConfig
from visae.train.coupling import couple, part, together
from visae.train.feed import LoaderEnded
from visae.train.processes import Processes
from visae.train.shared import Branch, LeftOver, Shared, read_first
from visae.train.stacking import Cohort, cohorts
from visae.train.trainer import Trainer, TrainResult

SAME = ("steps", "tokens", "batch", "stat_rows", "device")
"""Settings that the members of a suite have in common, because they read the same batches at the same steps."""


@dataclass(frozen=True)
class Member:
    """One dictionary of a suite.

    Attributes:
        name: of its folder.
        sae: the dictionary; changed in place.
        config: its settings.
        site: which of the suite's streams it reads.
        after: finished dictionaries; it reads what they leave of each token (see `visae.sae.Ensemble`, boost).
    """

    name: str
    sae: Dictionary
    config: TrainConfig
    site: str = ""
    after: tuple[Dictionary, ...] = ()


@dataclass(frozen=True)
class SuiteResult:
    """How the runs of a suite ended.

    Attributes:
        results: by member.
        failed: why members were given up, by member.
    """

    results: dict[str, TrainResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Runner:
    """A member at work."""

    member: Member
    trainer: Trainer
    branch: Branch
    run: Generator[None, None, TrainResult]

    def advance(self) -> TrainResult | None:
        """One piece of the run; its result after the last one."""
        try:
            with self.trainer.randomness:
                next(self.run)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        return None


class Suite:
    """Trains many dictionaries in lockstep: each batch is read once, and equal shapes share one encoder product.

    Every member is driven by an ordinary `Trainer` in a folder of its own, with its own random numbers, and ends with
    the same bits as if it had been trained alone on the same batches (to rounding, where a device multiplies a batch of
    matrices in another order than one matrix).

    Args:
        members: the dictionaries; names differ, and settings may, except those in `SAME`.
        out: folder of the suite, one folder per member in it; None writes nothing.
        progress: whether to show a bar.

    Raises:
        ValueError: for no members, two of one name, or settings in `SAME` that differ.
    """

    def __init__(self, members: Sequence[Member], out: Path | str | None = None, *, progress: bool = True):
        _check(members)
        self.members, self.out, self.progress = list(members), Path(out) if out is not None else None, progress

    def fit(
        self,
        loaders: Iterable[Any] | Mapping[str, Iterable[Any]],
        validation: Iterable[Tensor | Rows] | Mapping[str, Iterable[Tensor | Rows]] | None = None,
        *,
        resume: bool = False,
    ) -> SuiteResult:
        """Trains all members until the budget is spent.

        A member whose loss is no longer finite is given up; the others go on.

        Args:
            loaders: see `Trainer.fit`; by site where there are several.
            validation: batches that can be iterated again; by site where there are several.
            resume: each member goes on from its own newest checkpoint in `out`; those that are further than others wait
                for them, and members that are new begin.

        Raises:
            ValueError: see `Trainer.fit`; for sites without a loader; on several processes.
            FloatingPointError: if every member had to be given up.
        """
        streams = by_site(loaders, self.members, "loader")
        held_out = {} if validation is None else by_site(validation, self.members, "validation batches")
        result = SuiteResult()
        with ExitStack() as afterwards:
            coupled = couple(self.members)
            afterwards.callback(part, coupled)
            groups = cohorts(self.members, self._device())
            for one in groups:
                afterwards.callback(one.release)
            runners, shared = self._runners(streams, held_out, resume)
            for runner in runners.values():
                afterwards.callback(runner.run.close)
            if resume:
                for peers in coupled:
                    together([runners[member.name].trainer for member in peers])
            self._begin(list(runners.values()), shared, resume)
            self._drive(groups, runners, result)
        if result.failed and not result.results:
            raise FloatingPointError(f"every member failed; the first: {next(iter(result.failed.values()))}")
        return result

    def _device(self) -> torch.device:
        config = self.members[0].config
        processes = Processes(config.device)
        if processes.size > 1:
            raise ValueError(
                f"a suite trains on one process, {processes.size} were started: start one, or train its members one by "
                "one on several"
            )
        return processes.device if config.device == "auto" else torch.device(config.device)

    def _runners(
        self, streams: Mapping[str, Iterable[Any]], held_out: Mapping[str, Iterable[Tensor | Rows]], resume: bool
    ) -> tuple[dict[str, _Runner], dict[str, Shared]]:
        """Every member with its trainer and its share in its site's stream."""
        runners, shared = dict[str, _Runner](), dict[str, Shared]()
        for member in self.members:
            out = None if self.out is None else self.out / member.name
            trainer = Trainer(member.sae, member.config, out, progress=False)
            if member.site not in shared:
                needs = [name for other in self.members if other.site == member.site for name in other.sae.needs]
                shared[member.site] = Shared(trainer.feed(streams[member.site], needs))
            branch, batches = Branch(shared[member.site], member.after), held_out.get(member.site)
            left = batches if batches is None else LeftOver(batches, member.after)
            run = trainer.run(branch, left, resume=resume)
            runners[member.name] = _Runner(member, trainer, branch, run)
        return runners, shared

    def _begin(self, runners: Sequence[_Runner], shared: Mapping[str, Shared], resume: bool) -> None:
        """Begins or restores every member, and moves the streams to where the first of them goes on."""
        fresh: dict[Shared, bool] = {}
        for runner in runners:
            if resuming.newest(runner.trainer, resume) is None:
                one, covariance = shared[runner.member.site], runner.member.sae.normaliser.covariance
                fresh[one] = fresh.get(one, False) or covariance
        read_first(fresh, self.members[0].config.stat_rows)
        for runner in runners:
            runner.advance()
        for one in shared.values():
            one.settle()

    def _drive(self, groups: Sequence[Cohort], runners: Mapping[str, _Runner], result: SuiteResult) -> None:
        """Rounds of one step each, until every member has finished or failed."""
        from tqdm.auto import tqdm

        waiting = dict(runners)
        position, steps = min(one.trainer.step for one in runners.values()), next(iter(runners.values())).trainer.steps
        with tqdm(
            total=steps, initial=position, unit="step", desc="suite", disable=not self.progress, dynamic_ncols=True
        ) as bar:
            while waiting:
                ended = []
                for one in groups:
                    named = [waiting[member.name] for member in one.members if member.name in waiting]
                    ended += self._step(one, [runner for runner in named if runner.trainer.step == position], result)
                if ended:
                    raise ended[0]
                for name in [name for name in waiting if name in result.results or name in result.failed]:
                    waiting.pop(name).branch.close()
                bar.update(position < steps)
                bar.set_postfix(_spread([one.trainer.history for one in waiting.values()]), refresh=False)
                position += 1

    @staticmethod
    def _step(own: Cohort, due: Sequence[_Runner], result: SuiteResult) -> list[LoaderEnded]:
        """One step, or the end, of a cohort's members that are due; returns what they say of a stream that ended."""
        ended = []
        if due and due[0].trainer.step < due[0].trainer.steps:
            with suppress(LoaderEnded):  # each member says so itself, after a checkpoint
                own.prepare([runner.trainer for runner in due], [runner.branch.coming() for runner in due])
        for runner in due:
            try:
                finished = runner.advance()
            except FloatingPointError as error:
                result.failed[runner.member.name] = str(error)
            except LoaderEnded as error:
                ended.append(error)
            else:
                if finished is not None:
                    result.results[runner.member.name] = finished
        return ended


T = TypeVar("T")


def by_site(given: T | Mapping[str, T], members: Sequence[Member], noun: str) -> Mapping[str, T]:
    """What is given for each site of the members; one thing alone is for all.

    Raises:
        ValueError: if a site is missing.
    """
    sites = sorted({member.site for member in members})
    if not isinstance(given, Mapping):
        if len(sites) > 1:
            raise ValueError(f"the members read {len(sites)} sites ({', '.join(sites)}): give a {noun} for each")
        return {sites[0]: given}
    if missing := [site for site in sites if site not in given]:
        raise ValueError(f"no {noun} for site {missing[0]!r}; there is one for {', '.join(map(repr, given))}")
    return given


def _spread(histories: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Smallest and largest FVU of the members' last lines, for the bar."""
    found = [lines[-1]["fvu"] for lines in histories if lines and lines[-1].get("fvu") is not None]
    return {"fvu": f"{min(found):.3g} to {max(found):.3g}"} if found else {}


def _check(members: Sequence[Member]) -> None:
    if not members:
        raise ValueError("a suite needs at least one member, got none")
    names = [member.name for member in members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"members of a suite need names of their own; several are called {', '.join(twice)}")
    first = members[0]
    for member in members[1:]:
        for key in SAME:
            ours, theirs = getattr(first.config, key), getattr(member.config, key)
            if ours != theirs:
                raise ValueError(
                    f"the members of a suite see the same batches, so their {key} must agree: {ours!r} of "
                    f"{first.name}, {theirs!r} of {member.name}"
                )
