"""A concept from a free prompt, as Concept Steerers take it: no latents are chosen, all that the prompt wakes count."""

import torch

from visae.codes.build import fingerprint
from visae.pipelines import AdaptedPipeline
from visae.sae import Dictionary
from visae.select.prompt_tokens import prompt_tokens
from visae.select.selection import Selection
from visae.sites import Site


@torch.no_grad()
def prompt_direction(pipeline: AdaptedPipeline, sae: Dictionary, site: str | Site, text: str) -> Selection:
    """Per-latent weights of a prompt at a site of a text encoder: `max(0, pre-activation)`, no sparsity rule applied.

    After Kim & Ghadiyaram, "Concept Steerers" (2025): the steering vector is `D^T z` with D the directions and z the
    weights, added to (or, with a negative strength, taken from) the tokens of other prompts.

    Args:
        pipeline: with the text encoder.
        sae: trained at the site.
        site: of the text encoder.
        text: the concept in words, e.g. `"violence, blood"`.

    Returns:
        A selection of the m latents that the prompt wakes, strongest first. `weights` are means over the words of the
        prompt, for a vector that is the same at every place; `evidence["positions"]` `[T, m]` are those of every place
        in the encoder's sequence, the first token and the padding included, which the paper adds place by place.

    Raises:
        ValueError: if the site is none of a text encoder, the dictionary is signed, or the prompt wakes no latent.
    """
    if sae.signed:
        raise ValueError("a direction from a prompt takes the positive pre-activations: this dictionary is signed")
    place = pipeline.site(site).name
    of_prompt = prompt_tokens(pipeline, site, [text])
    words, tokens = of_prompt.content[0], of_prompt.x[0].to(sae.mean.device)
    codes = torch.cat([pre.clamp(min=0) for pre in sae.pre_activations(tokens)]).float()
    codes = (codes if sae.gain is None else codes * sae.gain).cpu()
    weights = codes[words].mean(0)
    order = [int(i) for i in weights.argsort(descending=True, stable=True) if weights[i] > 0]
    if not order:
        raise ValueError(
            f"{text!r} wakes no latent at {pipeline.site(site).name}: give another prompt, site or dictionary"
        )
    chosen = tuple(weights[order].tolist())
    return Selection(
        factor="concept",
        value=text,
        latents=tuple(order),
        weights=chosen,
        thresholds=(0.0,) * len(order),
        signs=(1,) * len(order),
        score="prompt_direction",
        scores=chosen,
        chosen_on={"data": text},
        sae=fingerprint(sae),
        site=place,
        evidence={
            "levels": torch.tensor([torch.nan]),
            "active": torch.ones(1, len(order), dtype=torch.bool),
            "target": weights[order][None],
            "positions": codes[:, order],
        },
    )
