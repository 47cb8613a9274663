import numpy as np
import pytest

from reid_core.visualisation.png import png
from reid_core.visualisation.tsne import tsne_figure, tsne_map

NONE = np.empty((0, 2), np.float32), np.empty(0, np.int64)


def blobs(each: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around three orthogonal directions, (3 each, 8) float32, and which."""
    group = np.repeat(np.arange(3), each)
    x = np.eye(8)[group] + 0.05 * np.random.default_rng(0).standard_normal((3 * each, 8))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), group


def test_far_groups_stay_apart_and_near_rows_together() -> None:
    x, group = blobs(15)
    place = tsne_map(x, seed=1)
    gap = np.linalg.norm(place[:, None] - place, axis=2)
    np.fill_diagonal(gap, np.inf)
    assert (group[gap.argmin(axis=1)] == group).all()
    np.testing.assert_array_equal(place, tsne_map(x, seed=1))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_few_or_equal_rows(count: int) -> None:
    x, _ = blobs(4)
    assert np.isfinite(tsne_map(x[:count], seed=0)).all()
    assert np.isfinite(tsne_map(np.repeat(x[:1], count, axis=0), seed=0)).all()


def test_images_are_full_and_supports_hollow() -> None:
    place, group = np.arange(8.0).reshape(4, 2), np.array([7, 2, 7, 2])
    figure = tsne_figure(place[:2], group[:2], place[2:], group[2:], kind="cluster")
    full_2, hollow_2, full_7, hollow_7, key = figure.axes[0].collections
    assert full_2.get_offsets().tolist() == [[2, 3]]
    assert hollow_2.get_offsets().tolist() == [[6, 7]]
    assert full_7.get_offsets().tolist() == [[0, 1]]
    assert len(hollow_7.get_facecolors()) == len(key.get_offsets()) == 0
    np.testing.assert_array_equal(full_7.get_facecolors(), hollow_7.get_edgecolors())
    assert (full_2.get_facecolors() != full_7.get_facecolors()).any()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["cluster 2", "cluster 7", "support sample"]
    alone = tsne_figure(place, group, *NONE, kind="id")
    assert len(alone.legends[0].get_texts()) == 2
    assert png(alone) != png(figure)
