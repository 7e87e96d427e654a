"""Low-rank adapters (LoRA; Hu et al., 2022) of a denoiser: trained through peft, kept as diffusers keeps them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visae.erasers.base import Unsuitable

FILE = "pytorch_lora_weights.safetensors"
"""Under which name `pipe.load_lora_weights(folder)` looks for them."""


class Adapters:
    """Adapters that stand in a module.

    Attributes:
        layers: name of a linear layer -> peft's layer in its place.
    """

    def __init__(self, layers: Mapping[str, Any]):
        self.layers = dict(layers)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that learn."""
        return [
            p
            for layer in self.layers.values()
            for part in ("lora_A", "lora_B")
            for p in getattr(layer, part).parameters()
        ]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The module as it is without them."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def state(self) -> dict[str, Tensor]:
        """Copies of `name.lora_A.weight [r, in]` and `name.lora_B.weight [out, r]`; their scale is in the latter."""
        found = {}
        for name, layer in self.layers.items():
            (adapter,) = layer.lora_A
            found[f"{name}.lora_A.weight"] = layer.lora_A[adapter].weight.detach().clone()
            found[f"{name}.lora_B.weight"] = layer.lora_B[adapter].weight.detach() * layer.scaling[adapter]
        return found


@contextmanager
def adapted(module: nn.Module, names: Sequence[str], rank: int, seed: int) -> Iterator[Adapters]:
    """Puts adapters, which change nothing yet, before linear layers of a module; on exit the layers are back.

    Args:
        module: the module.
        names: of its linear layers.
        rank: of every adapter; its scale is 2, as in CRISP.
        seed: of its first weights.

    Raises:
        ImportError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("adapters are trained through peft: pip install 'visae[erase]'") from None
    originals = {name: module.get_submodule(name) for name in names}
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=list(names))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, module)
        yield Adapters({name: module.get_submodule(name) for name in names})
    finally:
        for name, layer in originals.items():
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, layer)
        vars(module).pop("peft_config", None)


def fused(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the layers with their adapters worked in, `W + B A` in float32, by the parameters' names.

    Raises:
        Unsuitable: if an adapter has no layer here.
    """
    out = {}
    for name in (key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")):
        try:
            weight = module.get_submodule(name).get_parameter("weight")
        except AttributeError:
            raise Unsuitable(
                f"{type(module).__name__} has no layer {name!r}; the adapters are another model's"
            ) from None
        change = state[f"{name}.lora_B.weight"].float() @ state[f"{name}.lora_A.weight"].float()
        out[f"{name}.weight"] = (weight.detach().float() + change.to(weight.device)).to(weight.dtype)
    return out


def save_adapters(folder: Path, part: str, state: Mapping[str, Tensor]) -> Path:
    """Writes adapters so that `pipe.load_lora_weights(folder)` reads them; whole or not at all.

    Args:
        folder: where, made if it is not there.
        part: name of the denoiser in its pipeline, e.g. `unet`.
        state: as `Adapters.state` gives it.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = folder / f"{FILE}.part"
    tensors = {f"{part}.{key}": value.cpu().contiguous() for key, value in state.items()}
    save_file(tensors, started, metadata={"format": "pt"})
    started.replace(folder / FILE)
    return folder / FILE


def read_adapters(path: Path, part: str) -> dict[str, Tensor]:
    """Adapters of a part from a file of diffusers, or from the folder that has it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds none of this part.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there are no LoRA weights at {file}")
    found = {key.removeprefix(f"{part}."): t for key, t in load_file(file).items() if key.startswith(f"{part}.")}
    if not found:
        raise ValueError(f"{file} holds no LoRA weights of {part}")
    return found
