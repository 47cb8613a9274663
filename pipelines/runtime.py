"""Ray for a command: start or join a cluster, and share its CPUs and GPUs out before any work begins."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from pipelines.blocks import DECODE_CPUS, quiet_ray_data
from reid_core.errors import UsageError

STAGE_CPUS = 0.2  # of a core, reserved for the label and evaluation tasks
HEADROOM_CPUS = STAGE_CPUS + 2 * DECODE_CPUS  # what the trainer must leave free, or nothing moves
MIN_WORKER_CPUS = 0.2
WORKER_GPUS = 0.6  # above a half, so that two ranks never share a GPU; the rest is the label tasks'
STAGE_GPUS = 0.4  # at most two label tasks on a GPU that has no worker

logger = logging.getLogger(__name__)


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start a local one; leave it at the end."""
    started = not ray.is_initialized()
    if started:
        _start()
    quiet_ray_data()
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def _start() -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # never by chance the local cluster of another run on this machine
        cores = max(2, len(os.sched_getaffinity(0)))
        ray.init(address="local", num_cpus=cores, include_dashboard=True, dashboard_port=0, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UsageError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start it, or unset the variable to "
            "run on this machine"
        ) from error


def hide_other_gpus() -> None:
    """In a Ray task that got no GPU: see none. Ray itself shows it all of the node's."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass(frozen=True)
class Share:
    """What one train worker gets."""

    cpus: float
    gpus: float
    threads: int  # of torch on a CPU


def share_out(workers: int, *, gpu: bool) -> Share:
    """Divide the cluster among ``workers``, leaving room for decoding, labelling and evaluation.

    Raises:
        UsageError: the cluster is too small; gives the numbers.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if gpu and gpus < workers:
        raise UsageError(
            f"--gpu with --workers {workers} needs {workers} GPUs and the cluster has {gpus:g}; "
            "lower --workers or leave --gpu out"
        )
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    each = 1.0 if gpu else min((cpus - HEADROOM_CPUS) / workers, max(nodes))
    each = math.floor(each) if each >= 1 else math.floor(10 * each) / 10
    while each > 1 and sum(node // each for node in nodes) < workers:  # they must fit node by node
        each -= 1
    if each < MIN_WORKER_CPUS or each * workers + HEADROOM_CPUS > cpus:
        most = int((cpus - HEADROOM_CPUS) / (1.0 if gpu else MIN_WORKER_CPUS))
        raise UsageError(
            f"--workers {workers} and the {HEADROOM_CPUS:g} CPUs for decoding and labelling do not fit into the "
            f"cluster's {cpus:g} CPUs; use at most --workers {most}"
        )
    return Share(each, WORKER_GPUS if gpu else 0.0, max(1, int(min(cpus / workers, max(nodes)))))
