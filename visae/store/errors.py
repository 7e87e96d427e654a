"""What can go wrong with rows on disk, each with its own name so that a caller can tell the cases apart."""

import errno
import shutil
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(ValueError):
    """A store that cannot be opened or continued as asked; the message says why and what to do."""


class DamagedShard(StoreError):
    """A shard whose bytes are not those that were written; it is named and never served."""


class DiskFull(OSError):
    """The disk cannot hold what should be written, before or while writing."""


class Overflow(StoreError):
    """Activations that the chosen dtype cannot hold."""


def human(n_bytes: float) -> str:
    """A size for people: `human(2_147_483_648)` is `2.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 1024 or unit == "TiB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    raise AssertionError("the loop returns at the last unit")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, which need not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def is_full(error: OSError) -> bool:
    """Whether the operating system refused a write for want of room (disk, quota or file size limit)."""
    return error.errno in _FULL


def disk_full(error: OSError, path: Path, needed: int) -> DiskFull:
    """The error that a user sees when a write ran out of room.

    Args:
        error: what the operating system said.
        path: file that was being written.
        needed: bytes that this file still lacks.
    """
    return DiskFull(
        error.errno,
        f"no room left for {path.name}: about {human(needed)} more are needed, {human(free_bytes(path.parent))} are "
        f"free in {path.parent} ({error.strerror}). The unfinished file was removed; what index.json lists is whole. "
        "Free some space and run the same command again to go on from there, keep fewer tokens (per_image in the "
        "token policy), or stream instead of storing",
    )
