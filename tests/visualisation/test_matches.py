import numpy as np
from matplotlib.colors import to_hex

from reid_core.visualisation.matches import FRAMES, QUERY_FRAME, matches_figure
from reid_core.visualisation.png import png


def image(value: int) -> np.ndarray:
    return np.full((8, 4, 3), value, np.uint8)


def test_a_row_a_query_nearest_first_framed_by_identity() -> None:
    found = [[image(10), image(20), image(30)], [image(40)]]
    figure = matches_figure(
        [image(1), image(2)], found, [[True, False, None], [True]], "found by this"
    )
    panel = figure.axes[0]
    shown = [(np.asarray(one.get_array()).flat[0], one.get_extent()) for one in panel.images]
    assert [value for value, _ in shown] == [1, 10, 20, 30, 2, 40]
    left, top = np.array([(extent[0], extent[3]) for _, extent in shown]).T
    assert (np.diff(left[:4]) > 0).all()
    assert np.unique(top[:4]).size == 1
    assert top[4] > top[0]
    np.testing.assert_allclose(left[[4, 5]], left[[0, 1]])
    frames = [to_hex(patch.get_facecolor()) for patch in panel.patches]
    green, red, grey = FRAMES[True], FRAMES[False], FRAMES[None]
    assert frames == [QUERY_FRAME, green, red, grey, QUERY_FRAME, green]
    assert [text.get_text() for text in figure.texts] == ["query", "found by this"]
    assert len(png(figure)) > 1000


def test_the_image_lies_inside_its_frame_and_in_front_of_it() -> None:
    panel = matches_figure([image(1)], [[image(2)]], [[True]]).axes[0]
    for shown, frame in zip(panel.images, panel.patches, strict=True):
        left, right, bottom, top = shown.get_extent()
        box = frame.get_bbox()  # type: ignore[attr-defined]
        assert box.x0 < left < right < box.x1
        assert box.y0 < top < bottom < box.y1
        assert shown.get_zorder() > frame.get_zorder()


def test_a_query_with_an_empty_gallery_stands_alone() -> None:
    panel = matches_figure([image(1)], [[]], [[]]).axes[0]
    assert len(panel.images) == 1
