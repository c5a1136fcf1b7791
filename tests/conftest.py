"""For all tests: one thread of torch, since the tensors are tiny and the machine may be shared."""

import torch

torch.set_num_threads(1)
