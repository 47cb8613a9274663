"""What is refused before any work, with which numbers; by arithmetic, and on clusters of several raylets."""

import os
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.__main__ import unmet
from pipelines.nodes import preflight
from pipelines.nodes.preflight import check_nodes, wait_for_nodes, wait_for_room
from pipelines.nodes.probe import MARK, installed, problems
from pipelines.nodes.runtime import ray_session
from pipelines.nodes.share import HEADROOM_CPUS, ROOM_CPUS, Node, divide
from reid_core.errors import UsageError
from reid_core.storage import write_bytes
from tests.pipelines.own_ray import LIMIT_S, OwnRay, own_ray, start
from tests.pipelines.test_end_to_end import TINY

ROOT = Path(__file__).parents[2]
LAUNCHERS = [ROOT / "cluster.yaml", ROOT / "deploy/cluster-onprem.yaml"]


@pytest.mark.parametrize(
    ("cpus", "workers", "each"),
    [
        ([2], 1, 0.8),
        ([2], 2, 0.4),
        ([4], 1, 2),
        ([4, 4], 1, 4),  # a worker is on one node
        ([8], 4, 1),
        ([0, 16, 16], 4, 7),  # 7.7 each, whole ones
        ([1, 1, 1, 1], 3, 0.9),
        ([1.6, 1.6, 1.6], 3, 0.9),  # with 1 each no node would keep the room of a task
    ],
)
def test_cpus_of_a_worker(cpus: list[float], workers: int, each: float) -> None:
    share = divide([Node(n) for n in cpus], workers, gpu=False)
    assert share.cpus == each
    assert share.cpus * workers + HEADROOM_CPUS <= sum(cpus) + 1e-9


@pytest.mark.parametrize(
    "cpus", [[2, 2], [3, 1, 1], [1.6, 1.6, 1.6], [4, 0.7], [1, 1, 1, 1], [0, 5]]
)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_one_node_keeps_room_wherever_the_workers_go(cpus: list[float], workers: int) -> None:
    each = divide([Node(n) for n in cpus], workers, gpu=False).cpus
    for places in product(range(len(cpus)), repeat=workers):
        left = [n - each * places.count(i) + 1e-9 for i, n in enumerate(cpus)]
        assert min(left) < 0 or max(left) >= ROOM_CPUS  # too many on a node, or room


def test_too_many_workers_are_told_how_many_fit() -> None:
    with pytest.raises(
        UsageError, match=r"--workers 64 .*1.2 CPUs.* 2 x 2 CPUs; use at most --workers 13"
    ):
        divide([Node(2), Node(2)], 64, gpu=False)
    with pytest.raises(UsageError, match=r"the nodes have 1 CPUs; add CPUs"):
        divide([Node(1)], 1, gpu=False)
    with pytest.raises(UsageError, match=r"--workers 3 needs 3 GPUs and the cluster has 2"):
        divide([Node(8, 1), Node(8, 1)], 3, gpu=True)


def test_missing_nodes_may_still_be_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "share_out", lambda n, gpu: divide([Node(1)], n, gpu=gpu))
    for launched in ("no-such-file", *LAUNCHERS):
        monkeypatch.setattr(preflight, "LAUNCHED", str(launched))
        with pytest.raises(
            UsageError, match=r"1 CPUs; add CPUs; --start-s SECONDS waits for nodes .* starting$"
        ):
            wait_for_nodes(1, gpu=False, start_s=0)
    monkeypatch.setattr(preflight, "LAUNCHED", str(LAUNCHERS[0]))
    grows = r"GPUs.* lets the cluster grow to 448 CPUs and 16 GPUs$"  # 4 x (48, 4) and 8 x 32
    with pytest.raises(UsageError, match=grows):
        wait_for_nodes(17, gpu=True, start_s=900)  # does not wait in vain


def test_a_gpu_worker_needs_its_cpu_on_the_same_node() -> None:
    with_gpus = [Node(0, 4), Node(64)]
    with pytest.raises(
        UsageError, match=r"1 CPU and a GPU on one node.*0 CPUs and 4 GPUs, 64 CPUs"
    ):
        divide(with_gpus, 2, gpu=True)
    assert divide([Node(4, 4), Node(8)], 4, gpu=True).cpus == 1


def test_a_node_that_takes_part_has_no_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    write_bytes(tmp_path / "place" / MARK, b"mark")
    place, packages = str(tmp_path / "place"), {"numpy": installed("numpy")}
    assert problems("node", place, [(str(tmp_path), "a.jpg")], packages) == []
    assert (tmp_path / "place" / "node").read_bytes() == b"mark"


def test_a_node_tells_all_that_is_wrong(tmp_path: Path) -> None:
    packages = {"numpy": "0.1", "torch-of-another-name": "1.0"}
    elsewhere = str(tmp_path / "not-shared")
    found = problems("node", elsewhere, [(str(tmp_path), "a.jpg")], packages)
    assert len(found) == 4
    for text, words in zip(
        found, ("numpy is", "torch-of-another-name is missing", elsewhere, "a.jpg"), strict=True
    ):
        assert words in text
    assert not Path(elsewhere).exists()  # nothing was made where the driver does not look


def test_python_without_the_packages_is_told_so() -> None:
    command = [
        sys.executable,
        "-S",
        "-m",
        "pipelines",
        "train",
    ]  # -S: none but Python's own modules
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"reid: {sys.executable} on ")
    assert "packaging is missing" in done.stderr
    assert "requirements/gpu.txt" in done.stderr


