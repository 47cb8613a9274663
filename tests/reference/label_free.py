"""The label-free score with loops over images and labels."""

import numpy as np


def label_free_score(distance: np.ndarray, eps: float, label: np.ndarray) -> float:
    total = 0.0
    for i in range(len(label)):
        groups: dict[tuple[int, int], list[float]] = {}
        for j in np.flatnonzero(distance[i] <= np.float32(eps)).tolist():
            if j != i:
                group = (label[j], j if label[j] < 0 else -1)  # an outlier is a label of its own
                groups.setdefault(group, []).append(1 - float(distance[i, j]))
        means = {group: sum(values) / len(values) for group, values in groups.items()}
        a = means.pop((label[i], -1), 0.0)
        b = max(means.values(), default=0.0)
        if label[i] >= 0 and max(a, b) > 0:
            total += (a - b) / max(a, b)
    return total / len(label)
