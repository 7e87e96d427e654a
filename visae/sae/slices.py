"""Slices of a dictionary's latents, for training on several processes what does not fit one device.

A part declares `shards = True` in its own class body if it gives the right values and gradients when it holds some of
the latents while other processes hold the rest: per-latent tensors of its own, sums over latents through
`visae.ops.share().latents`, selection by a rule of `visae.ops`. It is not inherited: a subclass may break it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from visae.sae.dictionary import Dictionary
from visae.sae.registry import make_sae


def cannot_shard(sae: Dictionary) -> list[str]:
    """Names of the parts that need all latents at once; empty if the dictionary can be split."""
    parts = [sae.encoder, sae.activation, sae.decoder, sae.scheme, *sae.penalties]
    wrong = [type(part).__name__ for part in parts if not vars(type(part)).get("shards", False)]
    return wrong + ([type(sae.modulation).__name__] if sae.modulation.needs else [])


def per_latent(sae: Dictionary) -> set[str]:
    """Names of the state's tensors that have a row for every latent: those that a wider dictionary has longer."""
    twin = make_sae(sae.kind, sae.d, 2 * sae.n_latents, normaliser=sae.normaliser.name, **sae.options)
    wider = twin.state_dict()
    return {name for name, t in sae.state_dict().items() if t.shape != wider[name].shape}


def slice_of(sae: Dictionary, start: int, stop: int, device: torch.device | str) -> Dictionary:
    """The latents `start` to `stop - 1` on a device; everything else of the dictionary is copied.

    Its `n_latents` stays that of the whole: codes and tensors per latent count from `start`.

    Raises:
        ValueError: if parts of the dictionary need all latents at once.
    """
    if wrong := cannot_shard(sae):
        raise ValueError(
            f"kind {sae.kind!r} cannot be split by latents ({', '.join(wrong)} need all of them at once): train it "
            "with shard_latents=1, or take topk, batch_topk or matryoshka"
        )
    rows = per_latent(sae)
    own = make_sae(sae.kind, sae.d, sae.n_latents, normaliser=sae.normaliser.name, **sae.options)
    for module, key, name, tensor in _tensors(own, sae.state_dict()):
        value = (tensor[start:stop] if name in rows else tensor).detach().to(device, copy=True)
        if key in module._parameters:
            module._parameters[key] = nn.Parameter(value)
        else:
            module._buffers[key] = value
    return own


def _tensors(sae: Dictionary, state: dict[str, Tensor]) -> Iterator[tuple[nn.Module, str, str, Tensor]]:
    """Where each tensor of a state belongs: module, its name there, its name in the state, the tensor."""
    for name, tensor in state.items():
        path, _, key = name.rpartition(".")
        yield sae.get_submodule(path), key, name, tensor
