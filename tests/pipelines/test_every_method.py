"""Every method in this process: three short rounds of its demo, and again, broken off; two with most state on Ray."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults import kill_worker
from benchmarks.injection import LIMIT_S, NAME, Run, Scene, outcome
from pipelines.cli import main
from reid_core import method as contract

SHORT = [
    "--method.steps", "3", "--method.batch-size", "16", "--method.bn-group", "8", "--rounds", "3",
    "--block", "32", "--cache", "",
]  # fmt: skip
FEW_IMAGES = {"min_samples": "2", "k1": "8", "k2": "3", "instances": "4"}  # where a method has them
MOST_STATE = ("hcd", "hdcpd")  # memories, levels of labels that change in training, a teacher


class BrokenOff(Exception):
    """Ends a run in the middle."""


def run(name: str, data: str, storage: Path, *more: str) -> None:
    config = contract.load(name).PRESETS["demo"].config
    flags = [
        word
        for field, value in FEW_IMAGES.items()
        if hasattr(config, field)
        for word in (f"--method.{field.replace('_', '-')}", value)
    ]
    command = ["train", name, "--preset", "demo", "--data", data, "--storage", str(storage)]
    assert main([*command, "--name", NAME, "--local", *SHORT, *flags, *more]) == 0


def lines(storage: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of metrics, without the times."""
    text = (storage / NAME / "metrics.jsonl").read_text()
    found = [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]
    return [
        {k: v for k, v in line.items() if "time" not in k and "seconds" not in k} for line in found
    ]


@pytest.fixture(scope="module", params=contract.names())
def whole(request: pytest.FixtureRequest, small_set: str, tmp_path_factory) -> tuple[str, Path]:
    """The name of a method and the storage of its unbroken run."""
    storage = tmp_path_factory.mktemp(request.param)
    run(request.param, small_set, storage)
    return request.param, storage


def test_three_rounds(whole: tuple[str, Path]) -> None:
    name, storage = whole
    folder = storage / NAME
    result = json.loads((folder / "result.json").read_text())
    assert result["last"]["round"] == 3
    assert 0 <= result["last"]["mAP"] <= 1
    rounds = lines(storage, "round")
    assert len(rounds) == 3
    assert all(np.isfinite(v) for line in rounds for k, v in line.items() if k.startswith("loss_"))
    assert len(list((folder / "labels").iterdir())) == 4
    evaluations = lines(storage, "evaluation")
    config = contract.load(name).PRESETS["demo"].config
    sources = [contract.labels_from(contract.load(name), config, number) for number in range(3)]
    if "none" not in sources:  # then there are always labels to judge
        assert all(line["label_free"] is not None for line in evaluations)
    if name == "hdcpd":
        assert all(0 <= line["mAP_teacher"] <= 1 for line in evaluations)
        assert (folder / "last_teacher.safetensors").exists()


def test_broken_off_in_training_it_goes_on_and_changes_no_bit(
    whole: tuple[str, Path],
    small_set: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    name, storage = whole
    objective: Any = contract.load(name).Objective
    update, kept = objective.update, tmp_path / NAME / "checkpoints" / "round-0002"

    def update_and_break_off(*arguments: Any) -> Any:
        """Weights and memory have moved on from what is kept."""
        scalars = update(*arguments)
        if kept.exists():
            raise BrokenOff
        return scalars

    with monkeypatch.context() as patch:
        patch.setattr(objective, "update", update_and_break_off)
        with pytest.raises(BrokenOff):
            run(name, small_set, tmp_path)
    assert not (tmp_path / NAME / "result.json").exists()
    run(name, small_set, tmp_path)
    assert "resumed after round" in caplog.text
    assert outcome(tmp_path) == outcome(storage)
    for kind in ("round", "evaluation", "quality"):
        assert lines(tmp_path, kind) == lines(storage, kind)


@pytest.mark.fault
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("name", MOST_STATE)
def test_on_ray_a_killed_worker_changes_no_bit_either(
    name: str, small_set: str, tmp_path: Path
) -> None:
    here, there = (
        Run(data=small_set, work=tmp_path / place, method=name, more=more)
        for place, more in (("here", ("--local",)), ("ray", ()))
    )
    here.finish(here.start())
    scene = Scene(run=there, process=there.start())
    kill_worker(scene)
    there.finish(scene.process)
    assert there.redone() in (1, 2)
    assert outcome(there.work) == outcome(here.work)
    for kind in ("round", "evaluation", "quality"):
        assert lines(there.work, kind) == lines(here.work, kind)
    files = [{path.name for path in Path(run.folder).iterdir()} for run in (here, there)]
    assert files[0] == files[1]
