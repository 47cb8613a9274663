"""``--local``: what it refuses, what it says and leaves, a sweep in this process."""

import fcntl
import json
import logging
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from pipelines.cli import main
from pipelines.results.bar import Bar
from pipelines.sweeps import training
from reid_core.errors import UsageError
from tests.pipelines.test_end_to_end import TINY

TRAIN = ["train", "cluster_contrast", "--preset", "demo", "--local"]
SWEEP = ["sweep", "cluster_contrast", "--preset", "demo", "--local"]


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ([*TRAIN, "--workers", "2"], {}, "--local is one worker in this process"),
        ([*TRAIN, "--shards", "2"], {}, "labels in one block, in this process"),
        ([*TRAIN], {"RAY_ADDRESS": "10.0.0.1:6379"}, "RAY_ADDRESS=10.0.0.1:6379 asks for one"),
        ([*SWEEP, "--space", "training", "--search", "optuna"], {}, "leave out --search optuna"),
        ([*SWEEP, "--space", "training", "--scheduler", "asha"], {}, "leave out --scheduler asha"),
        ([*SWEEP, "--space", "training", "--concurrent", "2"], {}, "leave out --concurrent 2"),
        ([*SWEEP, "--space", "training"], {}, "this space has values to draw"),
    ],
)
def test_refused(
    words: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main([*words, "--data", "."]) == 2
    assert message in capsys.readouterr().err


def test_the_reason_of_a_failed_run_is_in_its_log(small_set: str, tmp_path: Path) -> None:
    words = [*TRAIN, "--data", small_set, "--storage", str(tmp_path), "--name", "a", *TINY]
    assert main([*words, "--method.min-samples", "60", "--guard.policy", "stop"]) == 1
    last = (tmp_path / "a" / "log.txt").read_text().splitlines()[-1]
    assert "ERROR ended: labels of round 0: no clusters" in last


def begun(command: list[str]) -> subprocess.Popen[str]:
    """A process that hears SIGINT, also where this one was started in the background and does not."""
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_stopped_by_ctrl_c_it_says_how_to_go_on(small_set: str, tmp_path: Path) -> None:
    words = [*TRAIN, "--data", small_set, "--storage", str(tmp_path), "--name", "a", *TINY]
    command = [sys.executable, "-m", "pipelines", *words, "--rounds", "500"]
    with begun(command) as process:
        metrics = tmp_path / "a" / "metrics.jsonl"
        while process.poll() is None and not metrics.exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1] == "reid: stopped; the same command goes on from the last round"
    assert "Traceback" not in said
    assert (tmp_path / "a" / "log.txt").read_text().endswith("ended: stopped\n")


@pytest.mark.slow
@pytest.mark.parametrize("place", [(), ("--local",)])
def test_stopped_by_ctrl_c_before_it_trains(place: tuple[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "demo", "--out", str(tmp_path), *place]
    with begun(command) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "reid demo\n"  # packages load now
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "reid: stopped; the same command goes on from the last round\n"


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(small_set: str) -> None:
    reid = f"{sys.executable} -m pipelines"
    for words in ("--help", "train hcd --list", f"scan {small_set}"):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{reid} {words} | head -1"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)
        assert "Broken" not in done.stderr


GRID = {"temperature": tune.grid_search([0.05, 0.1])}


def sweep(data: str, storage: Path, *more: str) -> list[dict[str, Any]]:
    """Two points in this process, twice each."""
    from pipelines.sweep import parse

    words = ["cluster_contrast", "--space", "training", "--preset", "demo", "--local"]
    words += ["--data", data, "--storage", str(storage), "--name", "s", "--seeds", "1", "2"]
    name, _, _, job = parse([*words, *TINY, *more])
    return training.run(name, "temperature", GRID, job)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_sweep_walks_through_points_and_seeds(
    small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sweep(small_set, tmp_path)
    found = [(row["temperature"], row["seed"], row["round"]) for row in rows]
    assert found == [(t, seed, 2) for t in (0.05, 0.1) for seed in (1, 2)]
    for row in rows:
        last = json.loads((tmp_path / "s" / row["trial"] / "result.json").read_text())["last"]
        assert row["mAP"] == last["mAP"]
    table = (tmp_path / "s" / "table.txt").read_text()
    assert "mean ± standard deviation over the seeds" in table
    assert table in capsys.readouterr().out
    before = (tmp_path / "s/trial-0003/metrics.jsonl").read_bytes()
    assert sweep(small_set, tmp_path) == rows  # what has ended is not trained again
    assert (tmp_path / "s/trial-0003/metrics.jsonl").read_bytes() == before
    with pytest.raises(UsageError, match="begun with --local; give it, or begin another --name"):
        training._began_with(str(tmp_path / "s"), local=False)


def test_a_sweep_of_another_version_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restore(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'pipelines.sweep_trial'")

    monkeypatch.setattr(tune.Tuner, "can_restore", lambda _: True)
    monkeypatch.setattr(tune.Tuner, "restore", restore)
    from pipelines.sweep import parse

    _, _, space, job = parse(["hcd", "--space", "alpha_m", "--preset", "demo"])
    with pytest.raises(UsageError, match=r"another version .* begin another --name") as refused:
        training.tuner("hcd", space, job, str(tmp_path), 1)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_progress_in_a_file_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = 0.0
    monkeypatch.setattr("pipelines.results.bar.time.monotonic", lambda: clock)
    with Bar("embedding images", 100) as bar:
        for clock in range(1, 101):  # noqa: B007  the bar reads it
            bar.update(1)
    times = [float(line.rpartition("(")[2].split()[0]) for line in caplog.messages]
    assert caplog.messages[0] == "embedding images: 6 of 100 (6 s)"
    assert len(times) < 15
    assert all(b - a <= 22 for a, b in pairwise(times))


@pytest.mark.parametrize("columns", [40, 100])
def test_progress_on_a_terminal_is_one_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(terminal, "w") as screen:
        monkeypatch.setattr("sys.stderr", screen)
        with Bar("embedding the images of the training set", 100) as bar:
            for _ in range(100):
                bar.update(1, loss="1.234")
        seen = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\n" not in seen
    assert "embedding the images" in seen
    assert max(map(len, seen.split("\r"))) <= columns
