"""Settings of Ray and of OpenMP before they are loaded, the order of tests, and the one local Ray that they share."""

import os
from collections.abc import Iterator

import pytest

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only; the examples of docs/cluster.md use tokens
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "30000",  # of two Rays at a time, 1 GB each
    "RAY_worker_niceness": "0",  # its own 15 gets no core beside the tests of another process
    "RAY_worker_register_timeout_seconds": "240",  # a start takes long on a busy machine
    "OMP_NUM_THREADS": "1",  # tiny shapes: a second thread only waits for its core
}

import ray

from pipelines.nodes.runtime import one_at_a_time
from reid_core.data.datasets import synthetic

LONGEST_FIRST = ("fault", "ray", "slow", "ddp")  # by marker; tests without one come last


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a Ray; sort files by their slowest kind of test, so that processes end together."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    kinds: dict[str, int] = {}
    for item in items:
        kind = next((i for i, m in enumerate(LONGEST_FIRST) if item.get_closest_marker(m)), 9)
        kinds[item.location[0]] = min(kind, kinds.get(item.location[0], 9))
    items.sort(key=lambda item: kinds[item.location[0]])


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """One local Ray with four logical CPUs for the tests of a file that only use it."""
    with one_at_a_time():
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            include_dashboard=True,
            dashboard_port=0,
            log_to_driver=False,
            object_store_memory=300 * 2**20,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A synthetic set of 8 identities: 48 training images, 12 queries, 36 gallery images."""
    return synthetic.draw(str(tmp_path_factory.mktemp("set") / "small"), ids=8, cameras=3, images=4)
