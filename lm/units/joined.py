"""Linear maps of one input, computed as one: their rows stand one below another."""

import torch
from torch import nn


class Joined(nn.Linear):
    """Maps without biases, of which each has a number of rows; their outputs one behind the other."""

    def __init__(self, size: int, *rows: int) -> None:
        super().__init__(size, sum(rows), bias=False)
        self.rows = rows


class Matrices(nn.Module):
    """Such maps for each of many experts: (G, O, I)."""

    def __init__(self, experts: int, size: int, *rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(experts, sum(rows), size))
        nn.init.normal_(self.weight, std=0.02)
