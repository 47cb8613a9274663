"""How a memory learns: the three updates that all methods share (methods.md 1.9).

R rows, B embeddings in the order of the global batch, D feature size. Rows stay unit length; nothing has
a gradient. A momentum is the weight of the OLD value: row <- norm(m row + (1 - m) x).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def update_in_order(rows_RD: Tensor, row_B: Tensor, x_BD: Tensor, momentum: float) -> None:
    """Move row ``row_B[b]`` towards ``x_BD[b]`` for b = 0, 1, ...; a row drawn twice moves twice.

    The first occurrences of all rows are done together, then the second ones, and so on: as many rounds
    as the most frequent row occurs. ``rows_RD`` is changed in place.
    """
    occurrence_B = _occurrence(row_B)
    turns = torch.bincount(occurrence_B).tolist()
    for turn in occurrence_B.argsort(stable=True).split(turns):
        row = row_B[turn]
        rows_RD[row] = F.normalize(momentum * rows_RD[row] + (1 - momentum) * x_BD[turn], dim=1)


@torch.no_grad()
def update_hardest(rows_RD: Tensor, row_B: Tensor, x_BD: Tensor, momentum: float) -> None:
    """Move each row that occurs once, towards the least similar of its embeddings (the first among equals)."""
    similarity_B = (x_BD * rows_RD[row_B]).sum(dim=1)
    by_similarity = similarity_B.argsort(stable=True)
    order = by_similarity[row_B[by_similarity].argsort(stable=True)]
    hardest = order[_occurrence(row_B[order]) == 0]
    update_in_order(rows_RD, row_B[hardest], x_BD[hardest], momentum)


def _occurrence(row_B: Tensor) -> Tensor:
    """How often the same row stood before, (B,) int64."""
    ordered, order = row_B.sort(stable=True)
    place = torch.arange(len(row_B), device=row_B.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(place).scatter_(0, order, place)


def class_means(feature_ND: Tensor, label_N: Tensor, count: int) -> Tensor:
    """Arithmetic means of the rows of each class 0..count-1, (count, D), not normalised; label -1 is left out."""
    row_N = label_N.remainder(
        count + 1
    )  # -1 goes to one more row, which saves a copy of the others
    sums = feature_ND.new_zeros(count + 1, feature_ND.shape[1]).index_add_(0, row_N, feature_ND)
    size = torch.bincount(row_N, minlength=count + 1).clamp(min=1)[:, None].to(sums)
    return (sums / size)[:-1]
