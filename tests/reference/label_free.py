"""The label-free score with loops over images."""

import numpy as np


def label_free_score(distance: np.ndarray, eps: float, label: np.ndarray) -> float:
    similarity = np.where(distance <= np.float32(eps), 1 - distance.astype(float), 0)
    total = 0.0
    for i in range(len(label)):
        others = [j for j in range(len(label)) if j != i]
        mates = [j for j in others if label[j] == label[i] >= 0]
        inside = sum(similarity[i, j] for j in mates)
        if inside > 0:
            cohesion = inside / len(mates)
            share = inside / sum(similarity[i, j] for j in others)
            total += 2 * cohesion * share / (cohesion + share)
    return total / len(label)
