"""Settings of Ray and of OpenMP before they are loaded, and the one local Ray that tests share."""

import os
from collections.abc import Iterator

import pytest

os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # loopback only; the examples of docs/cluster.md use tokens
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "OMP_NUM_THREADS": "1",  # tiny shapes: a second thread only waits for its core
}

import ray

from reid_core.data.datasets import synthetic


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray with four logical CPUs for all tests that only use it."""
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
