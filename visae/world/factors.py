"""What varies in the world: every factor, its values, and the numbers behind them."""

TAXONOMY: dict[str, tuple[str, str]] = {
    "triangle": ("angular", "polygon"),
    "square": ("angular", "polygon"),
    "star": ("angular", "spike"),
    "bolt": ("angular", "spike"),
    "cross": ("angular", "bar"),
    "elbow": ("angular", "bar"),
    "circle": ("round", "disc"),
    "oval": ("round", "disc"),
    "ring": ("round", "arc"),
    "crescent": ("round", "arc"),
    "heart": ("round", "lobe"),
    "drop": ("round", "lobe"),
}
"""Shape -> (family, subfamily): two families of three sub-families of two shapes."""

SHAPES = tuple(TAXONOMY)
FAMILIES = ("angular", "round")
SUBFAMILIES = tuple(dict.fromkeys(sub for _, sub in TAXONOMY.values()))
STYLES = ("flat", "outline", "dots", "stripes", "checker", "noise", "gradient", "sketch")
BACKGROUNDS = ("light", "dark", "gradient", "grain")

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 24, 32),
    "orange": (248, 128, 8),
    "yellow": (244, 216, 16),
    "green": (28, 152, 52),
    "cyan": (16, 196, 208),
    "blue": (32, 72, 216),
    "purple": (120, 40, 168),
    "pink": (240, 84, 172),
}
SHIFTED_PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (176, 52, 40),
    "orange": (214, 130, 60),
    "yellow": (214, 196, 84),
    "green": (84, 146, 60),
    "cyan": (72, 172, 164),
    "blue": (64, 84, 172),
    "purple": (112, 68, 132),
    "pink": (206, 112, 150),
}
"""The same colours as the camera of another site sees them: duller and warmer (variant `shift`)."""
COLOURS = tuple(PALETTE)

SIZES: dict[str, tuple[int, int]] = {"small": (168, 200), "medium": (238, 268), "large": (312, 340)}
"""Size -> range of the radius in thousandths of the image side. The gaps make the label unambiguous."""

ANGLES: dict[str, tuple[int, ...]] = {
    "upright": (-5, 0, 5),
    "tilted-left": (-30, -25, -20, -15),
    "tilted-right": (15, 20, 25, 30),
}
"""Rotation -> degrees, clockwise positive. 30 is the most: beyond it a triangle's or a star's symmetry lies."""

COLUMNS = ("left", "centre", "right")
ROWS = ("top", "middle", "bottom")
POSITIONS = tuple(f"{row}-{column}" for row in ROWS for column in COLUMNS)
ROTATIONLESS = ("circle", "ring")
"""Shapes that look the same at any angle: they are always drawn, and labelled, upright."""

FACTORS: dict[str, list[str]] = {
    "shape": list(SHAPES),
    "family": list(FAMILIES),
    "subfamily": list(SUBFAMILIES),
    "style": list(STYLES),
    "colour": list(COLOURS),
    "background": list(BACKGROUNDS),
    "count": ["one", "two", "three"],
    "size": list(SIZES),
    "position": list(POSITIONS),
    "rotation": list(ANGLES),
}
THING_FACTORS = ("shape", "family", "subfamily", "style", "colour", "size", "position", "rotation")
"""Factors that belong to an object; the others belong to the image."""

ROLES = ("figure", "emblem", "carrier")
"""Values of the extra factor `role` of the variant `homonym`."""

SPLITS = ("train", "validation", "test")
