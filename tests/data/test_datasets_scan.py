"""``scan`` itself: any folder, any file system, the fingerprint, ids, wrong use."""

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from reid_core.data.datasets import LAYOUTS, listing, scan
from reid_core.errors import UsageError
from reid_core.tables import IMAGES, check_table
from tests.data.trees import DUKE, MARKET, jpeg, plant, plant_msmt17

TREE = ("b/2.JPG", "a.png", "b/1.webp", "c d/é.jpeg")


def test_any_tree_of_images(tmp_path: Path) -> None:
    found = scan(plant(tmp_path, TREE))
    assert found.layout == "folder"
    assert found.images["path"].to_pylist() == ["a.png", "b/1.webp", "b/2.JPG", "c d/é.jpeg"]
    assert found.images["image_id"].to_pylist() == [0, 1, 2, 3]
    assert set(found.images["split"].to_pylist()) == {"train"}
    assert found.images["pid"].null_count == found.images["camid"].null_count == 4
    assert check_table(found.images, IMAGES, "scan") == found.images


def test_hidden_files_and_other_files_do_not_count(tmp_path: Path) -> None:
    plant(tmp_path, [*TREE, "b/._1.jpg", ".cache/x.jpg", "__MACOSX/y.jpg", "notes.txt"])
    assert len(scan(str(tmp_path)).images) == 4


def test_links_are_followed(tmp_path: Path) -> None:
    plant(tmp_path / "disk", MARKET)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "market1501").symlink_to(tmp_path / "disk")
    assert scan(str(tmp_path / "data")).layout == "market1501"


@pytest.mark.parametrize("layout", ["folder", "market1501"])
def test_a_layout_may_be_named(tmp_path: Path, layout: str) -> None:
    assert scan(plant(tmp_path, MARKET), layout).layout == layout


def test_a_uri_gives_the_same_table(tmp_path: Path) -> None:
    plant(tmp_path, MARKET)
    local, uri = scan(str(tmp_path)), scan(f"{tmp_path.as_uri()}/")
    assert uri.images == local.images
    assert uri.fingerprint == local.fingerprint
    assert uri.root == tmp_path.as_uri()


def test_a_manifest_behind_a_uri(tmp_path: Path) -> None:
    plant(tmp_path, ["a.jpg"])
    (tmp_path / "own.csv").write_text("path\na.jpg\n")
    assert scan(f"{tmp_path.as_uri()}/own.csv").root == tmp_path.as_uri()


def test_a_file_system_that_is_not_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant_msmt17(tmp_path)
    store = pafs.FileSystem.from_uri("mock:///bucket")[0]
    store.create_dir("bucket")
    pafs.copy_files(str(tmp_path), "bucket/set", destination_filesystem=store)
    monkeypatch.setattr(listing, "open_folder", lambda _: (store, "bucket/set"))
    assert scan("mock://bucket/set").images == scan(str(tmp_path)).images


def test_the_order_of_the_listing_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backwards(pafs.LocalFileSystem):
        def get_file_info(self, what):
            infos = super().get_file_info(what)
            return infos[::-1] if isinstance(infos, list) else infos

    first = scan(plant(tmp_path, TREE))
    monkeypatch.setattr(listing, "open_folder", lambda root: (Backwards(), root))
    second = scan(str(tmp_path))
    assert second.images == first.images
    assert second.fingerprint == first.fingerprint


def test_fingerprint_is_stable_and_moves_with_the_folder(tmp_path: Path) -> None:
    root = plant(tmp_path / "one", MARKET)
    before = scan(root).fingerprint
    assert scan(root).fingerprint == before
    (tmp_path / "one" / "bounding_box_train" / "readme.txt").write_text("not an image")
    (tmp_path / "one").rename(tmp_path / "two")
    assert scan(str(tmp_path / "two")).fingerprint == before
    assert len(before) == 32


@pytest.mark.parametrize("change", ["size", "time", "name", "more", "less"])
def test_fingerprint_changes_with_any_image(tmp_path: Path, change: str) -> None:
    root = plant(tmp_path, TREE)
    before, image = scan(root).fingerprint, tmp_path / "a.png"
    status = image.stat()
    match change:
        case "size":
            image.write_bytes(jpeg(9, 9) + b"x")
            os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "time":
            os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        case "name":
            image.rename(tmp_path / "z.png")
        case "more":
            plant(tmp_path, ["d.jpg"])
        case "less":
            image.unlink()
    assert scan(root).fingerprint != before


def test_no_image_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, DUKE)

    def refuse(*_: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(listing.Listing, "read", refuse)
    assert len(scan(root).images) == 3


def test_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder; give the folder"):
        scan(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"a.jpg: no such folder"):
        scan(str(Path(plant(tmp_path, ["a.jpg"])) / "a.jpg"))
    with pytest.raises(UsageError, match="nosuch://x"):
        scan("nosuch://x")


@pytest.mark.parametrize("layout", ["auto", *LAYOUTS])
def test_a_folder_without_images(tmp_path: Path, layout: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=rf"{tmp_path}: no images \(.jpg "):
        scan(str(tmp_path), layout)


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layout 'mars'; there are auto, manifest, msmt17, duk"):
        scan(str(tmp_path), "mars")
