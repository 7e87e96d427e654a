"""Prompts for measuring erasure on the built-in world: every shape in every style, as UnlearnCanvas has its cells.

UnlearnCanvas (Zhang et al. 2024) erases one concept at a time, a style or an object, and asks for all objects in all
styles. Here an object is a shape. Beside the cells there are prompts that leave the style open, on which SAeUron's
script measures how shapes fare when a style is erased.

Colours and backgrounds take turns over the cells, so that each shape and each style meets all of them. Combinations of
shape, style and colour that no shipped pipeline was trained on are left out: whether a pipeline composes is another
question.
"""

from collections.abc import Sequence
from dataclasses import replace

from visae.data.prompts import PARTS, PromptRecord, Prompts, part_of_text
from visae.registry import UnknownName
from visae.world.captions import Caption, draw_caption
from visae.world.factors import BACKGROUNDS, COLOURS, FACTORS, SHAPES, STYLES
from visae.world.hashing import Stream
from visae.world.prompt_specs import stated
from visae.world.scene import Scene, draw_scene
from visae.world.training.latents import withheld_combinations
from visae.world.variants import replace_value

DOMAINS = ("shape", "style")
"""Factors whose values are erased; each is the other's cross domain."""

FIRST_SEED = {"train": 1_000_000_000, "validation": 2_000_000_000, "test": 3_000_000_000}
"""Seed of the first image of each part, far from each other and from those of other prompts, which count from 0."""


def cells(part: str = "test", phrasings: int = 1, seeds: int = 1) -> Prompts:
    """Prompts for every shape in every style, and for every shape in a style that is left open.

    Each text belongs to its part by its hash (`visae.data.prompts.part_of_text`), as all prompts do: nothing that was
    trained or tuned on prompts of another part has seen it, nor the seed of its image. `train` is for selecting,
    `validation` for choosing strengths, `test` for what is reported.

    Args:
        part: train, validation or test.
        phrasings: texts of every cell, each with a colour, a background and words of its own.
        seeds: images of every text.

    Returns:
        `(96 + 12) * phrasings * seeds` prompts with labels shape, style, colour and background; those that leave the
        style open have no label of it.

    Raises:
        UnknownName: for a part that does not exist.
        ValueError: for numbers below 1.
    """
    if part not in PARTS:
        raise UnknownName("part of the world's prompts", part, PARTS)
    if phrasings < 1 or seeds < 1:
        raise ValueError(f"phrasings and seeds count from 1, got {phrasings} and {seeds}")
    records: list[PromptRecord] = []
    for phrase in range(phrasings):
        for row, shape in enumerate(SHAPES):
            for column, style in enumerate((*STYLES, None)):
                caption = _caption(part, row, column, phrase)
                first = FIRST_SEED[part] + len(records) * seeds
                key = f"cells/{part}/{shape}/{style or 'any style'}/{phrase}"
                labels = stated(caption, {name: FACTORS[name] for name in ("shape", "style", "colour", "background")})
                records.append(PromptRecord(caption.text, key, labels, tuple(range(first, first + seeds))))
    name = f"world:cells?split={part}&phrasings={phrasings}&seeds={seeds}"
    return Prompts(name, list(enumerate(records)))


def _caption(part: str, row: int, column: int, phrase: int) -> Caption:
    """A caption of a cell that belongs to a part; the column after the last style leaves the style open."""
    stream = Stream(101, list(PARTS).index(part), row, column, phrase)
    scene = _scene(row, column, phrase, stream)
    thorough = column < len(STYLES)
    while True:
        caption = draw_caption(scene, stream, thorough)
        if part_of_text(caption.text) == part and (thorough or _leaves_style_open(caption)):
            return caption


def _leaves_style_open(caption: Caption) -> bool:
    """Whether a caption states shape, colour and background, and nothing else."""
    return caption.background is not None and [set(one) for one in caption.things] == [{"shape", "colour"}]


def _scene(row: int, column: int, phrase: int, stream: Stream) -> Scene:
    """A scene of a cell's shape and style, with the colour and the background whose turn it is."""
    shape, style = SHAPES[row], STYLES[column % len(STYLES)]
    colour = _trained(shape, style, [COLOURS[(3 * row + 5 * column + 3 * phrase + k) % len(COLOURS)] for k in (0, 1)])
    background = BACKGROUNDS[(row + column // 2 + phrase) % len(BACKGROUNDS)]
    scene = draw_scene(stream, 1, 0)
    thing = replace(replace_value(scene.things[0], "shape", shape), style=style, colour=colour)
    return replace(scene, things=(thing,), background=background)


def _trained(shape: str, style: str, colours: Sequence[str]) -> str:
    """The first of two colours of which pipelines have seen the shape in the style; at most one is withheld."""
    return next(colour for colour in colours if (shape, style, colour) not in withheld_combinations())
