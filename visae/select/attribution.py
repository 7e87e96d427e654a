"""Which latents make a denoiser draw a concept: the gradient of what sets its predictions apart, times the codes.

With `e(x, p)` the denoiser's output for noisy latents x and a prompt p, and a target prompt t beside a retain prompt r,
at one noise level

    L = mean over elements of (e(x, t) - e(x, r))^2 / 2
    score_i = sum over tokens of z_i dL/dz_i

with z the codes in the run of t: to first order, what L loses when latent i is ablated (Marks et al., "Sparse feature
circuits", 2024; DiffLens selects by such gradients). A latent that fires but that the output does not heed scores 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from visae.clock import noise_scale
from visae.data.sample import Prompt
from visae.emerging import prediction
from visae.first_calls import quiet
from visae.pipelines import AdaptedPipeline
from visae.sae import Codes, Dictionary
from visae.sae.side import at_sigma
from visae.select.collecting import one_branch
from visae.sites import Site
from visae.store.noising import Denoiser, noised
from visae.store.probing import collection
from visae.store.sampling import Collection, Sampling, Slot
from visae.taps import tap


def gradient_attribution(
    pipeline: AdaptedPipeline,
    sae: Dictionary,
    site: str | Site,
    collected: Collection | Sampling,
    target: Sequence[Prompt],
    retain: Sequence[Prompt],
    *,
    batch: int = 4,
    progress: bool = True,
) -> Tensor:
    """Gradient times code of every latent, at every noise level that is collected.

    Noisy latents are those of the target prompts' own images with noise added. Where the retain prompt of a target
    prompt is the same one without the concept, scores tell the concept alone.

    Args:
        pipeline: whose denoiser is asked.
        sae: trained at the site.
        site: of the denoiser.
        collected: the run, and its noise levels; the conditional branch counts.
        target: prompts with the concept; images are made from their seeds.
        retain: the prompt to compare with each; they are taken in turn where there are fewer.
        batch: prompts at a time.
        progress: show a bar.

    Returns:
        `[S, columns]` means over the target prompts, for `select_concept(scores=..., score="gradient_attribution")`
        with statistics of the same run; a column is a latent, or for a signed dictionary a latent with a sign.

    Raises:
        ValueError: if there are no prompts, the site is none of the denoiser, or it cannot be told how the denoiser
            takes its timestep.
    """
    if not target or not retain:
        raise ValueError(f"attribution compares prompts, got {len(target)} target and {len(retain)} retain prompts")
    place = pipeline.site(site)
    asked = one_branch(collected)
    run = asked if isinstance(asked, Collection) else collection(pipeline, place, asked)
    sums = torch.zeros(len(run.slots), sae.n_latents * (2 if sae.signed else 1))
    with tqdm(total=len(target), desc="attribution", unit="prompt", disable=not progress) as bar:
        for start in range(0, len(target), batch):
            mine = target[start : start + batch]
            others = [retain[i % len(retain)] for i in range(start, start + len(mine))]
            one = _Pair(pipeline, sae, place, run, mine, others)
            for s, slot in enumerate(run.slots):
                sums[s] += one.scores(slot)
            bar.update(len(mine))
    return sums / len(target)


class _Pair:
    """Target prompts and as many others, before the same noisy latents."""

    def __init__(
        self,
        pipeline: AdaptedPipeline,
        sae: Dictionary,
        site: Site,
        run: Collection,
        target: Sequence[Prompt],
        retain: Sequence[Prompt],
    ):
        self.pipeline, self.sae, self.site = pipeline, sae, site
        texts, seeds, given = [one.text for one in target], [one.seed for one in target], run.arguments()
        with torch.no_grad(), quiet(pipeline.pipe):
            self.clean: Tensor = pipeline.generate(texts, seeds, **({"output_type": "latent"} | given)).float()
        self.target = Denoiser(pipeline, texts, seeds, given)
        self.retain = Denoiser(pipeline, [one.text for one in retain], seeds, given)
        self.rows = self.target.step.asked[: len(texts)]

    def scores(self, slot: Slot) -> Tensor:
        """Sum over the prompts of gradient times code, `[columns]`."""
        scale = noise_scale(self.pipeline.pipe.scheduler)
        noisy = noised(self.clean, self.target.noise(self.clean, slot.step), slot.sigma, scale)
        with torch.no_grad():
            other = self._prediction(self.retain(noisy, slot.timestep))
        held: list[tuple[Codes, Tensor]] = []
        with torch.enable_grad(), tap(self.pipeline, self.site, rewrite=self._opened(slot.sigma, held)):
            apart = self._prediction(self.target(noisy, slot.timestep)) - other
            (codes, values) = held[0]
            (gradient,) = torch.autograd.grad(apart.square().flatten(1).mean(1).sum() / 2, values)
        return _by_column(codes, (values * gradient).detach())

    def _opened(self, sigma: float, held: list[tuple[Codes, Tensor]]) -> Callable[[Tensor], Tensor]:
        """A rewrite that changes no value, but lets gradients come down to the codes."""
        prefix = len(self.site.prefix)

        def rewrite(tokens: Tensor) -> Tensor:
            x = tokens[self.rows, prefix:].detach().to(self.sae.mean)
            rows = x.flatten(0, 1)
            with torch.no_grad():
                codes = self.sae.encode(rows, **at_sigma(self.sae, len(rows), sigma))
            values = codes.values.clone().requires_grad_(True)
            held.append((codes, values))
            decoded = self.sae.decode(codes.with_values(values))
            out = tokens.detach().clone()
            out[self.rows, prefix:] = (x + (decoded - decoded.detach()).view_as(x)).to(out)
            return out

        return rewrite

    def _prediction(self, output: Any) -> Tensor:
        """The conditional rows of a denoiser's output in float32, without variances that it may have learned."""
        return prediction(output[0][self.rows].float(), self.clean)


def _by_column(codes: Codes, scores: Tensor) -> Tensor:
    """Sums `[columns]` on the CPU of one number for every code."""
    fires = codes.indices >= 0
    column = codes.indices[fires]
    if codes.signed:
        column = torch.where(codes.values[fires] < 0, column + codes.n_latents, column)
    out = torch.zeros(codes.n_latents * (2 if codes.signed else 1), device=scores.device)
    return out.index_add_(0, column, scores[fires].float()).cpu()
