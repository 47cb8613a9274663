"""Pieces of the label stage and of the ranking as Ray tasks: what they ask for, how long they are waited for."""

from typing import Any

import pytest

from pipelines.nodes.tasks import QUIET_S, RayTasks
from reid_core.errors import UsageError
from reid_core.evaluation.metrics import evaluate, evaluate_in_tasks
from tests.evaluation.test_metrics import random_images
from tests.reference.features import people


def of(monkeypatch: pytest.MonkeyPatch, blocks: int, *nodes: dict[str, float]) -> Any:
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr("ray.nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 512}}])
    return RayTasks.of_cluster(blocks)


def test_one_block_takes_the_largest_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(monkeypatch, 1, {"CPU": 4}, {"CPU": 16}, {}) == RayTasks(cpus=16, threads=16)
    assert not of(monkeypatch, 1, {"CPU": 2}).gpu


def test_many_blocks_share_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(monkeypatch, 9, {"CPU": 64}).cpus == 8
    assert of(monkeypatch, 9, {"CPU": 2}).cpus == 1


def test_a_gpu_task_fits_every_gpu_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"CPU": 64}, {"CPU": 16, "GPU": 4}, {"CPU": 32, "GPU": 1}, {"CPU": 8, "GPU": 0.5}
    for blocks in (1, 9):
        tasks = of(monkeypatch, blocks, *nodes)
        assert tasks.gpu
        assert tasks.gpu_cpus == 4


@pytest.mark.parametrize("node", [{}, {"CPU": 0.5}, {"GPU": 1.0}])
def test_no_whole_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, node: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="whole CPU"):
        of(monkeypatch, 1, node)


def test_tasks_that_never_end_are_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 0.5})
    clock = 0.0

    def wait(left: list[str], *, timeout: float, **_: Any) -> tuple[list[str], list[str]]:
        nonlocal clock
        clock += timeout
        return [], left

    monkeypatch.setattr("ray.wait", wait)
    monkeypatch.setattr("pipelines.results.bar.time.monotonic", lambda: clock)
    with pytest.raises(TimeoutError, match=r"tiles: 2 of 2 left; .* 3 CPUs.*'CPU': 0.5.* 180 s"):
        RayTasks(cpus=3, threads=1, wait_s=3 * QUIET_S).wait(["a", "b"], "tiles")
    assert caplog.text.count("waiting for tiles: 2 of 2 left") == 2


@pytest.mark.ray
@pytest.mark.timeout(120)
def test_a_ranking_in_tasks_is_that_of_one_process(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = people(300, copies=20)
    query, gallery = random_images(feature[:100], 0), random_images(feature[100:], 1)
    monkeypatch.setattr("reid_core.evaluation.metrics.QUERIES", 40)
    found = evaluate_in_tasks(query, gallery, RayTasks(cpus=0.5, threads=1))
    assert found.accuracies() == evaluate(query, gallery).accuracies()
