"""The parts by hand, on DINOv2 from timm: model, tokens, store, trainer, dictionary, heat map.

    python examples/dinov2_timm.py ~/photos

`visae train` does all of this in one command; this file shows which piece does what, to copy and change.
"""

from pathlib import Path

import tyro

import visae
from visae.codes import encode_images
from visae.data import read_image
from visae.evaluate import evaluate_sae
from visae.sae import Card, make_sae, save_sae
from visae.show import overlay
from visae.store import extract
from visae.train import TrainConfig, Trainer


def main(
    images: Path,
    /,
    out: Path = Path("runs/dinov2"),
    model: str = "timm:vit_small_patch14_reg4_dinov2",
    image_size: int = 224,
    site: str = "blocks.9",
    steps: int = 2000,
    batch: int = 4096,
    pretrained: bool = True,
) -> None:
    """Train on the patches of DINOv2, register and class tokens left out.

    Args:
        images: folder of images.
        out: folder for activations, dictionary and heat maps.
        model: a timm model.
        image_size: side of the input in pixels, a multiple of the patch.
        site: where to read.
        steps: optimiser steps.
        batch: rows per step.
        pretrained: trained weights.
    """
    dino = visae.load_model(model, pretrained=pretrained, image_size=image_size)
    data = visae.load_data(images)
    policy = visae.TokenPolicy(kinds=("patch",))
    store = extract(dino, site, data, out / "activations", policy=policy)
    print(store)

    sae = make_sae("topk", store.d, n_latents=16 * store.d, k=24)
    config = TrainConfig(steps=steps, batch=batch)
    Trainer(sae, config, out).fit(store.loader(batch), resume=True)
    metrics = evaluate_sae(sae, store.chunks())
    print(metrics.summary())
    meta = store.meta
    card = Card(
        "topk", sae.d, sae.n_latents, model={"id": dino.id, "revision": dino.revision}, site=meta.site.to_dict(),
        policy=policy.to_dict(), preprocessing=meta.preprocessing, geometry=meta.geometry,
        data={"name": meta.data, "fingerprint": meta.fingerprint}, metrics=metrics.to_dict(),
    )  # fmt: skip
    save_sae(sae, out, card)

    path = next(p for p in sorted(Path(images).rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    image = read_image(path)
    (codes,) = encode_images(dino, sae, [image])
    latents, _ = codes.strongest(4)
    for latent, heat in zip(latents, codes.heat(latents), strict=True):
        overlay(image, heat).save(out / f"{path.stem}-latent-{latent}.png")
    print(f"heat maps of latents {', '.join(map(str, latents))} of {path.name} are in {out}")


if __name__ == "__main__":
    tyro.cli(main)
