"""Settings of the tests in this folder."""

import torch

torch.set_num_threads(1)  # tensors this small only lose time between threads
