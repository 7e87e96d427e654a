"""Prompts against results, to be looked at."""

import textwrap
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from visae.world.training.oracle import generate, held_out_prompts, right

_COLUMNS, _ZOOM, _LINE, _LINES = 6, 2, 11, 4


def prompt_sheet(pipe: Any, n: int, guidance: float, **call: Any) -> Image.Image:
    """Pictures of held-out prompts with the prompt below each, in red where the judge does not see what it states.

    Args:
        pipe: an upstream text-to-image pipeline.
        n: pictures; the first half is about combinations withheld from training.
        guidance: strength of classifier-free guidance.
        **call: further arguments of the pipeline.
    """
    prompts = held_out_prompts(n // 2, new=True) + held_out_prompts(n - n // 2, new=False)
    pictures = generate(pipe, [prompt.text for prompt in prompts], guidance, **call)
    hits = right(prompts, pictures)
    side = pictures.shape[1] * _ZOOM
    width, height = side + 12, side + _LINE * _LINES + 6
    sheet = Image.new("RGB", (width * _COLUMNS, height * -(-n // _COLUMNS)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x, y = k % _COLUMNS * width, k // _COLUMNS * height
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        fine = np.all([values[k] for values in hits.values()])
        text = "\n".join(textwrap.wrap(prompt.text, side // 6)[:_LINES])
        pen.multiline_text((x, y + side + 1), text, fill="black" if fine else "red", spacing=0, font_size=10)
    return sheet
