"""`python -m visae`: the `visae` command where no script is at hand, as launchers of several processes want it.

`accelerate launch --num_processes 2 -m visae train ...` trains on two GPUs. On a machine without any, accelerate starts
several processes only with `--multi_gpu`, in spite of its name; `torchrun --nproc-per-node 2 -m visae train ...` does
the same.
"""

import sys
from pathlib import Path

if not __package__:  # run as a folder, `accelerate launch visae train ...`: visae's modules must not hide others
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from visae.cli import main

if __name__ == "__main__":
    sys.exit(main())
