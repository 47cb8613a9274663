"""MSMT17 in all four layouts, and what can be wrong with its lists."""

from pathlib import Path

import pytest

from reid_core.data.check import query_problems
from reid_core.data.datasets import scan
from tests.data.trees import plant, plant_msmt17

BOXES = (
    "bounding_box_train/0000_c1_0000.jpg",
    "query/0007_c14_0002.jpg",
    "bounding_box_test/0007_c15_0001.jpg",
)


def rows(root: str) -> set[tuple]:
    images = scan(root).images.to_pylist()
    return {(row["split"], row["pid"], row["camid"]) for row in images}


def test_no_person_is_taken_for_a_distractor(tmp_path: Path) -> None:
    plant_msmt17(tmp_path / "lists")
    plant(tmp_path / "MSMT17_V1", [path.replace("0007", "0000") for path in BOXES])
    for root in ("lists", "MSMT17_V1"):
        assert len(query_problems(scan(str(tmp_path / root)).images)) == 0


def test_v1_with_lists(tmp_path: Path) -> None:
    root = plant_msmt17(tmp_path)
    found = scan(root)
    assert rows(root) == {("train", 1, 1), ("train", 2, 14), ("query", 1, 3), ("gallery", 1, 15)}
    assert found.images["path"][0].as_py() == "test/0000/0000_002_03_0303noon_0015_1.jpg"
    assert found.layout == "msmt17"
    assert found.published["gallery"] == (3060, 82161)
    assert "V1 with lists; train is list_train + list_val" in found.notes[0]


def test_v2_with_lists_as_it_is_unpacked(tmp_path: Path) -> None:
    inner = tmp_path / "MSMT17_V2" / "MSMT17_V2"
    plant_msmt17(inner, "mask_train_v2", "mask_test_v2")
    plant(tmp_path / "__MACOSX" / "mask_test_v2" / "0000", ["._0000_002_03_0303noon_0015_1.jpg"])
    found = scan(str(tmp_path))
    assert rows(str(inner)) == rows(str(tmp_path))
    assert len(found.images) == 4
    assert "V2 (faces masked)" in found.notes[0]


def test_folders_of_market(tmp_path: Path) -> None:
    root = plant(tmp_path / "MSMT17_V1", BOXES)
    found = scan(str(tmp_path))
    assert rows(root) == {("train", 1, 1), ("query", 8, 14), ("gallery", 8, 15)}
    assert found.layout == "msmt17"
    assert found.notes == (
        "MSMT17 in Market-1501's form, version by the folder's name MSMT17_V1: V1",
        "person n of the files is pid n + 1; train and test number their persons separately",
    )


def test_ecn_form_leaves_the_transferred_images_out(tmp_path: Path) -> None:
    camstyle = "bounding_box_train_camstyle/0000_c1_0000_fake_1to2.jpg"
    found = scan(plant(tmp_path / "msmt17", [*BOXES, camstyle]))
    assert len(found.images) == 3
    assert found.notes[0] == "MSMT17 in ECN's form, version by the folder's name msmt17: unknown"


def test_the_user_may_say_that_a_folder_is_msmt17(tmp_path: Path) -> None:
    root = plant(tmp_path / "target", BOXES)
    assert scan(root).layout == "market1501"
    assert scan(root, "msmt17").published["train"] == (1041, 32621)


def test_missing_lists_are_named(tmp_path: Path) -> None:
    root = plant_msmt17(tmp_path)
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(ValueError, match=f"{root}: list_val.txt missing"):
        scan(root)


def test_lists_that_name_absent_images(tmp_path: Path) -> None:
    root = plant_msmt17(tmp_path)
    absent = "".join(f"0009/0009_00{i}_01_x_{i}.jpg 9\n" for i in range(5))
    (tmp_path / "list_gallery.txt").write_text(absent)
    with pytest.raises(ValueError, match=r"not there: 5 \(test/0009/0009_000_01_x_0.jpg, .*\.\.\."):
        scan(root)


@pytest.mark.parametrize("line", ["0000/0000_000_01_x.jpg", "0000.jpg 0", "", "0000_0_1_x.jpg one"])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    root = plant_msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_text(f"0000/0000_002_03_0303noon_0015_1.jpg 0\r\n{line}\n")
    with pytest.raises(ValueError, match=r"list_query.txt, line 2: "):
        scan(root)


def test_a_changed_list_is_changed_data(tmp_path: Path) -> None:
    root = plant_msmt17(tmp_path)
    before = scan(root).fingerprint
    (tmp_path / "list_train.txt").write_text("0000/0000_000_01_0303morning_0015_0.jpg 55\n")
    assert scan(root).fingerprint != before


def test_an_explicit_layout_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it needs train/ and test/ \(V1\)"):
        scan(plant(tmp_path, ["train/1.jpg", "test/1.jpg"]), "msmt17")
