"""Market-1501, DukeMTMC-reID and PersonX: ids and cameras as in the names, junk, nesting, what is missing."""

from pathlib import Path

import pytest

from reid_core.data.datasets import scan
from tests.data.trees import DUKE, MARKET, PERSONX, plant

JUNK = "bounding_box_train/-1_c2s1_000401_01.jpg"


def test_market1501_by_hand(tmp_path: Path) -> None:
    found = scan(plant(tmp_path, MARKET))

    assert found.layout == "market1501"
    assert found.images.drop(["tracklet"]).to_pylist() == [
        {"image_id": i, "path": path, "split": split, "pid": pid, "camid": camid}
        for i, (path, split, pid, camid) in enumerate(
            [
                ("bounding_box_test/-1_c3s6_000810_02.jpg", "gallery", -1, 3),
                ("bounding_box_test/0000_c4s6_000810_01.jpg", "gallery", 0, 4),
                ("bounding_box_test/0003_c4s6_000810_00.jpg", "gallery", 3, 4),
                ("bounding_box_train/0002_c1s1_000451_03.jpg", "train", 2, 1),
                ("bounding_box_train/0002_c2s1_000301_01.jpg", "train", 2, 2),
                ("query/0003_c1s1_000151_00.jpg", "query", 3, 1),
            ]
        )
    ]
    assert found.images["tracklet"].null_count == 6
    assert found.published["train"] == (751, 12936)
    assert found.notes == (
        "1 junk images (pid -1) of train are left out",
        "1 junk images (pid -1) of query and gallery; the evaluation drops them",
    )


@pytest.mark.parametrize("nested", ["Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"])
def test_nested_below_the_root(tmp_path: Path, nested: str) -> None:
    plant(tmp_path / nested, MARKET)

    found = scan(str(tmp_path))

    assert found.layout == "market1501"
    assert found.root == str(tmp_path)
    assert found.images["path"][0].as_py() == f"{nested}/bounding_box_test/-1_c3s6_000810_02.jpg"


def test_other_folders_of_the_archive_do_not_count(tmp_path: Path) -> None:
    plant(tmp_path, [*MARKET, "gt_bbox/0001_c1s1_001051_00.jpg", "a.jpg"])
    (tmp_path / "query" / "Thumbs.db").write_bytes(b"x")
    assert len(scan(str(tmp_path)).images) == 6


def test_own_images_in_this_form_are_not_compared_with_market(tmp_path: Path) -> None:
    names = [path.replace("_c", "_c1").replace("s1_", "_") for path in MARKET]
    found = scan(plant(tmp_path, names))
    assert found.layout == "market1501"
    assert found.published == {}
    assert "not Market-1501 itself: images are named otherwise" in found.notes


def test_dukemtmc(tmp_path: Path) -> None:
    found = scan(plant(tmp_path, DUKE))
    assert found.layout == "dukemtmc"
    assert found.images["pid"].to_pylist() == [5, 1, 5]
    assert found.images["camid"].to_pylist() == [8, 2, 2]
    assert found.published["gallery"] == (1110, 17661)
    assert "withdrawn by its authors" in found.notes[0]


def test_personx_by_its_cameras_or_its_folder(tmp_path: Path) -> None:
    by_camera = scan(plant(tmp_path / "subset1", PERSONX))
    by_name = scan(plant(tmp_path / "PersonX", [path.replace("_c12", "_c4") for path in PERSONX]))
    assert by_camera.layout == by_name.layout == "personx"
    assert set(by_camera.images["camid"].to_pylist()) == {3, 4, 8, 10, 11, 12}
    assert by_camera.published["query"] == (856, 5136)


@pytest.mark.parametrize("layout", ["auto", "market1501", "dukemtmc"])
def test_a_missing_folder_is_named(tmp_path: Path, layout: str) -> None:
    plant(tmp_path, [path for path in MARKET if not path.startswith("query")])
    with pytest.raises(ValueError, match=rf"{tmp_path}: no images in query; complete"):
        scan(str(tmp_path), layout)


def test_images_with_other_names_are_listed(tmp_path: Path) -> None:
    plant(tmp_path, [*MARKET, *(f"query/holiday{i}.jpg" for i in range(5))])
    with pytest.raises(ValueError, match=r"PID_cCAMERA.*5 \(query/holiday0.jpg, .*\.\.\.\)"):
        scan(str(tmp_path))


def test_two_sets_below_one_root(tmp_path: Path) -> None:
    plant(tmp_path / "market", MARKET)
    plant(tmp_path / "duke", DUKE)
    with pytest.raises(ValueError, match=r"duke \(dukemtmc\), market \(market1501\)"):
        scan(str(tmp_path))
    assert scan(str(tmp_path), "dukemtmc").layout == "dukemtmc"
    assert scan(str(tmp_path / "market")).layout == "market1501"


@pytest.mark.parametrize("layout", ["market1501", "dukemtmc", "personx"])
def test_an_explicit_layout_that_does_not_fit(tmp_path: Path, layout: str) -> None:
    plant(tmp_path, ["a.jpg"])
    with pytest.raises(ValueError, match=f"not layout '{layout}'; it needs the folders bounding"):
        scan(str(tmp_path), layout)
