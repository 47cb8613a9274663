"""How much of a node one piece of the label stage asks for."""

from typing import Any

import pytest

from pipelines.tasks import RayTasks
from reid_core.errors import UsageError


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
