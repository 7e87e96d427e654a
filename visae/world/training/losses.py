"""The losses of the recipes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world.factors import FACTORS
from visae.world.training.facts import FACT_FACTORS, N_SLOTS

RIM = {"shape": 0.1, "colour": 0.03}
"""Weights of silence at the rim of objects. More, and tokens point better still, but single latents no longer tell
colours; on style, which patches at the rim show as well as others, it only costs."""
DENSE_FACTORS = ("shape", "style", "colour")
N_PIXELS = 64
"""Pixels of a patch."""


def contrastive(scores: Tensor, true: Tensor) -> Tensor:
    """Contrastive loss in which a row may have several right answers.

    Every true pair competes with the false ones only, so that a caption that leaves factors out is not pushed away from
    the images it describes by accident.

    Args:
        scores: `[n, m]` scaled similarities, images by captions.
        true: `[n, m]` bool, which captions are true of which images.

    Returns:
        Mean over both directions, in nats.
    """
    return 0.5 * (_one_way(scores, true) + _one_way(scores.T, true.T))


def _one_way(scores: Tensor, true: Tensor) -> Tensor:
    rivals = torch.logsumexp(scores.masked_fill(true, float("-inf")), 1, keepdim=True)
    losses = functional.softplus(rivals - scores) * true
    return (losses.sum(1) / true.sum(1).clamp(min=1)).mean()


class DenseHeads(nn.Module):
    """Linear readers of patch tokens, for training only.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({factor: nn.Linear(width, len(FACTORS[factor])) for factor in DENSE_FACTORS})
        self.early_norm = nn.LayerNorm(width)
        self.silhouette = nn.Linear(width, N_PIXELS)

    def outline_loss(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy of which pixels of its patch each early token sees an object on.

        Shape is the arrangement of silhouettes whatever fills them; told so early, later blocks find it much sooner.

        Args:
            tokens: `[B, P, width]` patch tokens of an early block.
            masks: `[B, P, 64]` 0 or 1.
        """
        return functional.binary_cross_entropy_with_logits(self.silhouette(self.early_norm(tokens)).float(), masks)

    def forward(self, tokens: Tensor, objects: Tensor, facts: Tensor, centred: Tensor | None = None) -> Tensor:
        """Cross-entropy of shape, style and colour on patches that show an object.

        Args:
            tokens: `[B, P, width]` patch tokens.
            objects: `[B, P]` object number per patch, 0 none, 255 not asked.
            facts: `[B, 26]` from `scene_facts`.
            centred: `[B, P]` bool, whether the patch's centre shows an object. If given, patches at the rim of objects,
                whose centre shows none, are asked to name no shape and no colour: answers should be spread evenly.
        """
        tokens = self.norm(tokens)
        things = facts[:, :-2].reshape(len(facts), N_SLOTS, len(FACT_FACTORS)).long()
        shown = (objects.long() - 1).clamp(0, N_SLOTS - 1)
        on = (objects > 0) & (objects < 255)
        total = tokens.new_zeros(())
        for factor, head in self.heads.items():
            answer = torch.gather(things[:, :, FACT_FACTORS.index(factor)], 1, shown)
            asked = on
            if centred is not None and factor in RIM:
                asked = on & centred
                silent = head(tokens[~centred & (objects > 0)]).float()
                total = total - RIM[factor] * silent.log_softmax(-1).mean()
            total = total + functional.cross_entropy(head(tokens[asked]).float(), answer[asked])
        return total
