"""From a feature map to one vector: mean, or generalised mean.

b images, D channels, H, W rows and columns of the map.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """The mean over the map."""

    def forward(self, x_bDHW: Tensor) -> Tensor:
        """(b, D, H, W) to (b, D)."""
        return x_bDHW.mean((2, 3))


class GeneralisedMean(nn.Module):
    """``(mean of x^p)^(1/p)`` with one learnt p: 1 is the mean, infinity the maximum.

    Radenovic, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation (TPAMI 2019).
    """

    def __init__(self, p: float = 3.0, floor: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.floor = floor  # smaller values, zeros of a ReLU above all, count as this

    def forward(self, x_bDHW: Tensor) -> Tensor:
        """(b, D, H, W) to (b, D) in the precision of ``p``: powers overflow in half precision."""
        x_bDHW = x_bDHW.to(self.p.dtype).clamp(min=self.floor)
        return x_bDHW.pow(self.p).mean((2, 3)).pow(1 / self.p)


POOLINGS: dict[str, Callable[[], nn.Module]] = {"avg": Average, "gem": GeneralisedMean}
