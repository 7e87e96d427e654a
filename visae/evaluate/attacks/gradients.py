"""White box attacks: tokens of a prompt are optimised until the denoiser draws the concept again.

Both minimise the denoiser's error on noised latents of the plain pipeline's own picture of the prompt:

    L = mean | o(x_t, t, adversarial prompt) - target |^2

The target is what the denoiser learnt to say (noise, v or flow; UnlearnDiffAtk), or what the plain denoiser says of the
same latents and the prompt as it is (as P4D does; 0 is then reached where the erasure is undone). A round is one
timestep of the run and one draw of noise; after each, the best that was found is drawn from the prompt's seed.

Adaptive, L and its gradient are those under the erasure: through text encoders, denoiser, dictionary and edit they are
exact (a dictionary's silent latents have the derivative 0), and so they are through whatever else an erasure hooks in
with torch. Hard masks and gates decide as always, and pass the derivatives of `visae.edit.surrogate` on. One call of
the denoiser is looked at: what an erasure remembers from one step to the next, or does to both branches of guidance, is
not in L, but in the pictures that count. Not adaptive, L is that of the plain pipeline.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae.data.sample import Prompt
from visae.edit.surrogate import surrogate
from visae.evaluate.attacks.base import Arena, Attack, Box, Record
from visae.evaluate.attacks.calls import Noised, asked
from visae.evaluate.attacks.words import Words
from visae.evaluate.preserved import clean_latents

PLACE, PROMPT = "{adv}", "{prompt}"


class Variable(Protocol):
    """What is optimised.

    Attributes:
        parameters: its tensors.
    """

    parameters: list[Tensor]

    def vectors(self) -> list[Tensor]:
        """Of every text encoder, `[k, d]` with gradients."""

    def stepped(self, loss: float) -> None:
        """A step was made, from where the loss was this."""

    def begin(self) -> None:
        """A new round begins: its losses are comparable with one another only."""

    def best(self) -> tuple[str | None, list[Tensor]]:
        """The best of the round: words in the place of the tokens where it is words, and its vectors."""


@dataclass(frozen=True)
class Optimised(Attack):
    """Base of the white box attacks.

    Attributes:
        tokens: how many are optimised.
        rounds: timesteps, each with noise of its own.
        iterations: gradient steps in each round.
        lr: learning rate of Adam.
        template: the adversarial prompt: `{adv}` are the tokens, `{prompt}` is the prompt.
        goal: the target, `noise` as the denoiser learnt it, or `plain` as the plain pipeline says it.
        adaptive: whether gradients are those under the erasure.
        seed: of timesteps, noise, and where tokens start.
    """

    box: ClassVar[Box] = "white"
    tokens: int = 5
    rounds: int = 50
    iterations: int = 40
    lr: float = 0.01
    template: str = f"{PLACE} {PROMPT}"
    goal: Literal["noise", "plain"] = "noise"
    adaptive: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if PLACE not in self.template or min(self.tokens, self.rounds, self.iterations) < 1:
            raise ValueError(
                f"an attack needs {PLACE} in its template and at least one token, round and iteration; got "
                f"{self.template!r}, {self.tokens}, {self.rounds} and {self.iterations}"
            )

    @property
    def sees_erasure(self) -> bool:
        """See `Attack.sees_erasure`."""
        return self.adaptive

    @property
    def budget(self) -> dict[str, int]:
        """See `Attack.budget`."""
        return {"gradients": self.rounds * self.iterations, "pictures": self.rounds, "tokens": self.tokens}

    def within(self, pictures: int, gradients: int) -> Self:
        """See `Attack.within`."""
        return replace(self, rounds=pictures, iterations=gradients)

    @abstractmethod
    def variable(self, words: Words, generator: torch.Generator) -> Variable:
        """What is optimised, where it starts."""

    @abstractmethod
    def optimiser(self, variable: Variable) -> torch.optim.Optimizer:
        """How."""

    def attack(self, arena: Arena, prompts: Sequence[Prompt], record: Record) -> None:
        """See `Attack.attack`."""
        words = Words(arena.pipeline)
        for number, prompt in enumerate(tqdm(prompts, desc=type(self).__name__, unit="prompt", leave=False)):
            if not record.done(number):
                self._one(arena, words, number, prompt, record)

    def text(self, prompt: str, tokens: str) -> str:
        """The adversarial prompt with some tokens."""
        return self.template.replace(PLACE, tokens).replace(PROMPT, prompt)

    def _one(self, arena: Arena, words: Words, number: int, prompt: Prompt, record: Record) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + prompt.seed)
        mark = words.unused([prompt.text, self.template])
        marked = self.text(prompt.text, " ".join([mark] * self.tokens))
        variable = self.variable(words, generator)
        optimiser = self.optimiser(variable)
        clean = clean_latents(arena.pipeline, [prompt.text], [prompt.seed], arena.given).float()
        for _ in range(self.rounds):
            at, wanted = self._round(arena, prompt, clean, generator)
            variable.begin()
            for _ in range(self.iterations):
                loss, gradients = self.gradients(arena, words, (mark, marked), variable, at, wanted)
                for parameter, gradient in zip(variable.parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                variable.stepped(loss)
                record.spent["gradients"] += 1
            found, vectors = variable.best()
            self._draw(arena, words, (mark, marked), (found, vectors), (number, prompt), record)
            if record.done(number):
                return

    def _round(self, arena: Arena, prompt: Prompt, clean: Tensor, generator: torch.Generator) -> tuple[Noised, Any]:
        """Latents with noise, and what is to be said of them where that is what the plain pipeline says."""
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        at = Noised(clean, noise, float(torch.rand((), generator=generator)))
        if self.goal == "noise":
            return at, None
        with torch.no_grad():
            return at, asked(arena.pipeline, [prompt.text], arena.given, at).output

    def gradients(
        self,
        arena: Arena,
        words: Words,
        marked: tuple[str, str],
        variable: Variable,
        at: Noised,
        wanted: Tensor | None = None,
    ) -> tuple[float, Sequence[Tensor]]:
        """L, see the module, and its derivatives with respect to what is optimised.

        Args:
            arena: what is attacked.
            words: of its pipeline.
            marked: the word that marks the places of tokens, and the adversarial prompt with it.
            variable: what is optimised.
            at: latents with noise.
            wanted: the target where it is not what the denoiser learnt to say.

        Raises:
            ValueError: if no gradient leads to the tokens.
        """
        with ExitStack() as inside:
            if self.adaptive:
                inside.enter_context(arena.erasure())
                inside.enter_context(surrogate())
            with words.embedded(marked[0], variable.vectors()):
                said = asked(arena.pipeline, [marked[1]] * len(at.clean), arena.given, at)
            with torch.enable_grad():
                loss = (said.output - (said.target if wanted is None else wanted)).square().mean()
            if not loss.requires_grad:
                raise ValueError(
                    f"no gradient leads from the denoiser of {type(arena.pipeline.pipe).__name__} to the prompt's "
                    "tokens: something on the way cuts it; attack with adaptive=False, which is labelled so"
                )
            # Inside, because an erasure that exchanges weights takes away what the derivatives are made of.
            return float(loss.detach()), torch.autograd.grad(loss, variable.parameters, materialize_grads=True)

    def _draw(
        self,
        arena: Arena,
        words: Words,
        marked: tuple[str, str],
        found: tuple[str | None, list[Tensor]],
        of: tuple[int, Prompt],
        record: Record,
    ) -> None:
        """Draws and records the best of a round: as a text where it is words, else with its vectors."""
        (mark, text), (said, vectors), (number, prompt) = marked, found, of
        if said is not None:
            text = self.text(prompt.text, said)
        with arena.erasure(), words.embedded(mark, vectors) if said is None else nullcontext():
            pictures = arena.draw([Prompt(text, prompt.seed, prompt.key, prompt.labels, prompt.group)])
        record.add([number], pictures, [text if said is not None else text.replace(mark, "<learnt>")])
