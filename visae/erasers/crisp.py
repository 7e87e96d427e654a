"""Erasure that lasts: adapters trained so that a concept's latents no longer fire; afterwards nothing is hooked.

CRISP (Ashuach et al., "Persistent concept unlearning via sparse autoencoders", 2025) takes facts from language models;
here it works on a denoiser. With h the tokens at the dictionary's site, o the denoiser's output, and h* and o* the same
without adapters,

    (1 - beta) mean of relu(p_j + alpha |mean p|) over target tokens and latents j of the concept that fire at h*
    + beta |h - h*|^2 / mean |h*|^2 on retain prompts + beta gamma |o - o*|^2 / mean |o*|^2 on retain prompts

is made small; p are the dictionary's pre-activations, so that what fires is pushed below 0 and somewhat further. The
paper's retain and coherence terms are not divided by anything; that is done here because sites differ in scale.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from visae.erasers.adapters import Adapters, adapted, fused, read_adapters, save_adapters
from visae.erasers.base import METHODS, Erasure, Method, Part, Request, Tools, Unsuitable
from visae.erasers.calls import Caught, catch, predicted
from visae.erasers.tools import concept_latents
from visae.erasers.weights import learning, swapped
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary, Rows
from visae.select.selection import Selection
from visae.sites import Site
from visae.taps import tap

ATTENTION = re.compile(r"(.*\.)?(to_q|to_k|to_v|to_out(\.0)?|add_q_proj|add_k_proj|add_v_proj|to_add_out)")
"""Linear layers that get adapters: those of attention, as is the custom for diffusers."""


@dataclass(frozen=True)
class Suppression:
    """A concept's latents at a site.

    Attributes:
        pipeline: the pipeline.
        site: where the dictionary reads.
        sae: the dictionary.
        selection: the latents.
    """

    pipeline: AdaptedPipeline
    site: Site
    sae: Dictionary
    selection: Selection

    @property
    def module(self) -> nn.Module:
        """The denoiser."""
        return getattr(self.pipeline.pipe, self.pipeline.denoiser.name)

    def read(self, caught: Caught) -> tuple[Tensor, Tensor]:
        """Tokens `[n, d]` of the prompts' branch at the site, and the denoiser's output for them."""
        with tap(self.pipeline, self.site) as taken:
            out = predicted(self.module, caught.asked)
        return taken[self.site.name][:, len(self.site.prefix) :].flatten(0, 1).float(), out.float()

    def fires(self, tokens: Tensor, sigma: float) -> Tensor:
        """Whether each latent fires at each token, `[n, m]`."""
        codes = self.sae.encode(self._rows(tokens, sigma))
        chosen = zip(self.selection.latents, self.selection.signs, strict=True)
        return torch.stack([sign * codes.latent(latent) > 0 for latent, sign in chosen], 1)

    def loss(self, tokens: Tensor, on: Tensor, sigma: float, alpha: float) -> Tensor:
        """Mean of what is left of the latents where they fire without adapters; 0 where none does.

        Args:
            tokens: `[n, d]`, differentiable.
            on: `[n, m]` bool.
            sigma: noise level.
            alpha: how far beyond silence, in units of the mean pre-activation.
        """
        signs, parts = torch.tensor(self.selection.signs).to(tokens), []
        for pre in self.sae.pre_activations(self._rows(tokens, sigma)):
            wanted = pre[:, list(self.selection.latents)] * signs.to(pre)
            parts.append((wanted + alpha * pre.mean(1, keepdim=True).abs()).relu())
        left = torch.cat(parts)[on]
        return left.mean() if left.numel() else torch.zeros((), device=tokens.device)

    def _rows(self, tokens: Tensor, sigma: float) -> Tensor | Rows:
        tokens = tokens.to(self.sae.mean.device)
        if "sigma" not in self.sae.needs_to_encode:
            return tokens
        return Rows(tokens, {"sigma": tokens.new_full((len(tokens),), sigma)})


@dataclass(frozen=True)
class Crisp(Method):
    """Adapters by CRISP, see the module; needs a site, its dictionary and statistics (or a selection), and peft.

    With `Tools.folder` the adapters are written there as LoRA weights of diffusers, and what the erasure uses has been
    read back from that file. Inside the context they are worked into the weights: nothing is hooked.

    Attributes:
        top_m: latents, where `Tools.select` brings none: those that fire more often on target than on retain prompts.
        least: how many times larger their mean on target prompts must be.
        rank: of the adapters.
        alpha: see the module.
        beta: see the module.
        gamma: see the module.
        iterations: steps of AdamW, on one target and one retain image each.
        lr: learning rate. The paper's, 1e-5, is for language models of billions of weights.
    """

    top_m: int = 10
    least: float = 3.0
    rank: int = 4
    alpha: float = 5.0
    beta: float = 0.99
    gamma: float = 0.01
    iterations: int = 300
    lr: float = 1e-3

    @property
    def needs(self) -> frozenset[Part]:
        """See `Method.needs`."""
        return frozenset({"denoiser"})

    def build(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Erasure:
        """See `Method.build`.

        `told` has the losses, where the weights were written, and the shares of target tokens at which any of the
        latents fires before and after (`fired`), measured with the finished weights on images that were not trained on.
        """
        target, retain = request.prompts("target"), request.prompts("retain")
        concept = self._concept(pipeline, request, tools)
        names = layers_before(concept, catch(pipeline, target[:1], [0], **request.given))
        if not (before := fired(concept, request, target)):
            raise Unsuitable(
                f"none of the {len(concept.selection.latents)} latents of {request.concept!r} fires on target prompts "
                f"at {concept.site.name}, so nothing can be learnt of them; take more latents, another score or site"
            )
        state, losses = self._train(concept, names, request, target, retain)
        part, file = pipeline.denoiser.name, None
        if tools.folder is not None:
            file = save_adapters(Path(tools.folder), part, state)
            state = read_adapters(file, part)
        weights, module = fused(concept.module, state), concept.module
        told: dict[str, Any] = {"losses": losses, "file": None if file is None else str(file), "layers": names}
        with swapped(module, weights):
            told["fired"] = {"before": before, "after": fired(concept, request, target)}
        return Erasure(lambda: swapped(module, weights), self.settings, told)

    def _concept(self, pipeline: AdaptedPipeline, request: Request, tools: Tools) -> Suppression:
        if tools.site.partition(".")[0] != pipeline.denoiser.name:
            raise Unsuitable(
                f"CRISP acts at a site of {pipeline.denoiser.name}, got {tools.site!r}; give one with Tools(site=...)"
            )
        site = pipeline.site(tools.site)
        sae, selection = tools.sae(site.name), self._select(site.name, request, tools)
        if sae.d != site.d or max(selection.latents, default=-1) >= sae.n_latents:
            raise Unsuitable(
                f"site {site.name} has tokens of length {site.d}; got a dictionary for {sae.d} with {sae.n_latents} "
                f"latents, and a selection of {list(selection.latents)[:8]}"
            )
        if not selection.latents:
            raise Unsuitable(f"the selection of {request.concept!r} at {site.name} is empty")
        return Suppression(pipeline, site, sae, selection)

    def _select(self, site: str, request: Request, tools: Tools) -> Selection:
        if tools.select is not None:
            return tools.select(site, request)
        target, retain = (
            tools.statistics(site, request.prompts(which), request.seed) for which in ("target", "retain")
        )
        return concept_latents(
            target, retain, score="frequency_ratio", top_m=self.top_m, per_level=False, concept=request.concept,
            least=self.least,
        )  # fmt: skip

    def _train(
        self, concept: Suppression, names: Sequence[str], request: Request, target: Sequence[str], retain: Sequence[str]
    ) -> tuple[dict[str, Tensor], list[float]]:
        """The adapters' weights, and the loss at every step."""
        pipeline, given, losses = concept.pipeline, dict(request.given), list[float]()
        draw = random.Random(request.seed)
        count = catch(pipeline, [target[0]], [0], **given).step.count
        with learning(concept.module, []), adapted(concept.module, names, self.rank, request.seed) as adapters:
            learn = adapters.parameters
            optimiser = torch.optim.AdamW(learn, lr=self.lr, amsgrad=True)
            for _ in tqdm(range(self.iterations), desc="training adapters", unit="step"):
                index = draw.randrange(count)
                with adapters.off():
                    calls = [
                        catch(pipeline, [draw.choice(prompts)], [draw.randrange(2**31)], index, **given)
                        for prompts in (target, retain)
                    ]
                with torch.enable_grad():
                    loss = self._loss(concept, adapters, *calls)
                gradients = torch.autograd.grad(loss, learn, allow_unused=True)
                for parameter, gradient in zip(learn, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                losses.append(float(loss.detach()))
            return adapters.state(), losses

    def _loss(self, concept: Suppression, adapters: Adapters, target: Caught, retain: Caught) -> Tensor:
        with adapters.off(), torch.no_grad():
            on = concept.fires(concept.read(target)[0], target.step.sigma)
            tokens, out = concept.read(retain)
        unlearn = concept.loss(concept.read(target)[0], on, target.step.sigma, self.alpha)
        new_tokens, new_out = concept.read(retain)
        kept = apart(new_tokens, tokens) + self.gamma * apart(new_out, out)
        return (1 - self.beta) * unlearn + self.beta * kept


METHODS.register("crisp")(Crisp())


def apart(new: Tensor, old: Tensor) -> Tensor:
    """Mean squared difference, in units of the mean square of the old."""
    return (new - old).square().mean() / old.square().mean().clamp(min=1e-12)


@torch.no_grad()
def fired(concept: Suppression, request: Request, prompts: Sequence[str], images: int = 4) -> float:
    """Share of the tokens of some images, halfway through their runs, at which any latent fires."""
    found = []
    for number in range(images):
        prompt, seed = prompts[number % len(prompts)], [request.seed + 2**31 + number]
        count = catch(concept.pipeline, [prompt], seed, **request.given).step.count
        caught = catch(concept.pipeline, [prompt], seed, count // 2, **request.given)
        found.append(concept.fires(concept.read(caught)[0], caught.step.sigma).any(1).float().mean())
    return float(torch.stack(found).mean())


def layers_before(concept: Suppression, caught: Caught) -> list[str]:
    """Names of the linear layers of attention that run before the site's tokens are there.

    Raises:
        Unsuitable: if there are none.
    """
    ran: list[str] = []
    wanted = {
        name: layer
        for name, layer in concept.module.named_modules()
        if isinstance(layer, nn.Linear) and ATTENTION.fullmatch(name)
    }
    place = concept.pipeline.module.get_submodule(concept.site.path)
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))  # type: ignore[misc]
        for name, layer in wanted.items()
    ]
    handles.append(place.register_forward_hook(lambda *_: ran.append("")))
    try:
        with torch.no_grad():
            predicted(concept.module, caught.asked)
    finally:
        for handle in handles:
            handle.remove()
    before = list(dict.fromkeys(ran[: ran.index("")]))
    if not before:
        raise Unsuitable(
            f"no layer of attention runs before {concept.site.name}, so no adapter could change its tokens"
        )
    return before
