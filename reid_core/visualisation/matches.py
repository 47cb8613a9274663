"""Queries beside their nearest gallery images. Q queries, k images beside each; H, W rows and columns of an image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES = {True: "#009e73", False: "#cc3311", None: "#9a9a9a"}  # by whether the identity is the same
QUERY_FRAME = "#303030"
TALL = 0.95  # height of an image, inches
FRAME, GAP = 0.035, 0.075  # width of a frame, and between two frames, as shares of that height
HEAD = 0.24  # height of the words on top, inches


def matches_figure(
    query: Sequence[np.ndarray],
    found: Sequence[Sequence[np.ndarray]],
    same: Sequence[Sequence[bool | None]],
    title: str = "nearest in the gallery",
) -> "Figure":
    """A row a query: the query on the left, what was found beside it, nearest first.

    The frame is green around the same identity, red around another one, and grey where that is not known.

    Args:
        query: Q images (H, W, 3) uint8, all of one size.
        found: up to k images of that size for each query, nearest first.
        same: for each of them, whether it has the query's identity; None: not known.
        title: words above what was found.
    """
    from matplotlib.figure import Figure

    wide = query[0].shape[1] / query[0].shape[0]  # places on the panel are in heights of an image
    across, down = wide + 2 * FRAME + GAP, 1 + 2 * FRAME + GAP
    columns, rows = max(map(len, found)) + 1.5, len(query)
    width, height = TALL * across * columns, TALL * down * rows
    figure = Figure(figsize=(width, height + HEAD))
    panel = figure.add_axes((0, 0, 1, height / (height + HEAD)))
    panel.set(xlim=(0, across * columns), ylim=(down * rows, 0))
    panel.axis("off")
    for row, (image, others, known) in enumerate(zip(query, found, same, strict=True)):
        top = row * down
        _draw(panel, image, 0, top, QUERY_FRAME)
        for place, (other, is_same) in enumerate(zip(others, known, strict=True)):
            _draw(panel, other, (place + 1.5) * across, top, FRAMES[is_same])
    for place, words in ((0, "query"), (1.5, title)):
        x, y = (place * across + GAP / 2 + FRAME) * TALL / width, 1 - HEAD / 2 / (height + HEAD)
        figure.text(x, y, words, va="center", fontsize=9, color=QUERY_FRAME)
    return figure


def _draw(panel: "Axes", image: np.ndarray, left: float, top: float, colour: str) -> None:
    """An image of height 1 in a frame, half a gap from ``left`` and ``top``."""
    from matplotlib.patches import Rectangle

    left, top = left + GAP / 2, top + GAP / 2
    wide = image.shape[1] / image.shape[0]
    frame = Rectangle((left, top), wide + 2 * FRAME, 1 + 2 * FRAME, color=colour, linewidth=0)
    panel.add_patch(frame)
    left, top = left + FRAME, top + FRAME
    panel.imshow(image, extent=(left, left + wide, top + 1, top), aspect="auto", zorder=2)
