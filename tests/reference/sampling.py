"""The P x K sampler of methods.md 1.3, read line by line over lists."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np


def identity_stream_reference(
    label: list[int], camid: list[int], instances: int, seed: int
) -> Iterator[int]:
    """One row after the other, without end; outliers are left out."""
    rng = np.random.default_rng(seed)
    images = defaultdict(list)
    for row in sorted(range(len(label)), key=lambda row: (max(camid[row], -1), row)):
        if label[row] >= 0:
            images[label[row]].append(row)
    while True:
        for k in rng.permutation(len(images)):
            same = images[sorted(images)[k]]
            anchor = same[rng.integers(len(same))]
            yield anchor
            others = [row for row in same if max(camid[row], -1) != max(camid[anchor], -1)]
            others = others or [row for row in same if row != anchor]
            if others:
                drawn = rng.choice(len(others), instances - 1, replace=len(others) < instances)
                yield from (others[i] for i in drawn)
