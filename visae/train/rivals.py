"""Finds the peers that are installed, and times and weighs their steps for `visae bench step`."""

import io
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle

from torch import Tensor

from visae.train.bench import Size, batches, in_fresh_process, peak_of, tokens
from visae.train.peers import PEERS, Learner, Peer, Plan


def installed() -> tuple[dict[str, Peer], dict[str, str]]:
    """Peers that import, and for the others why they do not."""
    found, failed = {}, {}
    for name, peer in PEERS.items():
        if find_spec(peer.module) is None:
            failed[name] = "not installed"
            continue
        try:
            load(peer)
        except Exception as error:  # whatever a library does when it is imported, the others can be measured
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = peer
    return found, failed


def load(peer: Peer) -> None:
    """Imports a peer; all that its library needs, and nothing of what it prints."""
    import matplotlib

    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # it would give CPU tensors to Triton
    lent = not hasattr(matplotlib.cm, "get_cmap")  # overcomplete 0.3 asks for it; gone since matplotlib 3.9
    if lent:
        matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap  # type: ignore[attr-defined]
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(peer.module)
    finally:
        if lent:
            del matplotlib.cm.get_cmap  # type: ignore[attr-defined]


Rival = tuple[Callable[[], None], Callable[[], float]]
"""A step, and how to measure its peak memory in MB."""


def rivals(size: Size, data: Sequence[Tensor]) -> tuple[dict[str, Rival], dict[str, str]]:
    """For every installed peer with this kind, in fp32 and under autocast: its step. On a CPU only.

    Returns:
        Name to the step; name to why a peer is not among them.
    """
    if size.device != "cpu":
        return {}, {"other libraries": "they are timed on a CPU only"}
    found, failed = installed()
    jobs: dict[str, Rival] = {}
    for peer in found.values():
        for autocast in (False, True) if size.kind in peer.kinds else ():
            name = f"{peer.name} {peer.version}{', autocast bf16' if autocast else ''}"
            try:
                step = in_turn(peer.learner(size, Plan(autocast=autocast)), data)
                step()
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
            else:
                jobs[name] = (step, partial(peak_memory, size, peer.name, autocast))
    return jobs, failed


def in_turn(learner: Learner, data: Sequence[Tensor]) -> Callable[[], None]:
    """A step on the batches one after another, again and again."""
    endless = cycle(data)
    return lambda: learner.step(next(endless))


def peak_memory(size: Size, name: str, autocast: bool) -> float:
    """`visae.train.bench.peak_memory` of a peer."""
    return in_fresh_process(f"visae.train.rivals.added_memory(visae.train.bench.{size}, {name!r}, {autocast})")


def added_memory(size: Size, name: str, autocast: bool) -> float:
    """Peak resident MB of five steps in this process, above weights, batches and the moments of its optimiser."""
    load(PEERS[name])
    small = replace(size, d=64, n_latents=1024, batch=64, k=4)
    in_turn(PEERS[name].learner(small, Plan(autocast=autocast)), tokens(batches(small)))()  # loads code
    learner = PEERS[name].learner(size, Plan(autocast=autocast))
    peak = peak_of(in_turn(learner, tokens(batches(size))))
    state = [value for values in learner.optimiser.state.values() for value in values.values()]
    return round(peak - sum(t.nbytes for t in state if isinstance(t, Tensor)) / 2**20, 1)
