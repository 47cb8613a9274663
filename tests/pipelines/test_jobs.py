"""`ray job submit`, as docs/cluster.md tells it: stopped in the middle and submitted again, with a token."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.injection import NAME, outcome
from pipelines.cli import main
from tests.pipelines.own_ray import LIMIT_S, OwnRay, own_ray, wait_until
from tests.pipelines.test_end_to_end import TINY

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
MOST_UPLOADED = 5e6  # bytes, unpacked
ROUNDS = ["--rounds", "4", "--method.steps", "60"]  # of seconds, so that a stop falls into one


def train(data: str, storage: Path) -> list[str]:
    command = ["train", "cluster_contrast", "--preset", "demo", "--name", NAME, *TINY, *ROUNDS]
    return [*command, "--data", data, "--storage", str(storage)]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the code beside what must not be uploaded."""
    folder = tmp_path / "checkout"
    for name in ("pipelines", "reid_core", "tune_spaces"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", ".rayignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("data/image.jpg", "runs/a/state.pt", ".git/objects/pack", "weights.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(6_000_000))
    return folder


def submit(ray: OwnRay, checkout: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """The job in the foreground; what it says goes to ``job.txt``."""
    words = ["ray", "job", "submit", "--working-dir", ".", "--"]
    words += ["python", "-m", "pipelines", *command]
    with (checkout.parent / "job.txt").open("wb") as log:
        return subprocess.Popen(words, cwd=checkout, env=ray.environment, stdout=log, stderr=log)


def test_stopped_and_submitted_again(checkout: Path, small_set: str, tmp_path: Path) -> None:
    whole, storage, said = tmp_path / "whole", tmp_path / "runs", tmp_path / "job.txt"
    run = storage / NAME
    assert main([*train(small_set, whole), "--local"]) == 0
    cpus = max(2, len(os.sched_getaffinity(0)))  # as many threads as there
    with own_ray(cpus=cpus) as ray:
        first = submit(ray, checkout, train(small_set, storage))
        wait_until((run / "checkpoints/round-0002").exists)
        (job,) = set(re.findall(r"raysubmit_\w+", said.read_text()))
        assert "cluster_contrast on 48 images" in said.read_text()  # logs stream
        ray.run("ray", "job", "stop", job)
        first.wait(LIMIT_S)
        assert "reid: stopped; the same command goes on from the last round" in said.read_text()
        wait_until(lambda: not ray.pids("-m pipelines"), 60)
        wait_until(lambda: not ray.pids("RayTrainWorker"), 60)
        groups = json.loads(ray.run("ray", "list", "placement-groups", "--format", "json"))
        assert {group["state"] for group in groups} <= {"REMOVED"}
        assert not (run / "result.json").exists()

        (uploaded,) = ray.folder.glob(
            "ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"
        )
        names = {path.name for path in uploaded.iterdir()}
        assert names == {"pipelines", "reid_core", "tune_spaces", "pyproject.toml"}
        sizes = [path.stat().st_size for path in uploaded.rglob("*") if path.is_file()]
        assert sum(sizes) < MOST_UPLOADED

        assert submit(ray, checkout, train(small_set, storage)).wait(LIMIT_S) == 0, said.read_text()
    assert "resumed after round" in (run / "log.txt").read_text()
    assert outcome(storage) == outcome(whole)
    code = [
        json.loads((s / NAME / "environment.json").read_text())["code"] for s in (storage, whole)
    ]
    assert code[0] == code[1]
