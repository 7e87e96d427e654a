"""Which dictionaries of a suite share one encoder product."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visae.ops import Eager, Stack
from visae.sae import Dictionary, Rows
from visae.sae.encoders import Linear

if TYPE_CHECKING:
    from visae.train.suite import Member
    from visae.train.trainer import Trainer

CELLS = 2**28
"""At most so many pre-activations of one product: 512 MiB in bfloat16."""


def stackable(sae: Dictionary) -> bool:
    """Whether the encoder's product is all that the kernels need of it while training.

    It is for dictionaries without code of their own, with a linear encoder that sees normalised tokens alone, and an
    activation that goes by a rule, over all latents.
    """
    plain = type(sae) is Dictionary and type(sae.encoder) is Linear and not sae.needs_to_encode
    return plain and not sae.activation.masks and sae.train().activation.rule() is not None


class Cohort:
    """Members that are stepped one after the other, and their common product where they have one.

    Args:
        members: the members.
        stack: of their encoders, in the same order; None for members that multiply by themselves.
    """

    def __init__(self, members: Sequence["Member"], stack: Stack | None):
        self.members, self.stack = list(members), stack

    def prepare(self, trainers: Sequence["Trainer"], batches: Sequence[Tensor | Rows]) -> None:
        """Computes pre-activations for those of the members that these trainers train, a batch for each."""
        if self.stack is None or not all(isinstance(trainer.ops, Eager) for trainer in trainers):
            return
        saes = [trainer.sae for trainer in trainers]
        places = {id(member.sae): i for i, member in enumerate(self.members)}
        self.stack.prepare(
            [places[id(sae)] for sae in saes],
            [sae.normalise(x) - sae.decoder.bias for sae, x in zip(saes, batches, strict=True)],
            [sae.b_enc for sae in saes],
            [trainer.ops for trainer in trainers],  # type: ignore[misc]
        )

    def release(self) -> None:
        """Gives every member memory of its own again."""
        if self.stack is not None:
            self.stack.release()


def cohorts(members: Sequence["Member"], device: torch.device) -> list[Cohort]:
    """Deals members into cohorts of one site, one shape and one kind of kernels; puts them onto the device.

    Parameters move into the stacks, so this comes before anything that remembers where they lie.
    """
    alike: dict[tuple[Any, ...], list[Member]] = defaultdict(list)
    alone = []
    for member in members:
        member.sae.to(device)
        if stackable(member.sae) and member.config.ops != "reference":
            key = (member.site, member.sae.W_enc.shape, member.sae.mean.dtype, member.config.ops)
            alike[*key, member.config.precision].append(member)
        else:
            alone.append(Cohort([member], None))
    found, rooms = [], dict[torch.dtype, Tensor]()
    for same in alike.values():
        most = max(1, CELLS // (same[0].config.batch * same[0].sae.n_latents))
        for start in range(0, len(same), most):
            part = same[start : start + most]
            found.append(Cohort(part, Stack([member.sae.encoder.weight for member in part], rooms)))  # type: ignore
    return found + alone
