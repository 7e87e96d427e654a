"""Names to things, with errors that help: every registry of visae (models, dictionaries, metrics) is one of these."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownName(KeyError):
    """A name that is not known; the message lists what is, nearest first."""

    def __init__(self, noun: str, name: object, known: Iterable[str], hint: str = ""):
        names = sorted(known)
        text = f"Unknown {noun} {name!r}."
        if close := difflib.get_close_matches(str(name), names, n=3, cutoff=0.6):
            text += f" Did you mean {' or '.join(repr(c) for c in close)}?"
        shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
        text += f" Known: {shown or 'none'}."
        super().__init__(text + (f" {hint}" if hint else ""))

    def __str__(self) -> str:  # KeyError would print the repr, with escaped quotes
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from name to thing that refuses duplicates and suggests names.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square")
        ... def square(): return 4
        >>> shapes["squre"]
        Traceback (most recent call last):
        visae.registry.UnknownName: Unknown shape 'squre'. Did you mean 'square'? Known: square.
    """

    def __init__(self, noun: str):
        self.noun = noun
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a thing under `name`.

        Raises:
            ValueError: if the name is taken.
        """

        def add(thing: T) -> T:
            if name in self._things:
                owner = self._things[name]
                raise ValueError(f"{self.noun} {name!r} is registered already, by {owner!r}; take another name")
            self._things[name] = thing
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            raise UnknownName(self.noun, name, self._things)
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
