"""Train a dictionary on your own images with an open_clip model, and look at what it found.

    python examples/own_images_open_clip.py ~/photos

Sub-folders are taken as labels, if there are any. The weights come from the hub on first use; `--no-pretrained` runs
the same journey on random weights, without a network.
"""

from pathlib import Path

import tyro

from visae.workflows import estimate, heatmap, report, train


def main(
    images: Path,
    /,
    out: Path = Path("runs/own-images"),
    model: str = "open_clip:ViT-B-16/openai",
    site: str = "blocks.-2",
    latents: int = 6144,
    k: int = 32,
    passes: float = 4,
    pretrained: bool = True,
) -> None:
    """Train on a folder of images and look.

    Args:
        images: folder of images of any size and mode.
        out: folder of the run.
        model: any open_clip model; visae reads size, mean and crop from it.
        site: where to read, see `visae sites MODEL`.
        latents: width of the dictionary.
        k: latents active per patch.
        passes: passes over the patches.
        pretrained: trained weights.
    """
    shared = {"model": model, "site": site, "data": str(images), "latents": latents, "k": k, "passes": passes}
    print(estimate(**shared, pretrained=pretrained, out=out.parent))
    print(train(out, **shared, pretrained=pretrained))
    print(heatmap(out, (str(images),), limit=4))
    print(report(out))


if __name__ == "__main__":
    tyro.cli(main)
