"""The images of coarse clusters, level by level (HCD, S-Figure 1). N images, M of them drawn, H levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from reid_core.labelling.quality import single_outliers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "Set3"  # a map of matplotlib
WHITE = 1.0
TILE = 0.5  # width, inches
FRAME = 0.1  # colour around an image, as a share of the tile


def most_divided(label_NH: np.ndarray, count: int) -> list[int]:
    """The coarse clusters with most parts on the finest level, at most ``count``; ties to the smaller number.

    Args:
        label_NH: (N, H) int, finest level first, -1 for images alone.
        count: clusters wanted.
    """
    coarse_N = label_NH[:, -1]
    pairs = np.stack([coarse_N, single_outliers(label_NH[:, 0])], axis=1)[coarse_N >= 0]
    parts = np.bincount(np.unique(pairs, axis=0)[:, 0])
    return np.argsort(-parts, kind="stable")[:count].tolist()


def members(label_NH: np.ndarray, cluster: int) -> np.ndarray:
    """The rows (M,) of a coarse cluster; those of one part lie side by side on every level."""
    row_M = np.flatnonzero(label_NH[:, -1] == cluster)
    keys = [single_outliers(level_N)[row_M] for level_N in label_NH.T]  # the last one sorts first
    return row_M[np.lexsort((row_M, *keys))]


def hierarchy_figure(
    label_NH: np.ndarray,
    image_id_N: np.ndarray,
    drawn: Mapping[int, np.ndarray],
    images: Mapping[int, np.ndarray] | None = None,
) -> Figure:
    """A panel a coarse cluster: an image a column, a level a row, the coarsest on top.

    A part has the colour of its first image on the finest level, white for an image alone, and a
    line on either side.

    Args:
        label_NH: (N, H) int, finest level first, -1 for images alone.
        image_id_N: (N,) int64, written on the tiles.
        drawn: rows (M,) by coarse cluster, as from ``members`` or some of them in the same order.
        images: (height, width, 3) uint8 by row, all of one size; shown in place of the image ids.
    """
    from matplotlib.figure import Figure

    first = next(iter(images.values())) if images else np.empty((1, 1))
    tall = first.shape[0] / first.shape[1]
    levels, columns = label_NH.shape[1], max(len(row_M) for row_M in drawn.values())
    size = (TILE * columns + 1.5, (TILE * tall * levels + 0.6) * len(drawn))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for panel, (cluster, row_M) in zip(panels, drawn.items(), strict=True):
        _draw_tiles(panel, label_NH[row_M], tall)
        for column, row in enumerate(row_M):
            for level in range(levels):
                if images:
                    _draw_image(panel, images[row], column, level, tall)
                else:
                    panel.text(
                        column + 0.5, level + 0.5, str(image_id_N[row]),
                        rotation=90, fontsize=6, ha="center", va="center",
                    )  # fmt: skip
        panel.set(xlim=(0, columns), ylim=(0, levels))
        whole = int((label_NH[:, -1] == cluster).sum())
        some = "" if len(row_M) == whole else f"{len(row_M)} of "
        panel.set_title(f"cluster {cluster}: {some}{whole} images", fontsize="medium", loc="left")
    return figure


def tile_colours(label_MH: np.ndarray) -> np.ndarray:
    """The colour of every image on every level, (H, M, 3); ``label_MH`` (M, H) of the drawn images."""
    import matplotlib

    colours = np.array(matplotlib.colormaps[COLOURS].colors)  # type: ignore[attr-defined]
    first_HM = np.stack([_first_places(level_M) for level_M in label_MH.T])
    begins_M = first_HM[0] == np.arange(len(label_MH))
    part_M = begins_M.cumsum() - 1
    colour_HM3 = colours[part_M[first_HM] % len(colours)]
    return np.where(label_MH.T[:, :, None] < 0, WHITE, colour_HM3)


def _first_places(label_M: np.ndarray) -> np.ndarray:
    """The first place (M,) that has the same label; an image alone its own."""
    _, first, which = np.unique(single_outliers(label_M), return_index=True, return_inverse=True)
    return first[which]


def _draw_tiles(panel: Axes, label_MH: np.ndarray, tall: float) -> None:
    count, levels = label_MH.shape
    panel.imshow(
        tile_colours(label_MH), origin="lower", extent=(0, count, 0, levels), aspect=tall,
        interpolation="nearest",
    )  # fmt: skip
    for level, label_M in enumerate(label_MH.T):
        label_M = single_outliers(label_M)
        ends = [0, *(np.flatnonzero(np.diff(label_M)) + 1), count]
        panel.vlines(ends, level, level + 1, color="black", linewidth=1.5)
    panel.hlines(range(levels + 1), 0, count, color="black", linewidth=0.5)
    names = [f"level {level + 1}" for level in range(levels)]
    panel.set_yticks(np.arange(levels) + 0.5, [f"{names[0]} (finest)", *names[1:]])
    panel.set_xticks([])
    panel.spines[:].set_visible(False)


def _draw_image(panel: Axes, image: np.ndarray, column: int, level: int, tall: float) -> None:
    inner = (column + FRAME, column + 1 - FRAME, level + FRAME, level + 1 - FRAME)
    panel.imshow(image, extent=inner, aspect=tall)
