"""Members of a suite that look at one another while they train."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from visae.sae.penalties import Mutual
from visae.train import checkpoint

if TYPE_CHECKING:
    from visae.train.suite import Member
    from visae.train.trainer import Trainer


def couple(members: Sequence["Member"]) -> list[list["Member"]]:
    """Gives members with `TrainConfig.mfr` that differ in nothing but the seed the penalty that draws them together.

    Returns:
        The groups of peers.

    Raises:
        ValueError: for a member without a peer.
    """
    alike: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        if member.config.mfr:
            sae, config = member.sae, replace(member.config, seed=0)
            form = (member.site, sae.kind, sae.n_latents, sae.normaliser.name, sae.options, config)
            alike[repr((form, [id(one) for one in member.after]))].append(member)
    for peers in alike.values():
        if len(peers) < 2:
            raise ValueError(
                f"{peers[0].name} has mfr={peers[0].config.mfr} but no peer: give the suite another seed of it"
            )
    for peers in alike.values():
        for member in peers:
            others = [one.sae.decoder for one in peers if one is not member]
            member.sae.penalties.append(Mutual(member.config.mfr, others))
    return list(alike.values())


def part(groups: Sequence[Sequence["Member"]]) -> None:
    """Takes the penalties away again."""
    for member in (member for peers in groups for member in peers):
        del member.sae.penalties[-1]


def together(trainers: Sequence["Trainer"]) -> None:
    """Drops checkpoints that some peers have and others lack, so that all go on from one step.

    A peer that goes on from a later step than another would be seen by it as it was not at that step.
    """
    folders = [trainer.folder for trainer in trainers]
    found = [[] if folder is None else checkpoint.listing(folder) for folder in folders]
    shared = set.intersection(*({path.name for path in paths} for paths in found))
    last = max(shared, default="")
    for path in (path for paths in found for path in paths):
        if path.name > last:
            shutil.rmtree(path)
