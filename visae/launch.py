"""What torchrun and accelerate tell a process about the others; known before torch is loaded."""

import os


def rank() -> int:
    """Which of the processes this is; 0 is the one that talks to the user, and the only one where nobody launched."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def fell_short() -> bool:
    """Whether accelerate was asked for several processes and started one.

    It does so on machines without GPUs, and then still says where they would have met.
    """
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
