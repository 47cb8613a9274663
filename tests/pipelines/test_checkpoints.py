"""Checkpoints of a run folder: which are whole, which stay, which one a run goes on from."""

import json
from pathlib import Path

import pytest

from pipelines.results import checkpoints


def state(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "state.pt").write_text(text)
    return folder


def of_ray(run: Path, *names: str) -> None:
    """Folders as Ray Train leaves them, of which it has taken note."""
    for name in names:
        (run / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
        (run / "checkpoints" / name / "state.pt").write_text("ray")
    noted = {"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}
    (run / "checkpoints" / checkpoints.RAY).write_text(json.dumps(noted))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_newest_stay(tmp_path: Path, scheme: str) -> None:
    run = f"{scheme}{tmp_path}/run"
    assert checkpoints.newest(run) is None
    for number in (1, 2, 10):
        checkpoints.keep(state(tmp_path / "made", str(number)), run, f"round-{number:04d}", 2)
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {
        "round-0002",
        "round-0010",
    }
    newest = checkpoints.newest(run)
    assert newest == f"{run}/checkpoints/round-0010"
    assert checkpoints.round_of(newest) == 10
    assert checkpoints.round_of("s3://b/run/checkpoints/round-0003?region=x") == 3
    with checkpoints.as_local(newest) as folder:
        assert (folder / "state.pt").read_text() == "10"


def test_what_was_broken_off_is_not_whole(tmp_path: Path) -> None:
    run = str(tmp_path)
    checkpoints.keep(state(tmp_path / "made", "1"), run, "round-0001", 2)
    state(tmp_path / "checkpoints" / "round-0002", "half of it").joinpath("x").touch()
    assert checkpoints.newest(run) == f"{run}/checkpoints/round-0001"
    checkpoints.keep(state(tmp_path / "made", "2"), run, "round-0002", 2)
    assert checkpoints.newest(run) == f"{run}/checkpoints/round-0002"
    assert not (tmp_path / "checkpoints" / "round-0002" / "x").exists()


def test_a_run_changes_its_place(tmp_path: Path) -> None:
    """Ray finds its own checkpoints; it is told of a newer one of this process."""
    run = str(tmp_path)
    of_ray(tmp_path, "round-0001", "round-0002")
    assert checkpoints.newest(run) == f"{run}/checkpoints/round-0002"
    assert checkpoints.begun_without_ray(run) == ""
    checkpoints.keep(state(tmp_path / "made", "3"), run, "round-0003", 1)
    assert checkpoints.newest(run) == checkpoints.begun_without_ray(run)
    of_ray(tmp_path, "round-0003", "round-0004")
    assert checkpoints.begun_without_ray(run) == ""
    (tmp_path / "checkpoints" / "round-0004" / "state.pt").unlink()
    assert checkpoints.newest(run) == f"{run}/checkpoints/round-0003"
