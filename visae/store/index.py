"""`index.json`: the list of whole shards, replaced atomically; and the lock that keeps a second writer out."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visae.store.errors import StoreError, disk_full, is_full
from visae.store.meta import SCHEMA, StoreMeta
from visae.store.shard import ShardEntry

INDEX = "index.json"


@dataclass(frozen=True)
class Skipped:
    """A sample that could not be read.

    Attributes:
        item: its place in the data set.
        key: its name.
        reason: what was wrong.
    """

    item: int
    key: str
    reason: str


@dataclass
class Index:
    """Content of index.json.

    Attributes:
        meta: what made the rows.
        shard_items: places of the data set that one shard covers.
        block_items: items per checksum block.
        shards: whole shards by number.
        skipped: samples without rows, by place.
    """

    meta: StoreMeta
    shard_items: int
    block_items: int
    shards: dict[int, ShardEntry] = field(default_factory=dict)
    skipped: dict[int, Skipped] = field(default_factory=dict)

    @property
    def n_shards(self) -> int:
        """Shards of the finished store."""
        return -(-self.meta.n_items // self.shard_items)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are still to be made."""
        return [number for number in range(self.n_shards) if number not in self.shards]

    def span(self, number: int) -> range:
        """Places of the data set that a shard covers."""
        return range(number * self.shard_items, min((number + 1) * self.shard_items, self.meta.n_items))

    def drop(self, number: int) -> None:
        """Forgets a shard and what was skipped in it."""
        self.shards.pop(number, None)
        for item in self.span(number):
            self.skipped.pop(item, None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; shards and skipped samples in order, so that equal stores have equal files."""
        return {
            "schema": SCHEMA,
            "hash": self.meta.content_hash,
            "complete": not self.missing,
            "made_from": self.meta.to_dict(),
            "shard_items": self.shard_items,
            "block_items": self.block_items,
            "shards": [self.shards[number].to_dict() for number in sorted(self.shards)],
            "skipped": [vars(self.skipped[item]) for item in sorted(self.skipped)],
        }

    def save(self, folder: Path) -> None:
        """Replaces index.json in one step.

        Raises:
            DiskFull: if there is no room; the old file stays.
        """
        path, part = folder / INDEX, folder / f"{INDEX}.tmp"
        text = json.dumps(self.to_dict(), indent=1)
        try:
            with open(part, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            part.unlink(missing_ok=True)
            raise (disk_full(error, path, len(text)) if is_full(error) else error) from None
        os.replace(part, path)
        sync_folder(folder)

    @classmethod
    def load(cls, folder: Path) -> "Index":
        """Reads index.json.

        Raises:
            StoreError: if there is none or this version cannot read it.
        """
        path = folder / INDEX
        if not path.is_file():
            there = "the folder has no index.json" if folder.is_dir() else "there is no such folder"
            raise StoreError(f"{folder} is not a store of activations: {there}. Make one with extract(...)")
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if (schema := told["schema"]) != SCHEMA:
                raise StoreError(f"{path} has schema {schema}, this version of visae reads {SCHEMA}: extract again")
            index = cls(StoreMeta.from_dict(told["made_from"]), told["shard_items"], told["block_items"])
            index.shards = {entry["number"]: ShardEntry(**entry) for entry in told["shards"]}
            index.skipped = {entry["item"]: Skipped(**entry) for entry in told["skipped"]}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is damaged ({type(error).__name__}: {error}): extract into a fresh folder"
            ) from error
        if index.meta.content_hash != told["hash"]:
            raise StoreError(
                f"{path} was edited: its content hash is {told['hash']} but what it says it was made from "
                f"hashes to {index.meta.content_hash}. Extract into a fresh folder"
            )
        return index


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that cannot open folders keeps no such promise either
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second writer out of a folder; the lock dies with its process, even with kill -9.

    Raises:
        StoreError: if another process writes there.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another process is extracting into {folder} right now: wait for it, or choose another folder"
            ) from None
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(handle)
