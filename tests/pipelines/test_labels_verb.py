from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from reid_core.labels import Labels


def write(path: Path, *levels: list[int]) -> str:
    """A LABELS table in shuffled row order, with a column ``path``."""
    label = np.array(levels, np.int64).T
    table = Labels(
        image_id=10 + 3 * np.arange(len(label)),
        label=label,
        is_core=label >= 0,
        confidence=np.ones(label.shape, np.float32),
        metrics={"clusters": 2.0},
    ).table()
    names = pa.array([f"{i}.jpg" for i in table.column("image_id").to_pylist()])
    table = table.append_column("path", names)
    pq.write_table(table.take(np.random.default_rng(0).permutation(len(table))), path)
    return str(path)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    return (
        write(tmp_path / "a.parquet", [0, 0, 0, 1, 1, -1], [5, 5, 5, 5, 5, -1]),
        write(tmp_path / "b.parquet", [1, 1, 1, 1, 1, -1], [0, 0, 0, 0, 0, 0]),
    )


def test_report(tables: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "diff", *tables]) == 0
    out = capsys.readouterr().out
    rows = dict(line.rsplit(maxsplit=1) for line in out.splitlines()[:8])
    assert rows["merges"] == rows["kept"] == "1"
    assert rows["images in both"] == "6"
    assert "0 + 1 merged into 1" in out


@pytest.mark.parametrize(("level", "number"), [(0, 0), (1, 5)])
def test_out_has_stable_numbers_and_all_else(
    tables: tuple[str, str], tmp_path: Path, level: int, number: int
) -> None:
    out = tmp_path / "out.parquet"
    assert main(["labels", "diff", *tables, "--level", str(level), "--out", str(out)]) == 0
    old, new = pq.read_table(tables[1]), pq.read_table(out)
    assert new.drop_columns("label").equals(old.drop_columns("label"), check_metadata=True)
    for row, was in zip(new.to_pylist(), old.to_pylist(), strict=True):
        changed = was["level"] == level and was["label"] >= 0
        assert row["label"] == (number if changed else was["label"])
    assert Labels.from_table(new).metrics == {"clusters": 2.0}


def test_wrong_use(tables: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labels", "diff", tables[0], "nowhere.parquet"]) == 2
    assert main(["labels", "diff", *tables, "--level", "2"]) == 2
    assert main(["labels", "merge", *tables]) == 2
    error = capsys.readouterr().err
    assert "nowhere.parquet: no such file" in error
    assert "no level 2" in error


def test_not_a_label_table(
    tables: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"image_id": [1]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_text("no")
    assert main(["labels", "diff", str(tmp_path / "c.parquet"), tables[1]]) == 1
    assert main(["labels", "diff", tables[0], str(tmp_path / "d.parquet")]) == 1
    error = capsys.readouterr().err
    assert "c.parquet: wrong columns: level" in error
    assert "d.parquet: no readable Parquet" in error
