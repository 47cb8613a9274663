"""The folder of a run on a storage that is no local path."""

import tempfile
from pathlib import Path

import pytest

from pipelines.results.run_folder import RunFolder
from reid_core.errors import UsageError


def test_nothing_temporary_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("temporary", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    storage = (tmp_path / "runs").as_uri()
    run = RunFolder(storage, "a")
    run.open({"identity": {"seed": 1}}, {})
    run.close()
    assert (tmp_path / "runs/a/log.txt").exists()
    with pytest.raises(UsageError, match="another configuration"):
        RunFolder(storage, "a").open({"identity": {"seed": 2}}, {})
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == [
        "config.json",
        "environment.json",
    ]
    assert not [*(tmp_path / "temporary").iterdir(), *(tmp_path / "here").iterdir()]
