"""Which images each image claims to be of its identity: an N x N bit matrix, stored by its ones.

b images asked for, B images of a batch, N images, E ones, P pairs.
"""

import torch
from torch import Tensor, nn

from reid_core.labelling.components import smallest_linked


class PseudoLabelMemory(nn.Module):
    """Rows and columns of the matrix are read, rows are replaced; at first every image claims itself alone.

    Both orders of the ones are kept sorted, so that a read costs what it returns and a write copies 16 E bytes.
    The state dict holds one of them, of any size.

    Args:
        images: N, at most 3e9.
    """

    claim_E: Tensor  # row N + column, increasing
    claimed_by_E: Tensor  # column N + row, increasing

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        diagonal = torch.arange(images) * (images + 1)
        self.register_buffer("claim_E", diagonal, persistent=False)
        self.register_buffer("claimed_by_E", diagonal.clone(), persistent=False)

    def rows(self, row_b: Tensor) -> Tensor:
        """What the images ``row_b`` (b,) int64 claim: (b, N) bool."""
        return self._read(self.claim_E, row_b)

    def columns(self, column_b: Tensor) -> Tensor:
        """Who claims the images ``column_b`` (b,) int64: (b, N) bool."""
        return self._read(self.claimed_by_E, column_b)

    def _read(self, key_E: Tensor, first_b: Tensor) -> Tensor:
        place_P, key_P = _blocks(key_E, first_b, self.images)
        mask_bN = torch.zeros(len(first_b), self.images, dtype=torch.bool, device=key_E.device)
        mask_bN[place_P, key_P % self.images] = True
        return mask_bN

    @torch.no_grad()
    def write(self, row_B: Tensor, pair_P2: Tensor) -> None:
        """Replace whole rows.

        Args:
            row_B: int64, the rows to replace; one that occurs twice counts once.
            pair_P2: int64, all their ones in any order: (row, column), equal ones counting once.
        """
        _, old_P = _blocks(self.claim_E, row_B.unique(), self.images)
        new_P = (pair_P2[:, 0] * self.images + pair_P2[:, 1]).unique()
        self.claim_E = _exchange(self.claim_E, old_P, new_P)
        self.claimed_by_E = _exchange(
            self.claimed_by_E, self._transposed(old_P), self._transposed(new_P)
        )

    def _transposed(self, key_P: Tensor) -> Tensor:
        """The same ones in the other order, increasing."""
        return (key_P % self.images * self.images + key_P // self.images).sort().values

    def components(self) -> Tensor:
        """Connected components of the images that claim each other, (N,) int64: the smallest member of each."""
        mutual_P = self.claim_E[torch.isin(self.claim_E, self.claimed_by_E, assume_unique=True)]
        edge_2P = torch.stack([mutual_P // self.images, mutual_P % self.images])
        return smallest_linked(edge_2P, self.images)

    def get_extra_state(self) -> Tensor:
        """The ones, for ``state_dict``."""
        return self.claim_E

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the ones of a state dict."""
        self.claim_E = state.to(self.claim_E.device)
        self.claimed_by_E = self._transposed(self.claim_E)


def _blocks(key_E: Tensor, first_b: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The keys whose first part is asked for: place in ``first_b`` and key, (P,) int64 each."""
    start_b = torch.searchsorted(key_E, first_b * images)
    count_b = torch.searchsorted(key_E, (first_b + 1) * images) - start_b
    place_P = torch.arange(len(first_b), device=key_E.device).repeat_interleave(count_b)
    before_b = count_b.cumsum(0) - count_b
    within_P = torch.arange(len(place_P), device=key_E.device) - before_b[place_P]
    return place_P, key_E[start_b[place_P] + within_P]


def _exchange(key_E: Tensor, old_P: Tensor, new_P: Tensor) -> Tensor:
    """Increasing keys without ``old_P``, all of which are there, and with ``new_P`` (increasing); O(E), no sort."""
    kept_E = torch.ones_like(key_E, dtype=torch.bool)
    kept_E[torch.searchsorted(key_E, old_P)] = False
    rest = key_E[kept_E]
    place_P = torch.searchsorted(rest, new_P) + torch.arange(len(new_P), device=key_E.device)
    merged = key_E.new_empty(len(rest) + len(new_P))
    from_rest = torch.ones_like(merged, dtype=torch.bool)
    from_rest[place_P] = False
    merged[from_rest] = rest
    merged[place_P] = new_P
    return merged
