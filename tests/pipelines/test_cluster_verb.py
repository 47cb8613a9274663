"""``reid cluster`` on tables that a person may have made."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.cluster import parse_radii
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.labels import Features, Labels
from reid_core.tables import LABELS, read_table
from tests.reference.features import people

COUNT = 150
IMAGE_ID = np.arange(COUNT) * 7 + 3  # with gaps
SETTINGS = ["--k1", "12", "--k2", "4", "--min-samples", "3", "--backend", "cpu"]


def write(path: Path, image_id: np.ndarray, feature: np.ndarray, **columns: object) -> str:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(feature.reshape(-1)), feature.shape[1])
    table = pa.table({"image_id": pa.array(image_id), **columns, "feature": rows})
    pq.write_table(table, path, row_group_size=40)
    return str(path)


@pytest.fixture
def feature() -> np.ndarray:
    return people(COUNT, copies=10)


@pytest.mark.usefixtures("local_ray")
def test_shuffled_rows_extra_columns_gaps_and_shards_change_nothing(
    feature: np.ndarray, tmp_path: Path
) -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    table = write(
        tmp_path / "f.parquet",
        IMAGE_ID[order],
        feature[order],
        mood=pa.array(order.astype(float)),
        camid=pa.array((order % 4).astype(np.int32)),
    )
    expected = cluster(Features(image_id=IMAGE_ID, feature=feature), k1=12, k2=4, min_samples=3)
    for shards in ("1", "3"):
        out = tmp_path / f"{shards}.parquet"
        command = ["cluster", "--features", table, "--out", str(out), "--shards", shards]
        assert main([*command, *SETTINGS]) == 0
        labels = Labels.from_table(read_table(out, LABELS))
        np.testing.assert_array_equal(labels.image_id, IMAGE_ID)
        np.testing.assert_array_equal(labels.label, expected.label)
        np.testing.assert_array_equal(labels.is_core, expected.is_core)
        np.testing.assert_allclose(labels.confidence, expected.confidence, atol=1e-6)
        people_read = pq.read_table(out)
        assert people_read.column("camid").to_pylist() == (np.arange(COUNT) % 4).tolist()
        kind = np.array(people_read.column("kind"))
        np.testing.assert_array_equal(kind == "core", expected.is_core[:, 0])
        np.testing.assert_array_equal(kind == "outlier", expected.label[:, 0] < 0)
        assert people_read.column("distance").null_count == (expected.label < 0).sum()


@pytest.mark.usefixtures("local_ray")
def test_a_scan_of_radii_leaves_a_plot_and_the_best_labels(
    feature: np.ndarray, tmp_path: Path
) -> None:
    table, out = write(tmp_path / "f.parquet", IMAGE_ID, feature), tmp_path / "l.parquet"
    command = ["cluster", "--features", table, "--out", str(out), "--scan-eps", "0.4:0.6:0.1"]
    assert main([*command, *SETTINGS]) == 0
    assert (tmp_path / "l.png").stat().st_size > 1000
    assert Labels.from_table(read_table(out, LABELS)).metrics["eps"] in (0.4, 0.5, 0.6)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("flags", [["--kmeans", "7"], ["--metric", "cosine", "--eps", "0.3"]])
def test_other_clusterings(feature: np.ndarray, tmp_path: Path, flags: list[str]) -> None:
    table, out = write(tmp_path / "f.parquet", IMAGE_ID, feature), tmp_path / "l.parquet"
    command = ["cluster", "--features", table, "--out", str(out), "--backend", "cpu"]
    assert main([*command, *flags]) == 0
    assert Labels.from_table(read_table(out, LABELS)).label.max() > 3


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("count", [1, 2, 9])
def test_fewer_images_than_neighbours(count: int, tmp_path: Path) -> None:
    table = write(tmp_path / "f.parquet", IMAGE_ID[:count], people(count))
    out = tmp_path / "l.parquet"
    assert main(["cluster", "--features", table, "--out", str(out), "--shards", "4"]) == 0
    assert len(read_table(out, LABELS)) == count


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nan", r"image_id 38 has length nan"),
        ("long", r"image_id 38 has length 2 .*unit length"),
        ("twice", r"image_id 38 occurs more than once"),
        ("empty", r"no image to cluster"),
        (
            "double",
            r"column feature .*float32.*found fixed_size_list<.*double>|wrong columns: feature",
        ),
        ("no ids", r"wrong columns: image_id \(missing"),
        ("null", r"nulls in column feature"),
        ("words", r"wrong columns: pid \(string, want int64\)"),
    ],
)
def test_bad_tables_give_one_message(
    feature: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    message: str,
) -> None:
    image_id = IMAGE_ID.copy()
    if wrong in ("nan", "long"):
        feature[5] = np.nan if wrong == "nan" else 2 * feature[5]
    if wrong == "twice":
        image_id[6] = image_id[5]
    if wrong == "empty":
        feature, image_id = feature[:0], image_id[:0]
    if wrong == "double":
        feature = feature.astype(np.float64)
    more = {"pid": pa.array(["Ann"] * len(image_id))} if wrong == "words" else {}
    table = write(tmp_path / "f.parquet", image_id, feature, **more)
    if wrong == "null":
        rows = pq.read_table(table).set_column(
            1, "feature", pa.array([None, *feature[1:].tolist()], pa.list_(pa.float32(), 64))
        )
        pq.write_table(rows, table)
    if wrong == "no ids":
        pq.write_table(pq.read_table(table).drop("image_id"), table)
    assert main(["cluster", "--features", table, "--out", str(tmp_path / "l.parquet")]) == 1
    found = capsys.readouterr().err
    assert found.count("reid: ") == 1
    assert re.search(message, found), found
    assert not (tmp_path / "l.parquet").exists()


@pytest.mark.usefixtures("local_ray")
def test_cuml_asked_for_and_missing(
    feature: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "f.parquet", IMAGE_ID, feature)
    out = str(tmp_path / "l.parquet")
    assert main(["cluster", "--features", table, "--out", out, "--backend", "cuml"]) == 2
    assert "choose the backend 'cpu'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scan-eps", "0.3"], "FIRST:LAST:STEP"),
        (["--scan-eps", "0.3:0.5:0.1", "--metric", "cosine"], "leave --metric"),
        (["--metric", "cosine", "--eps", "3"], r"(0, 2]"),
        (["--kmeans", "-1"], "--kmeans"),
        (["--kmeans", "5", "--shards", "2"], "exclude each other"),
        (["--eps", "1"], "eps = 1"),
    ],
)
def test_wrong_use(
    feature: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    table = write(tmp_path / "f.parquet", IMAGE_ID, feature)
    assert main(["cluster", "--features", table, *flags]) == 2
    assert message in capsys.readouterr().err


def test_radii() -> None:
    assert parse_radii("0.3:0.8:0.05") == pytest.approx(np.arange(0.3, 0.81, 0.05))
    assert parse_radii("0.4:0.55:0.1") == [0.4, 0.5]
    assert parse_radii("0.5:0.5:1") == [0.5]
    for wrong in ("", "0.3:0.8", "0.8:0.3:0.1", "0.3:0.8:0", "0:0.5:0.1", "0.3:0.99:0.01", "a:b:c"):
        with pytest.raises(UsageError, match="FIRST:LAST:STEP"):
            parse_radii(wrong)
