"""Processes are killed, a node is lost, storage fails: a run ends with the numbers of an unbroken one."""

import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.faults import NODES, WORKERS, end_worker, kill_driver
from benchmarks.injection import LIMIT_S, Run, Scene, outcome
from benchmarks.s3 import FailingServer
from pipelines.cli import main as reid
from reid_core.storage import join, read_bytes
from tests.pipelines.machines import can_be_made, machines
from tests.pipelines.own_ray import own_ray, start

MOST_READ = 2  # times that a machine fetches an image: for its disk, and one to try the node
TOLD = ("config.json", "environment.json", "log.txt", "metrics.jsonl")
pytestmark = [pytest.mark.fault, pytest.mark.timeout(2 * LIMIT_S)]


@pytest.fixture(scope="module")
def unbroken(small_set: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(data=small_set, work=tmp_path_factory.mktemp("unbroken"), more=WORKERS)
    run.finish(run.start())
    return run.work


def test_killed_tasks_a_preempted_worker_and_a_killed_driver(
    unbroken: Path, small_set: str, tmp_path: Path
) -> None:
    run = Run(data=small_set, work=tmp_path, more=WORKERS)
    scene = Scene(run=run, process=run.start())
    scene.strike("Map(decode_block)")
    scene.strike("labels of round 1")
    scene.strike("evaluation")
    end_worker(scene)  # in round 2
    scene.wait_for_steps(3)
    kill_driver(scene)
    run.finish(scene.process)
    assert run.redone() in (
        2,
        3,
        4,
    )  # 2 of a fault where the end of the round before had not yet been noted
    assert outcome(tmp_path) == outcome(unbroken)


def test_a_machine_cut_off_in_training(unbroken: Path, small_set: str, tmp_path: Path) -> None:
    if not can_be_made():
        pytest.skip("networks of its own need root and iproute2")
    with (
        tempfile.TemporaryDirectory(prefix="reid-", dir="/tmp") as own,
        machines(NODES + 1, Path(own)) as (head, *others, spare),
        own_ray(cpus=1, machine=head) as ray,
    ):
        join_head = [f"--address={ray.address}", "--num-cpus=1"]
        for machine in others:
            start(ray, join_head, machine)
        run = Run(
            data=small_set,
            work=tmp_path / "run",
            more=(*WORKERS, "--cache", f"{own}/cache"),
            environment=ray.environment | {"RAY_ADDRESS": ray.address},
            behind=tuple(head.beside(ray.nodes[0])),
        )
        scene = Scene(run=run, process=run.start())
        scene.wait_for_steps(0)
        ranks = scene.at_work("RayTrainWorker")
        trains = [m for m in (head, *others) if any(m.has(rank.pid) for rank in ranks)]
        assert len(trains) == 2
        labeller = scene.catch("labels of round")
        assert not any(m.has(labeller.pid) for m in trains)  # they have no room for it
        labeller.resume()
        scene.wait_for_steps(2)
        lost = next(m for m in trains if m != head)
        lost.unplug()
        start(ray, join_head, spare)
        run.finish(scene.process)
        lost.power_off()  # its Ray looks for the head for a while yet
        assert not list(Path(own).iterdir())  # what the machines wrote there is theirs alone
    assert run.redone() in (1, 2)
    assert outcome(run.work) == outcome(unbroken)


def test_data_and_storage_on_s3_that_fails_once(
    unbroken: Path,
    small_set: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    with FailingServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for path in Path(small_set).rglob("*.*"):
            name = f"data/{path.relative_to(small_set)}"
            server.client().upload_file(str(path), "bucket", name)
        server.failed = 0
        assert reid(["scan", "s3://bucket/data"]) == 0
        assert re.search(r"train\D+4\D+48", capsys.readouterr().out)
        run = Run(
            data="s3://bucket/data",
            work=tmp_path,
            storage="s3://bucket/runs",
            more=(*WORKERS, "--cache", str(tmp_path / "cache")),
        )
        before = server.asked.copy()
        run.finish(run.start())
        assert server.failed > 100  # every image, and every file of the run
        read = Counter({key: server.asked[key] - before[key] for key in server.asked})
        paths = [path.relative_to(small_set) for path in Path(small_set).rglob("*.jpg")]
        images = [read["GET", f"/bucket/data/{path}"] for path in paths]
        assert min(images) >= 1
        assert max(images) <= MOST_READ
        first = outcome(run.storage)
        assert first == outcome(unbroken)
        run.finish(run.start())  # nothing is left to do
        assert outcome(run.storage) == first
        said = [run.said.read_bytes()]
        said += [read_bytes(join(run.folder, name)) for name in TOLD]
        secret = server.environment["AWS_SECRET_ACCESS_KEY"].encode()
        assert not any(secret in text for text in said)
