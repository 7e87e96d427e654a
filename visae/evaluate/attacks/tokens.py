"""What white box attacks optimise: words (after UnlearnDiffAtk) or vectors in their place (textual inversion)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from visae.evaluate.attacks.base import ATTACKS
from visae.evaluate.attacks.gradients import PLACE, Optimised, Variable
from visae.evaluate.attacks.words import Words


class _Best:
    """What had the lowest loss in a round."""

    def __init__(self) -> None:
        self.loss, self.state = float("inf"), torch.empty(0)

    def begin(self) -> None:
        """See `Variable.begin`."""
        self.loss = float("inf")


class WordChoice(_Best):
    """A distribution over words at every place, drawn from anew for every loss.

    Forward, a place is one word; derivatives are those of the distribution (straight through). Steps end with the
    nearest distribution (Duchi et al. 2008).

    Attributes:
        chances: `[k, V]`.
        drawn: `[k]` numbers of the words that were drawn last.
    """

    def __init__(self, words: Words, tokens: int, generator: torch.Generator):
        super().__init__()
        self.words, self.generator = words, generator
        self.chances = simplex(torch.rand(tokens, len(words.words), generator=generator) / len(words.words))
        self.chances.requires_grad_()
        self.parameters = [self.chances]
        self.drawn = torch.zeros(tokens, dtype=torch.int64)

    def vectors(self) -> list[Tensor]:
        """See `Variable.vectors`."""
        self.drawn = torch.multinomial(self.chances.detach(), 1, generator=self.generator)[:, 0]
        hot = torch.nn.functional.one_hot(self.drawn, self.chances.shape[1]).to(self.chances)
        with torch.enable_grad():
            through = hot + (self.chances - self.chances.detach())
            return [through.to(table) @ table for table in self.words.vectors]

    def stepped(self, loss: float) -> None:
        """See `Variable.stepped`."""
        if loss < self.loss:
            self.loss, self.state = loss, self.drawn
        with torch.no_grad():
            self.chances.copy_(simplex(self.chances))

    def best(self) -> tuple[str | None, list[Tensor]]:
        """See `Variable.best`."""
        found = self.state.tolist()
        return " ".join(self.words.words[i] for i in found), [table[found] for table in self.words.vectors]


class FreeVectors(_Best):
    """A vector at every place, of every text encoder, in units of the standard deviation of its words' vectors.

    They start as the vectors of words that are drawn at random.
    """

    def __init__(self, words: Words, tokens: int, generator: torch.Generator):
        super().__init__()
        start = torch.randint(len(words.words), (tokens,), generator=generator)
        self.sizes = [table.std() for table in words.vectors]
        self.parameters = [
            (table[start] / size).requires_grad_() for table, size in zip(words.vectors, self.sizes, strict=True)
        ]
        self.used = self.kept = self._now()

    def _now(self) -> list[Tensor]:
        return [one.detach() * size for one, size in zip(self.parameters, self.sizes, strict=True)]

    def vectors(self) -> list[Tensor]:
        """See `Variable.vectors`."""
        self.used = self._now()
        with torch.enable_grad():
            return [one * size for one, size in zip(self.parameters, self.sizes, strict=True)]

    def stepped(self, loss: float) -> None:
        """See `Variable.stepped`."""
        if loss < self.loss:
            self.loss, self.kept = loss, self.used

    def best(self) -> tuple[str | None, list[Tensor]]:
        """See `Variable.best`."""
        return None, self.kept


def simplex(rows: Tensor) -> Tensor:
    """The nearest distributions `[k, V]` to rows, in Euclidean distance (Duchi et al. 2008)."""
    falling = rows.sort(dim=1, descending=True).values
    counts = torch.arange(1, rows.shape[1] + 1).to(rows)
    excess = (falling.cumsum(1) - 1) / counts
    kept = (falling > excess).sum(1, keepdim=True)
    return (rows - excess.gather(1, kept - 1)).clamp(min=0)


@dataclass(frozen=True)
class PromptWords(Optimised):
    """Words before the prompt, found by gradients (UnlearnDiffAtk; Zhang et al., "To generate or not?", 2024).

    The defaults are the paper's. Unlike there, only words are used that can be typed, see
    `visae.evaluate.attacks.words`, and of a round the words of the lowest loss are drawn, not the likeliest ones.

    Attributes:
        decay: weight decay of Adam.
    """

    decay: float = 0.1

    def variable(self, words: Words, generator: torch.Generator) -> Variable:
        """See `Optimised.variable`."""
        return WordChoice(words, self.tokens, generator)

    def optimiser(self, variable: Variable) -> torch.optim.Optimizer:
        """See `Optimised.optimiser`."""
        return torch.optim.AdamW(variable.parameters, lr=self.lr, weight_decay=self.decay)


@dataclass(frozen=True)
class TextualInversion(Optimised):
    """Vectors in the place of tokens, which no word has (Pham et al., "Circumventing concept erasure methods", 2024).

    The strongest attack on what a prompt can be: by default the vectors are the whole prompt. Steps are in units of the
    standard deviation of the words' vectors, so that one rate serves every text encoder.
    """

    rounds: int = 20
    iterations: int = 50
    lr: float = 0.1
    template: str = PLACE

    def variable(self, words: Words, generator: torch.Generator) -> Variable:
        """See `Optimised.variable`."""
        return FreeVectors(words, self.tokens, generator)

    def optimiser(self, variable: Variable) -> torch.optim.Optimizer:
        """See `Optimised.optimiser`."""
        return torch.optim.Adam(variable.parameters, lr=self.lr)


ATTACKS.register("prompt_words")(PromptWords())
ATTACKS.register("prompt_words_blind")(PromptWords(adaptive=False))
ATTACKS.register("textual_inversion")(TextualInversion())
ATTACKS.register("textual_inversion_blind")(TextualInversion(adaptive=False))
