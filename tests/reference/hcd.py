"""HCD's label dynamics line by line (methods.md 3.4 to 3.7): clusters are sets of rows, one image after the other."""

from typing import Any

import numpy as np

Level = list[set[int]]


def affinity(s: float) -> float:
    return float(np.exp(-(2 - 2 * s)))


def propagated(weight: np.ndarray, given: np.ndarray, alpha: float, *, loops: bool) -> np.ndarray:
    """Eq. 2 and 3; ``loops`` leaves the self affinities out of S, not out of the degrees."""
    degree = weight.sum(axis=1)
    s = np.zeros_like(weight)
    for i in range(len(weight)):
        for j in range(len(weight)):
            if weight[i, j] > 0 and not (loops and i == j):
                s[i, j] = weight[i, j] / np.sqrt(degree[i] * degree[j])
    return np.linalg.inv(np.eye(len(weight)) - alpha * s) @ given


def mutual(s: np.ndarray, count: int) -> list[list[bool]]:
    """Pairs of which each is among the ``count`` most similar of the other."""
    n = range(len(s))
    near = [set(sorted(n, key=lambda j: -s[i, j])[:count]) for i in n]
    return [[j in near[i] and i in near[j] for j in n] for i in n]


def reach_first(s: np.ndarray, linked: np.ndarray, alpha: float) -> np.ndarray:
    n = len(s)
    weight = np.eye(n)
    for i in range(n):
        for j in range(n):
            if i != j and linked[i, j]:
                weight[i, j] = affinity(s[i, j])
    given = np.eye(n)
    given[0] = 0
    row = propagated(weight, given, alpha, loops=True)[0]
    row[0] = 0
    return row


def find_anchors(s: np.ndarray, config: Any) -> list[int]:
    n = len(s)
    density = [sum(s[i]) - 1 for i in range(n)]
    candidates, link = [], {}
    for i in range(n):
        denser = [s[i, j] for j in range(n) if density[j] > density[i]]
        link[i] = max(denser) if denser else -1.0
        if not denser or 0.4 < link[i] < 0.8:
            candidates.append(i)
    key = (lambda i: -abs(link[i])) if config.anchor_order == "near" else (lambda i: link[i])
    chosen = sorted(candidates, key=key)[: config.anchors]
    if config.legacy_anchor_index:
        return [candidates.index(i) for i in chosen]
    return chosen


def split_weights(s: np.ndarray, config: Any, *, below: bool) -> np.ndarray:
    n = len(s)
    weight, edge = np.zeros((n, n)), mutual(s, 30)
    for i in range(n):
        for j in range(n):
            value = affinity(s[i, j]) if config.legacy_double_exp and below else s[i, j]
            if i != j and (n <= 30 or edge[i][j]):
                weight[i, j] = affinity(value)
            elif i != j and config.legacy_floor:
                weight[i, j] = affinity(0)
    return weight


def groups_of(s: np.ndarray, config: Any, *, below: bool) -> list[int]:
    """The place of the anchor of every node; all 0 where the cluster stays whole."""
    n = len(s)
    anchors = find_anchors(s, config)
    if len(anchors) < 2:
        return [0] * n
    weight = split_weights(s, config, below=below)
    given = np.zeros((n, len(anchors)))
    for place, anchor in enumerate(anchors):
        given[anchor, place] = 1
    score = propagated(weight, given, config.alpha_s, loops=False)
    if config.split_assign == "column_normalised":
        score = score / score.sum(axis=0)
    return [anchors[int(np.argmax(row))] for row in score]


def cluster_of(level: Level, row: int) -> set[int]:
    return next(c for c in level if row in c)


