"""A run that was killed and started again ends with the numbers of an unbroken one."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.pipelines.test_end_to_end import TINY

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]
LIMIT_S = 240  # for one run, several processes starting on two cores


def start(data: str, storage: Path, method: str) -> subprocess.Popen[bytes]:
    settings = [
        word if word != "2" or TINY[i - 1] != "--rounds" else "4" for i, word in enumerate(TINY)
    ]
    command = ["train", method, "--preset", "demo", "--data", data, "--storage", str(storage)]
    settings += ["--method.steps", "60"]  # rounds of a second or two, so that a kill falls into one
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command, "--name", "a", *settings],
        stdout=subprocess.DEVNULL,
        stderr=(storage.parent / f"{storage.name}.txt").open("ab"),
    )


def finish(process: subprocess.Popen[bytes], storage: Path) -> None:
    code = process.wait(timeout=LIMIT_S)
    assert code == 0, (storage.parent / f"{storage.name}.txt").read_text()[-2000:]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.1)


def outcome(storage: Path) -> tuple[dict, bytes, list[bytes]]:
    run = storage / "a"
    labels = [path.read_bytes() for path in sorted((run / "labels").iterdir())]
    return (
        json.loads((run / "result.json").read_text()),
        (run / "last.safetensors").read_bytes(),
        labels,
    )


def train_workers(parent: int) -> list[psutil.Process]:
    """Train workers of the local Ray that the process ``parent`` has started."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if " ".join(process.cmdline()).startswith("ray::RayTrainWorker"):
                found.append(process)
    return found


@pytest.fixture(scope="module", params=["cluster_contrast", "hybrid_memory"])
def unbroken(request: pytest.FixtureRequest, small_set: str, tmp_path_factory) -> tuple[str, Path]:
    storage = tmp_path_factory.mktemp(request.param) / "unbroken"
    storage.mkdir()
    finish(start(small_set, storage, request.param), storage)
    return request.param, storage


def test_killed_driver_resumes_bit_equal(unbroken: tuple[str, Path], small_set: str) -> None:
    method, whole = unbroken
    storage = whole.parent / "killed"
    storage.mkdir()
    process = start(small_set, storage, method)
    wait_for((storage / "a" / "checkpoints" / "round-0002").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finish(start(small_set, storage, method), storage)
    assert "resumed after round" in (storage / "a" / "log.txt").read_text()
    assert outcome(storage) == outcome(whole)


def test_killed_train_worker_is_replaced(unbroken: tuple[str, Path], small_set: str) -> None:
    method, whole = unbroken
    if method != "cluster_contrast":
        pytest.skip("one method shows it")
    storage = whole.parent / "worker"
    storage.mkdir()
    process = start(small_set, storage, method)
    wait_for((storage / "a" / "checkpoints" / "round-0002").exists, process)  # round 1 is committed
    workers = train_workers(process.pid)
    assert workers
    workers[0].kill()
    finish(process, storage)
    evaluations = (storage / "a" / "log.txt").read_text().count("label-free score")
    assert (
        evaluations > 5
    )  # those of an unbroken run, and the one after which it was killed once more
    assert outcome(storage) == outcome(whole)
