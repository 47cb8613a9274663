"""What became of the clusters between two LABELS tables, A and B, matched by the images they share.

Only common images count, those of both tables; outliers are in no cluster. The majority of a
cluster is more than half of its common images.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, eye_array, hstack
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from reid_core.errors import UsageError
from reid_core.labels import Labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """Clusters go by their numbers in their own table; ``label`` alone has the stable ones."""

    label: np.ndarray  # (N of B,) int64 in B's image order: A's number where kept; -1 outlier
    kept: np.ndarray  # (K, 2) int64: a cluster of A and its match in B
    births: np.ndarray  # int64: clusters of B without an image that was in a cluster of A
    deaths: np.ndarray  # int64: clusters of A without an image that is in a cluster of B
    merges: dict[int, list[int]]  # a cluster of B: two or more of A that have their majority in it
    splits: dict[int, list[int]]  # a cluster of A: two or more of B that have their majority in it
    common: int  # images
    only_before: int  # images of A alone
    only_after: int  # images of B alone


def compare(before: Labels, after: Labels, level: int = 0) -> Changes:
    """Match the clusters of two tables one to one, so that most common images keep their number.

    A merged or split cluster may keep its number too, usually from or for its largest part. What
    is not kept takes numbers after the largest of A, in B's order.

    Args:
        before: A.
        after: B.
        level: the level of the labels, 0 the finest.

    Raises:
        UsageError: a table does not have the level.

    Memory O(N). The matching takes about a second for 10,000 clusters, a minute for 100,000.
    """
    levels = min(before.label.shape[1], after.label.shape[1])
    if not 0 <= level < levels:
        raise UsageError(f"no level {level} in both tables; they share 0 to {levels - 1}")
    old, new = before.label[:, level], after.label[:, level]
    _, in_old, in_new = np.intersect1d(
        before.image_id, after.image_id, assume_unique=True, return_indices=True
    )
    old_name, old_index, old_size = np.unique(old[in_old], return_inverse=True, return_counts=True)
    new_name, new_index, new_size = np.unique(new[in_new], return_inverse=True, return_counts=True)
    pair, shared = np.unique(np.stack([old_index, new_index]), axis=1, return_counts=True)
    clustered = (old_name[pair[0]] >= 0) & (new_name[pair[1]] >= 0)
    (a, b), shared = pair[:, clustered], shared[clustered]
    kept = _most_shared(a, b, shared)
    match = dict(zip(new_name[b[kept]].tolist(), old_name[a[kept]].tolist(), strict=True))
    return Changes(
        label=_renamed(new, match, first=old.max(initial=-1) + 1),
        kept=np.stack([old_name[a[kept]], new_name[b[kept]]], axis=1),
        births=np.setdiff1d(new[new >= 0], new_name[b]),
        deaths=np.setdiff1d(old[old >= 0], old_name[a]),
        merges=_groups(new_name[b], old_name[a], 2 * shared > old_size[a]),
        splits=_groups(old_name[a], new_name[b], 2 * shared > new_size[b]),
        common=len(in_old),
        only_before=len(old) - len(in_old),
        only_after=len(new) - len(in_new),
    )


def _most_shared(a: np.ndarray, b: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """The pairs (a, b) of the one-to-one matching with the largest sum of ``shared``: bool.

    SciPy's sparse matching must match every row, so each gets a column of its own of weight 1; the
    other weights are scaled such that all of these together weigh less than one shared image.
    """
    if not len(a):
        return np.zeros(0, bool)
    rows, columns = a.max() + 1, b.max() + 1
    weight = csr_array((shared * (rows + 1), (a, b)), shape=(rows, columns))
    alone = eye_array(rows, dtype=weight.dtype)
    row, column = min_weight_full_bipartite_matching(
        hstack([weight, alone], format="csr"), maximize=True
    )
    matched = np.empty(rows, np.int64)
    matched[row] = column
    return matched[a] == b


def _renamed(label: np.ndarray, match: dict[int, int], first: int) -> np.ndarray:
    """Labels with the numbers of ``match``; clusters without one take ``first``, ``first`` + 1, ..."""
    name, index = np.unique(label, return_inverse=True)
    free = iter(range(first, first + len(name)))
    number = [-1 if n < 0 else match[n] if n in match else next(free) for n in name.tolist()]
    return np.array(number, np.int64)[index]


def _groups(owner: np.ndarray, part: np.ndarray, counts: np.ndarray) -> dict[int, list[int]]:
    """The parts of every owner that has two or more of them."""
    groups: dict[int, list[int]] = {}
    for name, member in zip(owner[counts].tolist(), part[counts].tolist(), strict=True):
        groups.setdefault(name, []).append(member)
    return {name: members for name, members in groups.items() if len(members) > 1}
