"""What every test starts from: no network, and one thread for each of the processes that share the machine."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# GPU kernels run in Triton's interpreter, on the CPU's tensors, wherever the tests run; torch's import reads this
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from visae.sae import Rows, make_sae

torch.set_num_threads(1)


def bring_side(sae, x, seed=0):
    g = torch.Generator().manual_seed(seed)
    known = {
        "sigma": lambda: 5 * torch.rand(len(x), generator=g),
        "other": lambda: (x + x.roll(1, 0)) / 2 + torch.randn(x.shape, generator=g).to(x),
    }
    return Rows(x, {name: known[name]() for name in sae.needs}) if sae.needs else x


@pytest.fixture(scope="session")
def bring():
    """Function from a dictionary and tokens `[n, d]` to what a loader for it would bring: tokens, or `Rows`."""
    return bring_side


def random_dictionary(d, n=24, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = make_sae("relu_l1", d, n, **options)
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter)
        sae.decoder.weight.data /= sae.decoder.weight.norm(dim=1, keepdim=True)
    return sae.eval()


@pytest.fixture(scope="session")
def dictionary():
    """Function from a width to a dictionary with random weights and unit directions, of whose latents half fire."""
    return random_dictionary


def load_tiny_pipelines():
    spec = importlib.util.spec_from_file_location("visae_tiny_pipelines", Path(__file__).with_name("pipelines_tiny.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_pipelines():
    """The table of tiny diffusers pipelines with random weights; `tiny_pipelines.build("sd")` makes one."""
    return load_tiny_pipelines()


def pytest_generate_tests(metafunc):
    """Tests that ask for a `pipeline_name` run on every pipeline of the table."""
    if "pipeline_name" in metafunc.fixturenames:
        metafunc.parametrize("pipeline_name", list(load_tiny_pipelines().PIPELINES), scope="class")
