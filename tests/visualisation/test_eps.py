from pathlib import Path

import pytest
from matplotlib.image import imread

from reid_core.visualisation.eps import PANELS, plot_scan

EPS = (0.3, 0.4, 0.5)


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_png_is_written(tmp_path: Path, with_ids: bool) -> None:
    measures = [name for name in PANELS if with_ids or name != "ari_singletons"]
    rows = [{"eps": eps} | dict.fromkeys(measures, eps * (1 - eps)) for eps in EPS]
    pictures = []
    for chosen, name in ((1, "a.png"), (2, "b.png")):
        path = tmp_path / "new" / name
        plot_scan(rows, chosen, path)
        pictures.append(imread(path))
    height, width, _ = pictures[0].shape
    assert width > 1000
    assert height > 300
    assert (pictures[0] != pictures[1]).any()  # the mark moves


def test_a_uri_and_one_row(tmp_path: Path) -> None:
    plot_scan([{"eps": 0.5} | dict.fromkeys(PANELS, 0.0)], 0, f"file://{tmp_path}/scan.png")
    assert imread(tmp_path / "scan.png").any()
