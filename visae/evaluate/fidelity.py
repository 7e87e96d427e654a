"""Whether a pipeline still draws what it should of COCO's captions: FID by clean-fid, CLIP score by open_clip.

The prompts are `load_prompts("coco-prompts?root=...")`. What is compared with, and the model, stand in the entry
`coco-prompts`: a FID says little without the resizing it was taken with (Parmar et al. 2022), nor a CLIP score without
its model.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from visae.evaluate.rates import Rate, Tally, rate
from visae.evaluate.real_sets import need_file, need_package, settings
from visae.text_table import text_table

NAME = "coco-prompts"
SOURCE = "https://cocodataset.org/#download"


class Scorer(Protocol):
    """Compares pictures with texts.

    Attributes:
        name: of the model and its weights.
    """

    name: str

    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosine `[n]` of picture i and text i."""
        ...


class FolderDistance(Protocol):
    """Compares pictures with those of a folder.

    Attributes:
        name: of the distance, with its version.
    """

    name: str

    def __call__(self, pictures: Sequence[Image.Image], real: Path) -> float:
        """The distance."""
        ...


class OpenClip:
    """Cosines of a model of open_clip.

    Args:
        model: its name, e.g. `ViT-B-32`.
        weights: their tag, e.g. `openai`, or a file.
        device: where it computes.
        batch: pairs at a time.

    Attributes:
        name: both names.
    """

    def __init__(self, model: str, weights: str, device: str = "cpu", batch: int = 32):
        import open_clip

        self.name = f"CLIP {model}, {weights}"
        self._device, self._batch = device, batch
        found = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        self._network: Any = found[0].eval()
        self._preprocess: Any = found[2]
        self._tokenizer = open_clip.get_tokenizer(model)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Cosine `[n]` of picture i and text i."""
        found = []
        for start in range(0, len(pictures), self._batch):
            part = slice(start, start + self._batch)
            pixels = torch.stack([self._preprocess(one.convert("RGB")) for one in pictures[part]])
            seen = self._network.encode_image(pixels.to(self._device), normalize=True)
            said = self._network.encode_text(self._tokenizer(list(texts[part])).to(self._device), normalize=True)
            found.append((seen * said).sum(1).float().cpu())
        return torch.cat(found)


class CleanFid:
    """FID by the package clean-fid (Parmar et al. 2022).

    Args:
        mode: how pictures are resized: `clean`, `legacy_pytorch` or `legacy_tensorflow`.
        device: where it computes.
        batch: pictures at a time.

    Attributes:
        name: of the package, its version and the mode.

    Raises:
        ValueError: if clean-fid is not installed.
    """

    def __init__(self, mode: str = "clean", device: str = "cpu", batch: int = 32):
        self._package = need_package("cleanfid.fid", "clean-fid", "FIDs")
        self.name = f"clean-fid {version('clean-fid')}, mode {mode}"
        self._mode, self._device, self._batch = mode, device, batch

    def __call__(self, pictures: Sequence[Image.Image], real: Path) -> float:
        """FID between pictures, written as PNG, which loses nothing, and those of a folder."""
        with tempfile.TemporaryDirectory() as folder:
            for number, picture in enumerate(pictures):
                picture.convert("RGB").save(Path(folder) / f"{number:06d}.png")
            return float(
                self._package.compute_fid(
                    folder, str(real), mode=self._mode, batch_size=self._batch, num_workers=0,
                    device=torch.device(self._device), use_dataparallel=False, verbose=False,
                )
            )  # fmt: skip


@dataclass(frozen=True)
class Fidelity:
    """How well pictures fit their captions, and the real ones; prints beside others, see `table`.

    Attributes:
        pictures: how many.
        fid: against the real pictures.
        clip_score: mean of 100 times the cosine of picture and caption, not below 0 (Hessel et al. 2021, unscaled).
        by: what both were measured with.
    """

    pictures: int
    fid: float
    clip_score: Rate
    by: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"pictures": self.pictures, "fid": self.fid, "clip_score": self.clip_score.to_dict(), "by": self.by}


def fidelity(
    pictures: Sequence[Image.Image],
    texts: Sequence[str],
    root: Path,
    *,
    distance: FolderDistance | None = None,
    scorer: Scorer | None = None,
    device: str = "cpu",
) -> Fidelity:
    """FID and CLIP score of pictures of COCO's captions.

    Args:
        pictures: one for each caption.
        texts: the captions.
        root: of the data set, see the entry `coco-prompts`.
        distance: to the real pictures; clean-fid in the entry's mode if not given.
        scorer: of pictures and texts; the entry's model if not given.
        device: where the models compute.

    Raises:
        FileNotFoundError: if the real pictures are not there.
        ValueError: if there are not as many pictures as captions, or a package is not installed.
    """
    told = settings(NAME)
    real = need_file(Path(root) / told["reference"], "the folder of COCO's pictures", SOURCE)
    apart = distance or CleanFid(told["mode"], device)
    alike = scorer or OpenClip(told["model"], told["weights"], device)
    score = clip_score(pictures, texts, alike)
    return Fidelity(len(pictures), apart(pictures, real), score, f"{apart.name}, against {real.name}; {alike.name}")


def clip_score(pictures: Sequence[Image.Image], texts: Sequence[str], scorer: Scorer) -> Rate:
    """Mean of 100 times the cosine of picture i and text i, not below 0.

    Raises:
        ValueError: if there are not as many pictures as texts, or none.
    """
    if not len(pictures) == len(texts) > 0:
        raise ValueError(f"every picture is scored with its text, got {len(pictures)} pictures and {len(texts)} texts")
    found = rate([Tally.of(100 * scorer(pictures, texts).double().clamp(min=0).cpu().numpy())])
    assert found is not None  # there are pictures
    return found


def table(found: Mapping[str, Fidelity]) -> str:
    """Several results, e.g. of the plain pipeline and of an erasure, with what they were measured with."""
    rows = [[name, one.pictures, one.fid, one.clip_score.plain()] for name, one in found.items()]
    notes = dict.fromkeys(one.by for one in found.values())
    return "\n".join([text_table(["", "pictures", "FID", "CLIP score"], rows), "", *notes])
