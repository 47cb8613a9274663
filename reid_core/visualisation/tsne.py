"""A map of features in which near ones lie together, support samples hollow (ISE, Figure 3).

M images, S support samples, D feature size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "tab20"  # a map of matplotlib
PERPLEXITY = 30.0  # at most: the neighbours that a point is kept near to


def tsne_map(feature: np.ndarray, seed: int) -> np.ndarray:
    """Places (M, 2) of the rows (M, D), M >= 2, by t-SNE (van der Maaten, Hinton 2008); O(M log M)."""
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(feature) - 1) / 3)
    start = "pca" if np.ptp(feature, axis=0).any() else "random"  # equal rows have no main axis
    return TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(feature)


def tsne_figure(
    place_M2: np.ndarray,
    group_M: np.ndarray,
    support_S2: np.ndarray,
    group_S: np.ndarray,
    *,
    kind: str,
) -> Figure:
    """A full point an image and a hollow one a support sample, a colour a group.

    Args:
        place_M2: places of the images.
        group_M: int, the cluster or id of each.
        support_S2: places of the support samples, if any.
        group_S: int, the same groups.
        kind: what a group is called.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours = matplotlib.colormaps[COLOURS].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=(9, 7), layout="constrained")
    panel = figure.subplots()
    for number, group in enumerate(np.unique(group_M)):
        colour = colours[number % len(colours)]
        panel.scatter(*place_M2[group_M == group].T, s=12, color=[colour], label=f"{kind} {group}")
        hollow_S2 = support_S2[group_S == group]
        panel.scatter(*hollow_S2.T, s=36, facecolors="none", edgecolors=[colour])
    if len(support_S2):
        panel.scatter([], [], s=36, facecolors="none", edgecolors="black", label="support sample")
    panel.set(xticks=[], yticks=[])
    figure.legend(loc="outside right upper", fontsize="small")
    return figure