def test_packages_that_are_missing_or_old_are_named(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["numpy>=2", "no-such-thing>=1", "ray[data]<2"]')
    missing, old = unmet(project)
    assert missing == "no-such-thing is missing"
    assert old == f"ray is {installed('ray')}, not <2"
    assert unmet(tmp_path / "none.toml") == []


def explained(message: str) -> bool:
    exports = "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE"
    return "RAY_ADDRESS=127.0.0.1:1 " in message and exports in message


def test_a_missing_token_is_explained() -> None:
    words = ["-c", "from pipelines.nodes.runtime import ray_session\nwith ray_session(): pass"]
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such/token"}
    done = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert explained(done.stderr.strip().splitlines()[-1])
    assert "/no/such/token" in done.stderr


def test_a_cluster_that_cannot_be_joined_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # what Ray raises for a wrong token too
        raise ConnectionError("Failed to connect to Ray cluster at 127.0.0.1:1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError) as caught, ray_session():
        pass
    assert explained(str(caught.value))


def test_a_local_ray_that_does_not_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    message = r"timed out during startup\)\. Where it is busy: try again"
    with pytest.raises(OSError, match=message), ray_session():
        pass


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_room_that_something_else_holds_is_waited_for(local_ray: None) -> None:
    share = wait_for_room(2, gpu=False, start_s=0, wait_s=60)
    assert share.cpus == 1
    held = placement_group([{"CPU": 3}])
    assert held.wait(60)
    with pytest.raises(TimeoutError, match=r"2 workers of 1 CPUs.*free are 1 CPUs.*Waited 2 s"):
        wait_for_room(2, gpu=False, start_s=0, wait_s=2)
    remove_placement_group(held)
    assert wait_for_room(2, gpu=False, start_s=0, wait_s=60) == share


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_the_one_local_node_is_asked_and_leaves_nothing(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"image")
    folder = str(tmp_path / "run")
    check_nodes(folder, [(str(tmp_path), "a.jpg")])
    begin = time.monotonic()
    check_nodes(folder, [(str(tmp_path), "a.jpg")])
    assert time.monotonic() - begin < 15  # the first one waits for a process to start
    with pytest.raises(OSError, match=r"1 of 1 nodes cannot take part; .*b\.jpg"):
        check_nodes(folder, [(str(tmp_path), "a.jpg"), (str(tmp_path), "b.jpg")])
    assert not list((tmp_path / "run").iterdir())


# ---- a cluster of two nodes, of which the second has nothing mounted at a folder

TRAIN = ["train", "cluster_contrast", "--preset", "demo", "--name", "a", *TINY]


def driver(cluster: OwnRay, *words: str) -> subprocess.Popen[str]:
    """``python -m pipelines`` on the cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", *words],
        env=cluster.environment | {"RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
        text=True,
    )


def refused(cluster: OwnRay, *words: str) -> str:
    """What a command says that is refused, which it must be within two minutes."""
    begin = time.monotonic()
    process = driver(cluster, *words)
    _, said = process.communicate(timeout=LIMIT_S)
    assert time.monotonic() - begin < 120
    assert process.returncode == 2
    return said


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mount")


@pytest.fixture(scope="module")
def without_mount(mount: Path) -> list[str]:
    """What starts a command for which the folder is empty."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    command += [f'mount -t tmpfs none {mount} && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this machine gives no mount namespace")
    return command


@pytest.mark.fault
@pytest.mark.timeout(900)
def test_nodes_are_waited_for_and_asked(
    mount: Path, without_mount: list[str], small_set: str, tmp_path: Path
) -> None:
    shutil.copytree(small_set, mount / "set")
    hidden, seen = ["--data", str(mount / "set")], ["--data", small_set]
    with own_ray(cpus=1) as cluster:
        storage = ["--storage", str(tmp_path)]
        assert "the nodes have 1 CPUs; add CPUs" in refused(cluster, *TRAIN, *seen, *storage)
        trials = ["sweep", *TRAIN[1:], "--space", "training", "--concurrent", "2", "--name", "b"]
        assert "the nodes have 1 CPUs" in refused(cluster, *trials, *seen, *storage)

        waiting = driver(cluster, *TRAIN, *hidden, *storage, "--start-s", "300")
        assert waiting.stderr
        while "waiting for nodes" not in (line := waiting.stderr.readline()):
            assert line, "it has ended"
        start(cluster, [f"--address={cluster.address}", "--num-cpus=1"], command=without_mount)
        _, said = waiting.communicate(timeout=LIMIT_S)
        assert waiting.returncode == 1
        assert "1 of 2 nodes cannot take part" in said
        assert f"the data cannot be read ([Errno 2] Failed to open local file '{mount}/set" in said
        assert not list(tmp_path.glob("a/.preflight*"))

        unshared = driver(cluster, *TRAIN, *seen, "--storage", str(mount / "runs"))
        _, said = unshared.communicate(timeout=LIMIT_S)
        assert unshared.returncode == 1
        assert "1 of 2 nodes cannot take part" in said
        assert "--storage is not shared" in said

        many = ["--name", "many", "--workers", "99", "--method.batch-size", "792"]
        said = refused(cluster, *TRAIN, *seen, *storage, *many)
        assert "--workers 99 do not fit" in said
        assert "use at most --workers 3" in said
        said = refused(cluster, *TRAIN, *seen, *storage, "--gpu", "--start-s", "5")
        assert "needs 1 GPUs and the cluster has 0" in said
        assert "Waited 5 s (--start-s)" in said
