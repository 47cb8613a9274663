from io import BytesIO

import numpy as np
from matplotlib.image import imread

from reid_core.labelling.quality import clustering_quality
from reid_core.visualisation.png import png
from reid_core.visualisation.quality import PANELS, curve, quality_figure


def metrics(gain: float) -> list[dict]:
    """The lines of a run of three rounds; purity of round 1 is not known."""
    names = [name for panel in list(PANELS.values())[2:] for name in panel]
    lines: list[dict] = [{"kind": "round", "round": 0, "loss_target": 1.0}]
    lines += [{"kind": "evaluation", "round": i, "mAP": gain * i, "rank1": None} for i in (0, 2)]
    lines += [{"kind": "quality", "round": i} | dict.fromkeys(names, gain * i) for i in range(3)]
    del lines[-2]["purity_clustered"]
    return lines


def test_a_curve_rises_and_the_last_line_of_a_round_wins() -> None:
    lines = [{"round": 2, "a": 0.5}, {"round": 0, "a": 0.1}, {"round": 1, "a": None}, {"round": 3}]
    assert curve(lines, "a") == ([0, 2], [0.1, 0.5])
    assert curve([*lines, {"round": 2, "a": 0.7}], "a") == ([0, 2], [0.1, 0.7])
    assert curve([], "a") == ([], [])


def test_panels_show_what_is_logged() -> None:
    logged = clustering_quality(np.array([0, 0, 1]), np.array([0, 0, 1]))
    assert {name for panel in PANELS.values() for name in panel} == {*logged, "mAP", "rank1"}


def test_a_line_a_run_and_kind() -> None:
    figure = quality_figure({"one": metrics(0.1), "two": metrics(0.3)})
    drawn = {
        panel.get_title(): [line.get_xydata().tolist() for line in panel.get_lines()]
        for panel in figure.axes
    }
    assert drawn.keys() == PANELS.keys()
    assert drawn["mAP"] == [[[0, 0], [2, 0.2]], [[0, 0], [2, 0.6]]]
    assert drawn["rank-1"] == [[], []]
    assert drawn["ARI"][0] == [[0, 0], [1, 0.1], [2, 0.2]]
    assert [len(line) for line in drawn["purity"]] == [3, 2, 3, 2]
    colours = [line.get_color() for line in figure.axes[3].get_lines()]
    assert colours == ["C0", "C0", "C1", "C1"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["one", "two", "outliers as clusters of one", "clustered images only"]
    height, width, _ = imread(BytesIO(png(figure))).shape
    assert width > height > 300
