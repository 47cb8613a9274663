"""ODC's memories and loss line by line: one image, one cluster after the other (methods.md 3.9)."""

import math

import numpy as np

ROUNDS = 20


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def nearest(x: np.ndarray, centroids: dict[int, np.ndarray]) -> int:
    return min(centroids, key=lambda k: (distance(x, centroids[k]), k))


def smaller_half(x: list[np.ndarray]) -> list[int]:
    """Places of the part that leaves."""
    mean = np.mean(x, axis=0)
    first = max(x, key=lambda row: distance(row, mean))
    second = max(x, key=lambda row: distance(row, first))
    centroids = {0: first, 1: second}
    parts = [nearest(row, centroids) for row in x]
    for _ in range(ROUNDS):
        for k in set(parts):
            centroids[k] = np.mean(
                [r for r, part in zip(x, parts, strict=True) if part == k], axis=0
            )
        parts = [nearest(row, centroids) for row in x]
    ones = [i for i, part in enumerate(parts) if part == 1]
    zeros = [i for i, part in enumerate(parts) if part == 0]
    if not ones or not zeros:
        middle = (len(x) + 1) // 2
        zeros, ones = list(range(middle)), list(range(middle, len(x)))
    return ones if len(ones) <= len(zeros) else zeros


def loss(logits: np.ndarray, label: list[int], size: list[int], power: float) -> float:
    """Cross entropy of each image times size^-power of its cluster, over the sum of these weights."""
    losses, weights = [], []
    for z, y in zip(logits, label, strict=True):
        losses.append(-math.log(math.exp(z[y]) / sum(math.exp(value) for value in z)))
        weights.append(1 / size[y] ** power)
    return sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)


class Twin:
    """Features and labels of all images, centroids of all clusters."""

    def __init__(
        self,
        feature: np.ndarray,
        label: list[int],
        clusters: int,
        *,
        momentum: float,
        min_size: int,
    ) -> None:
        self.feature = [row.copy() for row in feature]
        self.momentum, self.min_size, self.clusters = momentum, min_size, clusters
        self.label = list(label)
        means = {k: self.mean(k) for k in sorted(set(label)) if k >= 0}
        self.label = [
            k if k >= 0 else nearest(row, means) for row, k in zip(self.feature, label, strict=True)
        ]
        self.centroids = {k: np.zeros(feature.shape[1]) for k in range(clusters)}
        self.refresh()
        self.balance()

    def members(self, k: int) -> list[int]:
        return [i for i, label in enumerate(self.label) if label == k]

    def mean(self, k: int) -> np.ndarray:
        return np.mean([self.feature[i] for i in self.members(k)], axis=0)

    def refresh(self) -> None:
        for k in range(self.clusters):
            if self.members(k):
                self.centroids[k] = self.mean(k)

    def move(self, row: list[int], x: np.ndarray) -> float:
        for i, new in zip(row, x, strict=True):
            mixed = self.momentum * self.feature[i] + (1 - self.momentum) * new
            self.feature[i] = mixed / np.linalg.norm(mixed)
        before = list(self.label)
        for i in row:
            self.label[i] = nearest(self.feature[i], self.centroids)
        return sum(self.label[i] != before[i] for i in row) / len(row)

    def balance(self) -> int:
        small = [k for k in range(self.clusters) if len(self.members(k)) < self.min_size]
        others = {k: c for k, c in self.centroids.items() if k not in small}
        for k in small:
            for i in self.members(k):
                self.label[i] = nearest(self.feature[i], others)
        for k in small:
            largest = max(range(self.clusters), key=lambda j: (len(self.members(j)), -j))
            members = self.members(largest)
            for place in smaller_half([self.feature[i] for i in members]):
                self.label[members[place]] = k
            self.centroids[largest], self.centroids[k] = self.mean(largest), self.mean(k)
        return len(small)
