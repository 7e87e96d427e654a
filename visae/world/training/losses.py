"""The losses of the recipes."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from visae.world.factors import FACTORS
from visae.world.training.facts import FACT_FACTORS, N_SLOTS

DENSE_FACTORS = ("shape", "style", "colour")


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
        self.objectness = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, objects: Tensor, facts: Tensor) -> Tensor:
        """Whether each patch shows an object, and cross-entropy of shape, style and colour where it does.

        Args:
            tokens: `[B, P, width]` patch tokens.
            objects: `[B, P]` object number per patch, 0 none, 255 not asked.
            facts: `[B, 26]` from `scene_facts`.
        """
        tokens = self.norm(tokens)
        things = facts[:, :-2].reshape(len(facts), N_SLOTS, len(FACT_FACTORS)).long()
        shown = (objects.long() - 1).clamp(0, N_SLOTS - 1)
        on, asked = (objects > 0) & (objects < 255), objects < 255
        present = self.objectness(tokens[asked]).float()[:, 0]
        total = functional.binary_cross_entropy_with_logits(present, on[asked].float())
        # The classes are asked of object patches alone: averaged over the background, shape would hardly count.
        for factor, head in self.heads.items():
            answer = torch.gather(things[:, :, FACT_FACTORS.index(factor)], 1, shown)
            total = total + functional.cross_entropy(head(tokens[on]).float(), answer[on])
        return total
