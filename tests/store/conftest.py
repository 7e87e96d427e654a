import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

KIT = Path(__file__).with_name("kit.py")
_spec = importlib.util.spec_from_file_location("visae_store_kit", KIT)
_kit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_kit)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kit():
    return _kit


class Job:
    """An extraction in a process of its own."""

    def __init__(self, server, out, wait, limit):
        self.server, self.said = server, Path(f"{out}.said")
        self.pid = int(self.ask(f"{out} {wait} {limit}"))

    def ask(self, line):
        self.server.stdin.write(line + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()

    def ended(self):
        return int(self.ask(""))


@pytest.fixture(scope="session")
def start():
    """Starts a real process that extracts 96 pictures, slowly where asked; two of them cannot be read."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(KIT.parents[2])}
    server = subprocess.Popen(
        [sys.executable, str(KIT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield lambda out, wait=0.0, limit=0: Job(server, out, wait, limit)
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="session")
def model():
    return _kit.tiny_model()


@pytest.fixture(scope="session")
def pictures():
    return _kit.Pictures


@pytest.fixture(scope="session")
def make(model):
    """Extracts pictures quickly, in shards of sixteen images."""
    from visae.store import extract

    def run(out, data=None, **options):
        settings = {"batch": 6, "shard_bytes": _kit.SHARD_BYTES, "progress": False, "workers": 0} | options
        return extract(model, "blocks.1", _kit.Pictures() if data is None else data, out, **settings)

    return run


@pytest.fixture(scope="session")
def stored(make, tmp_path_factory):
    """A finished store that no test may change."""
    return make(tmp_path_factory.mktemp("stored") / "rows")
