"""Slow readable twin of SpCL's self-paced reliability: methods.md 2.4 with sets and loops."""


def clusters_of(label: list[int]) -> list[set[int]]:
    """The cluster that holds each image; an outlier is alone."""
    return [
        {j for j, other in enumerate(label) if other == y} if y >= 0 else {i}
        for i, y in enumerate(label)
    ]


def instability(label: list[int], other: list[int]) -> list[float]:
    pairs = zip(clusters_of(label), clusters_of(other), strict=True)
    return [1 - len(a & b) / len(a | b) for a, b in pairs]


def least(label: list[int], score: list[float]) -> dict[int, float]:
    return {
        y: min(s for s, other in zip(score, label, strict=True) if other == y)
        for y in set(label)
        if y >= 0
    }


def threshold(label: list[int], looser: list[int]) -> float:
    scores = sorted(least(label, instability(label, looser)).values())
    return scores[min(len(scores) - 1, round(0.9 * len(scores)))]


def reliable(label: list[int], tighter: list[int], looser: list[int], limit: float) -> list[bool]:
    compact = instability(label, tighter)
    least_compact = least(label, compact)
    least_independent = least(label, instability(label, looser))
    return [
        y >= 0 and least_independent[y] <= limit and compact[i] <= least_compact[y]
        for i, y in enumerate(label)
    ]
