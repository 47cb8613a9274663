"""Ray for a command: start or join a cluster, and share its CPUs and GPUs out before any work begins."""

import logging
import math
import os
import secrets
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError

from pipelines.images.blocks import DECODE_CPUS, NO_PROGRESS_S, quiet_ray_data
from reid_core.errors import UsageError

STAGE_CPUS = 0.2  # of a core, reserved for the label and evaluation tasks
HEADROOM_CPUS = STAGE_CPUS + 2 * DECODE_CPUS  # what the trainer must leave free, or nothing moves
ROOM_CPUS = STAGE_CPUS + DECODE_CPUS  # of it, on one node: tasks do not spread over several
MIN_WORKER_CPUS = 0.2
ROUNDING = 1e-9  # sums of tenths are not exact
WORKER_GPUS = 0.6  # above a half, so that two ranks never share a GPU; the rest is the label tasks'
STAGE_GPUS = 0.4  # at most two label tasks on a GPU that has no worker

logger = logging.getLogger(__name__)


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start a local one; leave it at the end."""
    started = not ray.is_initialized()
    if started:
        _start()
        signal.signal(signal.SIGTERM, _stop)  # after Ray's own handler, which prints a stack
    quiet_ray_data()
    try:
        yield
    except RayTaskError:  # is the error of the task, too
        raise
    except ExecutionTimeoutError as error:  # of Ray Data
        raise TimeoutError(
            f"no image was read or embedded for {NO_PROGRESS_S:g} s; the cluster has free: "
            f"{ray.available_resources()}; wait until others have left it, or give it more nodes"
        ) from error
    except RayError as error:
        raise OSError(
            f"Ray lost a task or an actor ({str(error).strip().splitlines()[-1]}); the same command goes on"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _stop(*_: object) -> None:
    """SIGTERM, as of `ray job stop`, ends a command like Ctrl-C."""
    raise KeyboardInterrupt


def _start() -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    local = {
        "num_cpus": max(2, len(os.sched_getaffinity(0))),
        "include_dashboard": True,
        "dashboard_port": 0,
    }
    if not address:
        make_token()
    try:  # "local": never by chance the local cluster of another run on this machine
        ray.init(address=address or "local", **quiet, **({} if address else local))
    except Exception as error:  # Ray has no class for a node that takes too long to start
        reason = " ".join(str(error).split()).partition(". ")[0]
        if not address:
            raise OSError(
                f"cannot start Ray on this machine ({reason}). Where it is busy: try again. Without a token: export "
                "RAY_AUTH_TOKEN_PATH=FILE with one that is there, or unset RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
            ) from error
        raise UsageError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address} ({reason}). It must run, with the Ray of this "
            "environment, and want the token of this shell: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE with "
            "the file that `ray start` had, or RAY_AUTH_MODE=disabled where it had none. To run on this machine alone: "
            "unset RAY_ADDRESS"
        ) from error


def make_token() -> None:
    """The token file that Ray would make itself, but for its owner alone to read."""
    told = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    path = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_MODE") == "token" and not told and not path.exists():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))


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


@dataclass(frozen=True)
class Node:
    """What one machine offers."""

    cpus: float
    gpus: float = 0.0


def share_out(workers: int, *, gpu: bool) -> Share:
    """Divide the cluster among ``workers``, leaving room for decoding, labelling and evaluation.

    Raises:
        UsageError: the cluster is too small; gives the numbers.
    """
    offers = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return divide([Node(o.get("CPU", 0.0), o.get("GPU", 0.0)) for o in offers], workers, gpu=gpu)


def divide(nodes: Sequence[Node], workers: int, *, gpu: bool) -> Share:
    """``share_out`` of given nodes."""
    gpus = sum(node.gpus for node in nodes)
    if gpu and gpus < workers:
        raise UsageError(
            f"--gpu with --workers {workers} needs {workers} GPUs and the cluster has {gpus:g}; "
            "lower --workers or leave --gpu out"
        )
    each = _largest(nodes, workers, gpu=gpu)
    if not each:
        most = next((n for n in range(workers - 1, 0, -1) if _largest(nodes, n, gpu=gpu)), 0)
        least = "1 CPU and a GPU" if gpu else f"{MIN_WORKER_CPUS:g} CPUs"
        raise UsageError(
            f"--workers {workers} do not fit: each needs {least} on one node, and decoding and labelling "
            f"{HEADROOM_CPUS:g} CPUs beside them, {ROOM_CPUS:g} on one node; the nodes have {_listed(nodes)}; "
            + (f"use at most --workers {most}" if most else "add CPUs")
        )
    per_worker = sum(node.cpus for node in nodes) / workers
    threads = max(1, int(min(per_worker, max(node.cpus for node in nodes))))
    return Share(each, WORKER_GPUS if gpu else 0.0, threads)


def _largest(nodes: Sequence[Node], workers: int, *, gpu: bool) -> float:
    """The most CPUs that each of the workers can have: whole ones or tenths, 1 beside a GPU; 0 if none."""
    total = sum(node.cpus for node in nodes)
    most = min((total - HEADROOM_CPUS) / workers, max(node.cpus for node in nodes)) + ROUNDING
    tenths = [tenth / 10 for tenth in range(9, 0, -1) if tenth / 10 >= MIN_WORKER_CPUS]
    sizes = [1.0] if gpu else [*map(float, range(int(most), 0, -1)), *tenths]
    fitting = (size for size in sizes if size <= most and _fits(nodes, workers, size, gpu=gpu))
    return next(fitting, 0.0)


def _fits(nodes: Sequence[Node], workers: int, each: float, *, gpu: bool) -> bool:
    """Whether all workers have a place and, wherever Ray puts them, one node keeps ``ROOM_CPUS``."""
    places, fillers = 0, 0.0  # workers that fit, and fewest of them that leave no node with room
    for node in nodes:
        here = int(node.cpus / each + ROUNDING)
        here = min(here, int(node.gpus)) if gpu else here
        filler = max(0, int((node.cpus - ROOM_CPUS) / each + ROUNDING + 1))
        places += here
        fillers += filler if filler <= here else math.inf
    return places >= workers and fillers > workers


def _listed(nodes: Sequence[Node]) -> str:
    kinds = Counter(
        f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "") for node in nodes
    )
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())
