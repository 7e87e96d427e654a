"""Settings of the tests in this folder, and tokens that come again and again."""

import pytest
import torch

torch.set_num_threads(1)  # tensors this small only lose time between threads


class Shuffled:
    """Batches of given tokens `[n, d]`, drawn with replacement."""

    def __init__(self, rows, batch):
        self.rows, self.batch = rows, batch

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield self.rows[torch.randint(len(self.rows), (self.batch,), generator=generator)]

    def sample(self, _n):
        return self.rows, None


@pytest.fixture(scope="session")
def shuffled():
    """The class `Shuffled`."""
    return Shuffled
