"""The built-in image world, whose truth is known, and the small models trained on it that ship with visae."""

from visae.world.captions import Caption as Caption
from visae.world.captions import prompts as prompts
from visae.world.scene import Scene as Scene
from visae.world.scene import Thing as Thing
from visae.world.spec import world_from_spec as world_from_spec
from visae.world.world import World as World
