from itertools import groupby

import numpy as np
import pytest

from reid_core.visualisation.hierarchy import (
    hierarchy_figure,
    members,
    most_divided,
    tile_colours,
)
from reid_core.visualisation.png import png

# Finest level first, an image a column. Coarse cluster 0: parts {0, 2}, {5}, {6}; 1: {1, 4}, {3, 7}; 2: {8, 9}.
LABEL = np.array(
    [
        [0, 1, 0, 2, 1, -1, -1, 2, 3, 3, -1],
        [0, 1, 0, 2, 1, 0, -1, 2, 3, 3, -1],
        [0, 1, 0, 1, 1, 0, 0, 1, 2, 2, -1],
    ]
).T
IDS = 100 + 10 * np.arange(len(LABEL))


def nested(count: int, seed: int) -> np.ndarray:
    """Random labels (count, 3), each level inside the next; groups of one are -1."""
    rng = np.random.default_rng(seed)
    finest = rng.integers(0, count // 2, count)
    middle = rng.integers(0, count // 4, count)[finest]
    coarse = rng.integers(0, 3, count)[middle]
    return np.stack([_numbered(level) for level in (finest, middle, coarse)], axis=1)


def _numbered(level: np.ndarray) -> np.ndarray:
    _, which, size = np.unique(level, return_inverse=True, return_counts=True)
    return np.where(size[which] > 1, which, -1)


def test_the_most_divided_clusters() -> None:
    assert most_divided(LABEL, 2) == [0, 1]
    assert most_divided(LABEL, 9) == [0, 1, 2]
    assert most_divided(LABEL[:, 2:], 2) == [0, 1]  # ties: the smaller number


def test_members_by_hand() -> None:
    assert members(LABEL, 0).tolist() == [0, 2, 5, 6]
    assert members(LABEL, 1).tolist() == [1, 4, 3, 7]


@pytest.mark.parametrize("seed", range(3))
def test_members_of_a_part_lie_side_by_side(seed: int) -> None:
    label = nested(60, seed)
    for cluster in range(label.max(initial=0)):
        row = members(label, cluster)
        assert sorted(row) == np.flatnonzero(label[:, -1] == cluster).tolist()
        for level in label[row].T:
            parts = [part for part, _ in groupby(level) if part >= 0]
            assert len(parts) == len(set(parts))


def test_a_colour_a_part_kept_upwards_and_white_alone() -> None:
    colour = tile_colours(LABEL[members(LABEL, 0)])  # finest: 0 0 - -, middle: 0 0 0 -, coarse: 0
    white = (colour == 1).all(axis=2).tolist()
    assert white == [[False, False, True, True], [False, False, False, True], [False] * 4]
    assert len(np.unique(colour[~np.array(white)], axis=0)) == 1
    one, two = tile_colours(LABEL[members(LABEL, 1)])[0, 1:3]
    assert (one != two).any()


def test_a_panel_a_cluster_and_a_tile_an_image_and_level() -> None:
    drawn = {1: members(LABEL, 1)[[0, 3]], 2: members(LABEL, 2)}
    figure = hierarchy_figure(LABEL, IDS, drawn)
    assert [panel.get_title("left") for panel in figure.axes] == [
        "cluster 1: 2 of 4 images",
        "cluster 2: 2 images",
    ]
    first = figure.axes[0]
    assert [text.get_text() for text in first.texts] == ["110"] * 3 + ["170"] * 3
    assert [text.get_text() for text in first.get_yticklabels()] == [
        "level 1 (finest)",
        "level 2",
        "level 3",
    ]
    assert len(png(figure)) > 1000


def test_images_in_place_of_ids() -> None:
    row = members(LABEL, 2)
    images = {i: np.full((6, 3, 3), 20 * i, np.uint8) for i in row.tolist()}
    panel = hierarchy_figure(LABEL, IDS, {2: row}, images).axes[0]
    assert not panel.texts
    shown = [np.asarray(image.get_array()).flat[0] for image in panel.images[1:]]
    assert shown == [160] * 3 + [180] * 3
