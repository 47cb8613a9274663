"""Own data by a table: columns, defaults, and every row that is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reid_core.data.datasets import scan
from reid_core.errors import UsageError
from tests.data.trees import MARKET, plant, record


@pytest.fixture
def root(tmp_path: Path) -> Path:
    plant(tmp_path, ["a.jpg", "cam1/b.png", "cam1/c.jpg"])
    return tmp_path


def write(root: Path, text: str, name: str = "manifest.csv") -> str:
    (root / name).write_text(text)
    return str(root)


def test_all_columns_of_a_csv(root: Path) -> None:
    write(
        root,
        "split,camid,path,pid,tracklet,colour\n"
        "query,2,./cam1/b.png,7,70,red\n,,a.jpg,,,\ngallery,1,cam1/c.jpg,7,,blue\n",
    )
    found = scan(str(root))
    assert found.layout == "manifest"
    assert found.notes == ("columns ignored: colour",)
    assert found.published == {}
    assert found.images.to_pylist() == [
        record(0, "a.jpg", "train", None, None, None),
        record(1, "cam1/b.png", "query", 7, 2, 70),
        record(2, "cam1/c.jpg", "gallery", 7, 1, None),
    ]


def test_a_path_column_is_enough(root: Path) -> None:
    images = scan(write(root, "path\na.jpg\n")).images
    assert images.to_pylist() == [record(0, "a.jpg", "train", None, None, None)]


def test_parquet_with_other_integer_types(root: Path) -> None:
    table = pa.table(
        {
            "path": pa.array(["a.jpg", "cam1/b.png"], pa.large_string()),
            "pid": pa.array([3.0, None]),
            "camid": pa.array([1, 2], pa.uint8()),
        }
    )
    pq.write_table(table, root / "crops.parquet")
    found = scan(str(root / "crops.parquet"))
    assert found.root == str(root)
    assert found.images["pid"].to_pylist() == [3, None]
    assert found.images["camid"].to_pylist() == [1, 2]


def test_a_relative_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "path\na.jpg\n", "own.csv")
    monkeypatch.chdir(root)
    assert scan("own.csv").root == str(root)


def test_a_manifest_goes_before_the_names(tmp_path: Path) -> None:
    plant(tmp_path, MARKET)
    write(tmp_path, f"path\n{MARKET[0]}\n")
    assert len(scan(str(tmp_path)).images) == 1
    assert len(scan(str(tmp_path), "market1501").images) == 6


def test_junk_of_train_is_left_out_and_said(root: Path) -> None:
    found = scan(write(root, "path,pid\na.jpg,-1\ncam1/b.png,\ncam1/c.jpg,0\n"))
    assert found.images["pid"].to_pylist() == [None, 0]
    assert found.notes == ("1 junk images (pid -1) of train are left out",)


def test_a_changed_manifest_is_changed_data(root: Path) -> None:
    before = scan(write(root, "path,pid\na.jpg,1\n")).fingerprint
    assert scan(write(root, "path,pid\na.jpg,23\n")).fingerprint != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.jpg\n", "no column path; it has file"),
        ("path\n../a.jpg\n", r"lead out of its folder: 1 \(../a.jpg\)"),
        ("path\ncam1/../../a.jpg\n", "lead out of its folder"),
        ("path\n/etc/passwd\n", "lead out of its folder"),
        ("path\n//etc/passwd\n", "lead out of its folder"),
        ("path\ns3://bucket/a.jpg\n", "lead out of its folder"),
        ("path\n..\n", "lead out of its folder"),
        ("path\na.jpg\n./a.jpg\n", r"more than once: 1 \(a.jpg\)"),
        ("path\na.jpg\nx.jpg\ny.jpg\n", r"not there: 2 \(x.jpg, y.jpg\)"),
        ("path\ncam1\n", r"not there: 1 \(cam1\)"),
        ("path,split\na.jpg,test\n", r"unknown split: 1 \(test\); use train, query, gallery"),
        ("path,pid\na.jpg,-2\n", "pid -2 in 1 rows; must be -1 or more"),
        ("path,camid\na.jpg,-1\n", "camid -1 in 1 rows; must be 0 or more"),
        ("path,pid\na.jpg,one\n", "no readable table .*'one'"),
        ("path,pid\n,1\n", "1 rows without a path"),
        ("", "no readable table"),
        ("path\n", "names no images"),
        ("path,pid\na.jpg,-1\n", "names no images"),
    ],
)
def test_what_is_refused(root: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{root}/manifest.csv.*{message}"):
        scan(write(root, text))


@pytest.mark.parametrize(("link", "image"), [("a.jpg", "a.jpg"), ("cam1", "cam1/b.png")])
def test_a_link_that_leads_out(
    link: str,
    image: str,
    root: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = tmp_path_factory.mktemp("away") / link
    (root / link).rename(away)
    (root / link).symlink_to(away)
    write(root, "path\na.jpg\ncam1/b.png\n")
    with pytest.raises(ValueError, match=rf"links lead out of its folder: 1 \({image}\); copy"):
        scan(str(root))
    monkeypatch.setenv("REID_LINKS", "follow")
    assert len(scan(str(root)).images) == 2


def test_a_link_that_stays(root: Path) -> None:
    (root / "d.jpg").symlink_to(root / "cam1" / "c.jpg")
    assert len(scan(write(root, "path\nd.jpg\n")).images) == 1


def test_a_float_is_no_id(root: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"], "pid": [1.5]}), root / "manifest.parquet")
    with pytest.raises(ValueError, match="column pid is not int64"):
        scan(str(root))


def test_no_parquet_file(root: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest.parquet: no readable table"):
        scan(write(root, "path\na.jpg\n", "manifest.parquet"))


def test_two_manifests(root: Path) -> None:
    pq.write_table(pa.table({"path": ["a.jpg"]}), root / "manifest.parquet")
    with pytest.raises(ValueError, match=r"several sets: manifest.csv .*manifest.parquet"):
        scan(write(root, "path\na.jpg\n"))


def test_wrong_use(root: Path) -> None:
    write(root, "path\na.jpg\n")
    with pytest.raises(UsageError, match=r"none.csv: no such file"):
        scan(str(root / "none.csv"))
    with pytest.raises(UsageError, match="no root for layout 'market1501'"):
        scan(str(root / "manifest.csv"), "market1501")
    with pytest.raises(ValueError, match=r"not layout 'manifest'; it needs a .csv or .parquet"):
        scan(str(root / "cam1"), "manifest")
