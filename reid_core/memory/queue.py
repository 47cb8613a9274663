"""A queue of keys, the oldest of which make room for new ones. Q rows, B keys of a global batch, P projection size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last Q keys, first in first out: the negatives of MoCo. Random directions stand in until it is full.

    Args:
        rows: Q.
        dim: P.
    """

    row_QP: Tensor
    oldest: Tensor  # () int64, the next row to be overwritten

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("row_QP", F.normalize(torch.randn(rows, dim), dim=1))
        self.register_buffer("oldest", torch.tensor(0))

    @torch.no_grad()
    def push(self, key_BP: Tensor) -> None:
        """Overwrite the B oldest rows, in the order of the global batch; B is at most Q."""
        place_B = torch.arange(len(key_BP), device=key_BP.device)
        self.row_QP[(self.oldest + place_B) % len(self.row_QP)] = key_BP
        self.oldest.add_(len(key_BP)).remainder_(len(self.row_QP))
