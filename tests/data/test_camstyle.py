import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid_core.data.camstyle import styled_copies
from reid_core.data.decode import ImageStore
from reid_core.data.loader import AugmentedImages, Place, TrainImages
from reid_core.settings import ImageConfig

PATHS = ["train/a.jpg", "train/b.jpg"]
COPIES = ["styled/a_fake_1to2.jpg", "styled/a_fake_1to3.jpg"]


def fill(root: Path, *others: str) -> None:
    for number, path in enumerate([*PATHS, *COPIES, *others]):
        (root / path).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 40 * number, np.uint8)).save(root / path)


def test_copies_are_found_by_name(tmp_path: Path) -> None:
    fill(tmp_path, "styled/c_fake_1to2.jpg", "styled/a.jpg")
    assert styled_copies(str(tmp_path), "styled", PATHS) == {PATHS[0]: COPIES}
    assert styled_copies(str(tmp_path), "", PATHS) == {}


def test_a_missing_folder_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert styled_copies(str(tmp_path), "styled", PATHS) == {}
    assert "styled" in caplog.text


def test_a_copy_stands_in_now_and_then_and_always_at_the_same_place(tmp_path: Path) -> None:
    fill(tmp_path)
    view = ImageConfig(
        height=16, width=16, flip=0, pad=0, erase=0, camstyle_dir="styled", camstyle=0.3
    )
    images = {0: TrainImages(ImageStore(str(tmp_path)), PATHS)}
    one, two = (AugmentedImages(images, (view,), seed=1) for _ in range(2))
    places = [Place(0, 0, position, 0, 0) for position in range(400)]
    taken = Counter(one._path(place) for place in places)
    assert set(taken) == {PATHS[0], *COPIES}
    assert taken[PATHS[0]] == pytest.approx(280, abs=30)
    assert [two._path(place) for place in places] == [one._path(place) for place in places]
    assert {one._path(Place(0, 1, position, 0, 0)) for position in range(20)} == {PATHS[1]}
    assert all((one[p][0] == two[p][0]).all() for p in places[:10])