class Twin:
    """The bank is given at every step; ``levels`` holds the clusters, finest first."""

    def __init__(self, label_HR: np.ndarray, sources: int, config: Any) -> None:
        self.sources, self.config = sources, config
        self.levels = [
            [{int(r) for r in np.flatnonzero(label == k)} for k in sorted(set(label.tolist()))]
            for label in label_HR
        ]

    def labels(self) -> np.ndarray:
        rows = sum(len(c) for c in self.levels[0])
        return np.array([[min(cluster_of(lv, r)) for r in range(rows)] for lv in self.levels])

    def step(self, bank: np.ndarray, batch: list[int]) -> dict[str, int]:
        config = self.config
        near = {i: self.neighbourhood(bank, i) for i in batch}
        best = {i: self.best(bank, near[i]) for i in batch}
        self.isolate(batch)
        counts = {"joined": sum(best[i][1] for i in batch)}
        for _ in batch:  # so often, that chains within the batch are followed to their end
            for i in batch:
                if best[i][1]:
                    for level in self.levels:
                        self.unite(level, i, best[i][0])
        nodes: Level = [{r} for r in range(len(bank))]
        old = {min(c): bank[list(c)].mean(axis=0) for c in nodes}
        for h, level in enumerate(self.levels):
            if config.split:
                counts[f"splits_{h + 1}"] = sum(self.split(h, nodes, old, i) for i in batch)
            mean = {min(c): bank[list(c)].mean(axis=0) for c in level}
            before = len(level)
            if config.merge:
                self.merge(h, bank, mean, near, best, batch)
                counts[f"merges_{h + 1}"] = before - len(level)
            fresh = {min(c): bank[list(c)].mean(axis=0) for c in level}
            nodes, old = level, fresh if config.fresh_means else mean
        return counts

    def neighbourhood(self, bank: np.ndarray, i: int) -> list[int]:
        first = self.sources if self.config.neighbours_target_only else 0
        others = [r for r in range(first, len(bank)) if r != i]
        others.sort(key=lambda r: -float(bank[i] @ bank[r]))
        return [i, *others[: self.config.neighbours - 1]]

    def linked(self, bank: np.ndarray, near: list[int], count: int) -> np.ndarray:
        s = bank[near] @ bank[near].T
        return np.array(mutual(s, count)) & (s > self.config.min_similarity)

    def best(self, bank: np.ndarray, near: list[int]) -> tuple[int, bool]:
        if self.config.nn_rule == "plain":
            images = [r for r in near[1:] if r >= self.sources]
            return (images[0], True) if images else (near[1], False)
        linked = self.linked(bank, near, self.config.nearest)
        score = reach_first(bank[near] @ bank[near].T, linked, self.config.alpha_m)
        place = max(range(1, len(near)), key=lambda q: score[q])
        good = place < self.config.nearest and score[place] > self.config.sigma
        return near[place], bool(good and near[place] >= self.sources)

    def isolate(self, batch: list[int]) -> None:
        for level in self.levels:
            for i in set(batch):
                cluster_of(level, i).remove(i)
                level.append({i})
            level[:] = [c for c in level if c]

    def unite(self, level: Level, i: int, j: int) -> None:
        a, b = cluster_of(level, i), cluster_of(level, j)
        if a is not b:
            level[:] = [c for c in level if c is not a and c is not b] + [a | b]

    def split(self, h: int, nodes: Level, mean: dict[int, np.ndarray], i: int) -> bool:
        level = self.levels[h]
        cluster = cluster_of(level, i)
        parts = sorted((c for c in nodes if c <= cluster), key=min)
        if len(cluster) <= 4 or not self.config.split_gap < len(parts) <= self.config.split_limit:
            return False
        x = np.stack([mean[min(c)] for c in parts])
        joined = groups_of(x @ x.T, self.config, below=h + 1 < len(self.levels))
        new = [
            set().union(*(c for c, a in zip(parts, joined, strict=True) if a == anchor))
            for anchor in set(joined)
        ]
        level[:] = [c for c in level if c is not cluster] + new
        return len(new) > 1

    def merge(self, h, bank, mean, near, best, batch) -> None:
        level, sets = self.levels[h], []
        for i in batch:
            nodes, names = [0], [-1]
            for place in range(1, len(near[i])):
                name = min(cluster_of(level, near[i][place]))
                if name not in names:
                    nodes.append(place)
                    names.append(name)
            linked = self.linked(bank, near[i], self.config.connect)[np.ix_(nodes, nodes)]
            x = np.stack([bank[i], *(mean[name] for name in names[1:])])
            score = reach_first(x @ x.T, linked, self.config.alpha_m)
            merged = {
                name
                for name, p in zip(names, score, strict=True)
                if p > self.config.sigma and name >= self.sources and self.may(h, i, name)
            } | {min(cluster_of(level, i))}
            if min(cluster_of(level, best[i][0])) in merged:
                sets.append(merged)
        for merged in sets:
            for name in merged:
                self.unite(level, min(merged), name)

    def may(self, h: int, i: int, name: int) -> bool:
        if h + 1 == len(self.levels):
            return True
        return name in cluster_of(self.levels[h + 1], i)
