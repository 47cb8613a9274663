"""The CPUs and GPUs of a cluster, shared out among train workers, decoders and the tasks of a stage."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reid_core.errors import UsageError

DECODE_CPUS = 0.5  # of a core, a decode task: two a core keep it busy while one waits for bytes
STAGE_CPUS = 0.2  # of a core, reserved for the label and evaluation tasks
HEADROOM_CPUS = STAGE_CPUS + 2 * DECODE_CPUS  # what the trainer must leave free, or nothing moves
ROOM_CPUS = STAGE_CPUS + DECODE_CPUS  # of it, on one node: tasks do not spread over several
MIN_WORKER_CPUS = 0.2
ROUNDING = 1e-9  # sums of tenths are not exact
WORKER_GPUS = 0.6  # above a half, so that two ranks never share a GPU; the rest is the label tasks'
STAGE_GPUS = 0.4  # at most two label tasks on a GPU that has no worker


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
    import ray

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
