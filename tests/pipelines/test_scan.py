"""``reid scan`` and ``reid synth`` as they are called: report and exit code."""

from pathlib import Path

import pytest

from pipelines import scan, synth
from pipelines.scan import ScanJob
from reid_core.errors import UsageError
from tests.data.trees import MARKET, jpeg, plant


def test_a_sound_set(capsys: pytest.CaptureFixture[str], small_set: str) -> None:
    assert scan.run(ScanJob(root=small_set, strict=True)) == 0
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if "|" in line]
    assert table == [
        ["subset", "ids", "images", "cameras", "published ids", "published images"],
        ["train", "4", "48", "3", "-", "-"],
        ["query", "4", "12", "3", "-", "-"],
        ["gallery", "4", "36", "3", "-", "-"],
    ]
    assert "note: synthetic, drawn by reid synth" in out
    assert "0 unreadable, 0 queries without a match" in out


def test_counts_beside_published_ones_and_notes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert scan.main([plant(tmp_path, MARKET)]) == 0
    out = capsys.readouterr().out
    assert "  train |   1 |      2 |       2 |           751 |            12936" in out
    assert "note: 1 junk images (pid -1) of train are left out" in out


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--strict"], 1), (["--no-decode"], 0)])
def test_every_broken_image_is_listed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: list[str], code: int
) -> None:
    root = plant(tmp_path, [f"{i}.jpg" for i in range(40)])
    (tmp_path / "7.jpg").write_bytes(jpeg(64, 128)[:-200])
    (tmp_path / "8.jpg").write_bytes(b"")
    (tmp_path / "9.jpg").write_bytes(b"a page of text")
    assert scan.main([root, *flags]) == code
    out = capsys.readouterr().out
    listed = [line.split(": ")[1] for line in out.splitlines() if line.startswith("unreadable")]
    assert listed == ([] if flags == ["--no-decode"] else ["7.jpg", "8.jpg", "9.jpg"])


def test_a_query_that_nothing_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = plant(tmp_path, [*MARKET, "query/0009_c1s1_000151_00.jpg"])
    assert scan.run(ScanJob(root=root)) == 1
    out = capsys.readouterr().out
    assert "another camera: query/0009_c1s1_000151_00.jpg (pid 9, camera 1)" in out
    assert "1 queries without a match" in out


def test_a_folder_without_ids_is_no_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert scan.run(ScanJob(root=plant(tmp_path, ["a.jpg"]))) == 0
    assert " train |   - |      1 |       - |" in capsys.readouterr().out


def test_no_images_and_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images"):
        scan.run(ScanJob(root=str(tmp_path)))
    with pytest.raises(UsageError, match="no such folder"):
        scan.run(ScanJob(root=str(tmp_path / "nowhere")))
    with pytest.raises(UsageError, match="there are auto, manifest"):
        scan.run(ScanJob(root=str(tmp_path), layout="mars"))


def test_a_manifest_and_a_uri(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plant(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "own.csv").write_text("path,camid\na.jpg,3\n")
    assert scan.main([f"{tmp_path.as_uri()}/own.csv", "--strict"]) == 0
    assert " train |   - |      1 |       1 |" in capsys.readouterr().out


def test_synth_draws_what_scan_finds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = str(tmp_path / "set")
    assert synth.main([out, "--ids", "4", "--cameras", "2", "--images", "1"]) == 0
    assert f"{out}: 8 images of 4 identities" in capsys.readouterr().out
    assert scan.main([out, "--strict"]) == 0
