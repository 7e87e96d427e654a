"""The words of the world: how a caption may name each value of each factor."""

NOUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "shape": {
        "triangle": ("triangle", "triangular shape"),
        "square": ("square", "box"),
        "star": ("star", "starlet"),
        "bolt": ("bolt", "lightning bolt", "zigzag"),
        "cross": ("cross", "plus sign"),
        "elbow": ("elbow", "corner piece"),
        "circle": ("circle", "disc", "disk"),
        "oval": ("oval", "ellipse"),
        "ring": ("ring", "hoop", "donut"),
        "crescent": ("crescent", "sickle"),
        "heart": ("heart", "heart shape"),
        "drop": ("drop", "teardrop", "droplet"),
    },
    "family": {
        "angular": ("angular shape", "pointed figure", "angular thing"),
        "round": ("round shape", "curved figure", "round thing"),
    },
}
"""What an object can be called."""

ANYTHING = ("shape", "figure", "object", "thing")
"""What an object is called when its shape is left open."""

ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "orange": ("orange", "tangerine"),
        "yellow": ("yellow", "golden"),
        "green": ("green", "emerald"),
        "cyan": ("cyan", "turquoise", "aqua"),
        "blue": ("blue", "cobalt"),
        "purple": ("purple", "violet"),
        "pink": ("pink", "magenta"),
    },
    "style": {
        "flat": ("flat", "plain", "solid"),
        "outline": ("outlined", "contoured"),
        "dots": ("dotted", "spotted", "polka-dot"),
        "stripes": ("striped", "banded"),
        "checker": ("checkered", "chequered"),
        "noise": ("noisy", "speckled"),
        "gradient": ("shaded", "graded"),
        "sketch": ("sketched", "hatched"),
    },
    "size": {
        "small": ("small", "little", "tiny"),
        "medium": ("medium", "mid-sized"),
        "large": ("large", "big"),
    },
    "rotation": {
        "upright": ("upright", "level"),
        "tilted-left": ("left-leaning",),
        "tilted-right": ("right-leaning",),
    },
}
"""Words before the noun."""

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "style": {
        "flat": ("filled flat", "in one solid tone"),
        "outline": ("drawn in outline", "with a bold contour"),
        "dots": ("with dots", "covered in dots"),
        "stripes": ("with stripes", "in stripes"),
        "checker": ("with a checker pattern", "in checks"),
        "noise": ("with noise", "full of speckles"),
        "gradient": ("with a gradient", "fading downwards"),
        "sketch": ("drawn as a sketch", "in pencil hatching"),
    },
    "colour": {colour: tuple(f"in {word}" for word in words) for colour, words in ADJECTIVES["colour"].items()},
    "position": {
        "top-left": ("in the top left", "in the upper left"),
        "top-centre": ("at the top", "in the upper centre"),
        "top-right": ("in the top right", "in the upper right"),
        "middle-left": ("at the left", "on the left side"),
        "middle-centre": ("in the centre", "in the very middle"),
        "middle-right": ("at the right", "on the right side"),
        "bottom-left": ("in the bottom left", "in the lower left"),
        "bottom-centre": ("at the bottom", "in the lower centre"),
        "bottom-right": ("in the bottom right", "in the lower right"),
    },
    "rotation": {
        "upright": ("standing upright",),
        "tilted-left": ("tilted to the left", "leaning left"),
        "tilted-right": ("tilted to the right", "leaning right"),
    },
}
"""Words after the noun."""

EMBLEM_NOUNS = ("emblem", "badge")
"""Follow the noun of an object that is a mark upon another one."""

GROUNDS: dict[str, tuple[str, ...]] = {
    "light": ("on a light background", "on a bright ground", "against a light ground"),
    "dark": ("on a dark background", "on a dark ground", "against a black background"),
    "gradient": ("on a fading background", "against a gradient background"),
    "grain": ("on a grainy background", "on rough paper", "against grainy paper"),
}

COUNTS: dict[str, tuple[str, ...]] = {
    "one": ("one shape", "a single shape", "exactly one object"),
    "two": ("two shapes", "a pair of shapes", "exactly two objects"),
    "three": ("three shapes", "a trio of shapes", "exactly three objects"),
}

FRAMES = (
    "{}",
    "{}",
    "{}",
    "a picture of {}",
    "a photo of {}",
    "an image of {}",
    "a drawing of {}",
    "there is {}",
    "this is {}",
    "here we see {}",
    "an image that shows {}",
    "{} in a picture",
    "a world with {}",
)
"""Sentences around a description; the bare description is the most frequent one."""

JOINS = ("{} and {}", "{} next to {}", "{} with {}", "{} beside {}")
"""Two descriptions in one."""

RELATIVES = ("{} that is {}", "{} which is {}", "{} , {} ,")
"""A noun and adjectives after it."""


def words() -> list[str]:
    """Every word any caption can contain, sorted."""
    texts = ["a an the and on in", *ANYTHING, *EMBLEM_NOUNS, *FRAMES, *JOINS, *RELATIVES]
    for table in (*NOUNS.values(), *ADJECTIVES.values(), *PHRASES.values(), GROUNDS, COUNTS):
        texts += [phrase for phrases in table.values() for phrase in phrases]
    return sorted({word for text in texts for word in text.replace("{}", " ").split()})
