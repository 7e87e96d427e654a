"""Settings of the tests in this folder, and processes played by threads: no need to start any."""

from threading import Barrier, Thread

import pytest
import torch

from visae.ops import Group

torch.set_num_threads(1)  # tensors this small only lose time between threads


class Played(Group):
    """One of several threads that exchange tensors through a list."""

    def __init__(self, rank, board, barrier):
        super().__init__()
        self.rank, self.size, self._board, self._barrier = rank, len(board), board, barrier

    def gather(self, x):
        self._board[self.rank] = x.detach().clone()
        self._barrier.wait(20)
        every = torch.stack(self._board)
        self._barrier.wait(20)
        return every

    def _reduced(self, x, how):
        every = self.gather(x)
        return every.sum(0) if how == "SUM" else every.amin(0) if how == "MIN" else every.amax(0)


def play(size, job):
    """What `job(group)` returns on each of so many processes."""
    barrier, board, results = Barrier(size), [None] * size, [None] * size

    def run(rank):
        try:
            results[rank] = job(Played(rank, board, barrier))
        except BaseException as error:
            barrier.abort()
            results[rank] = error

    threads = [Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.fixture
def played():
    return play
