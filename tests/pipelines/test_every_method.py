"""Every method through the command line on a local Ray: three short rounds of its demo, and again with a kill."""

import json
import logging
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.injection import has_title, outcome
from pipelines.cli import main
from reid_core import method as contract

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("local_ray")]
SHORT = [
    "--method.steps", "3", "--method.batch-size", "16", "--method.bn-group", "8", "--rounds", "3",
    "--block", "32", "--cache", "",
]  # fmt: skip
LIMIT_S = 300
FEW_IMAGES = {"min_samples": "2", "k1": "8", "k2": "3", "instances": "4"}  # where a method has them


def run(name: str, data: str, storage: Path) -> None:
    config = contract.load(name).PRESETS["demo"].config
    flags = [
        word
        for field, value in FEW_IMAGES.items()
        if hasattr(config, field)
        for word in (f"--method.{field.replace('_', '-')}", value)
    ]
    command = ["train", name, "--preset", "demo", "--data", data, "--storage", str(storage)]
    assert main([*command, "--name", "a", *SHORT, *flags]) == 0


def kill_worker(checkpoints: Path) -> None:
    """Kill the train worker once the last checkpoint lies there: the first one is committed then, at least."""
    wait_for(checkpoints / "round-0002")
    children = psutil.Process().children(recursive=True)
    workers = [process for process in children if has_title(process, "RayTrainWorker")]
    wait_for(checkpoints / "round-0003")
    for process in workers:
        process.kill()


def wait_for(path: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)


@pytest.fixture(scope="module", params=contract.names())
def whole(request: pytest.FixtureRequest, small_set: str, tmp_path_factory) -> tuple[str, Path]:
    """The name of a method and the storage of its unbroken run."""
    storage = tmp_path_factory.mktemp(request.param)
    run(request.param, small_set, storage)
    return request.param, storage


def test_three_rounds(whole: tuple[str, Path]) -> None:
    name, storage = whole
    folder = storage / "a"
    result = json.loads((folder / "result.json").read_text())
    assert result["last"]["round"] == 3
    assert 0 <= result["last"]["mAP"] <= 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert len(rounds) == 3
    assert all(np.isfinite(v) for line in rounds for k, v in line.items() if k.startswith("loss_"))
    assert len(list((folder / "labels").iterdir())) == 4
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    config = contract.load(name).PRESETS["demo"].config
    sources = [contract.labels_from(contract.load(name), config, number) for number in range(3)]
    if "none" not in sources:  # then there are always labels to judge
        assert all(line["label_free"] is not None for line in evaluations)
    if name == "hdcpd":
        assert all(0 <= line["mAP_teacher"] <= 1 for line in evaluations)
        assert (folder / "last_teacher.safetensors").exists()


def test_a_killed_worker_changes_no_bit(
    whole: tuple[str, Path], small_set: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name, storage = whole
    killer = threading.Thread(target=kill_worker, args=[tmp_path / "a" / "checkpoints"])
    killer.start()
    run(name, small_set, tmp_path)
    killer.join()
    assert "resumed after round" in caplog.text
    assert outcome(tmp_path) == outcome(storage)
