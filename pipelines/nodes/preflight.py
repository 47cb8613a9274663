"""Before any work: the cluster has room for the run, and every node reaches its storage and data."""

import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
import yaml
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.nodes.probe import MARK, installed, problems
from pipelines.nodes.share import (
    DECODE_CPUS,
    MIN_WORKER_CPUS,
    ROOM_CPUS,
    WORKER_GPUS,
    Share,
    share_out,
)
from pipelines.results.run_folder import PACKAGES
from reid_core.errors import UsageError
from reid_core.storage import join, open_folder, write_bytes

SAY_S = 15.0  # between two lines that say what is waited for
POLL_S = 1.0
PROBE_S = 300.0  # for all nodes to answer; to start a process takes a minute on a busy one
SHOWN = 5  # nodes in a message
LAUNCHED = "~/ray_bootstrap_config.yaml"  # what `ray up` keeps on the head, where drivers run

_problems = ray.remote(num_cpus=0, max_retries=0)(problems)
logger = logging.getLogger(__name__)


def wait_for_room(
    workers: int, *, gpu: bool, start_s: float, wait_s: float, runs: int = 1
) -> Share:
    """The share of a worker, once all of them have room.

    Args:
        workers: of the run.
        gpu: one for each.
        start_s: longest wait for nodes that are still starting, seconds; 0 takes the nodes that are there.
        wait_s: longest wait for what another run on the cluster holds, seconds.
        runs: such runs at a time, among which the cluster is divided.

    Raises:
        UsageError: the cluster is too small; gives the numbers.
        TimeoutError: it is not, but something else holds the room.
    """
    share = wait_for_nodes(workers * runs, gpu=gpu, start_s=start_s)
    bundle = {"CPU": share.cpus} | ({"GPU": share.gpus} if gpu else {})
    end = time.monotonic() + wait_s
    with _asked([bundle] * workers) as group:
        while not group.wait(timeout_seconds=min(SAY_S, wait_s)):
            left = end - time.monotonic()
            free = ray.available_resources()
            text = (
                f"room for {workers} workers of {share.cpus:g} CPUs and {share.gpus:g} GPUs each: the cluster has it "
                f"but something else holds; free are {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs"
            )
            if left <= 0:
                raise TimeoutError(f"no {text}. Waited {wait_s:g} s (--wait-s); see `ray status`")
            logger.info("waiting for %s (%.0f s left)", text, left)
    return share


def wait_for_nodes(workers: int, *, gpu: bool, start_s: float) -> Share:
    """The share of a worker, once there are nodes for all; something else may still hold them.

    Args:
        workers: on the whole cluster.
        gpu: one for each.
        start_s: longest wait for nodes that are still starting, seconds; 0 takes the nodes that are there.

    Raises:
        UsageError: the cluster is too small; gives the numbers.
    """
    try:
        return share_out(workers, gpu=gpu)
    except UsageError as missing:
        if limit := _autoscaler_limit(workers, gpu=gpu):
            raise UsageError(f"{missing}; {limit}") from None
        if not start_s:
            hint = "--start-s SECONDS waits for nodes that are still starting"
            raise UsageError(f"{missing}; {hint}") from None
    least = {"CPU": 1.0, "GPU": WORKER_GPUS} if gpu else {"CPU": MIN_WORKER_CPUS}
    begin, said = time.monotonic(), -math.inf
    with _asked([least] * workers + [{"CPU": ROOM_CPUS}, {"CPU": DECODE_CPUS}]):
        while True:
            try:
                return share_out(workers, gpu=gpu)
            except UsageError as missing:
                waited = time.monotonic() - begin
                if waited >= start_s:
                    raise UsageError(f"{missing}. Waited {start_s:g} s (--start-s)") from None
                if waited - said >= SAY_S:
                    said = waited
                    logger.info("waiting for nodes, %.0f of %g s: %s", waited, start_s, missing)
            time.sleep(min(POLL_S, start_s))


def _autoscaler_limit(workers: int, *, gpu: bool) -> str:
    """Why no node that an autoscaler may start helps; empty where one might, or where nothing tells."""
    most = _most()
    if most is None:
        return ""
    cpus, gpus = most["CPU"], most["GPU"]
    if cpus >= workers * (1.0 if gpu else MIN_WORKER_CPUS) and gpus >= workers * gpu:
        return ""
    return f"{LAUNCHED} lets the cluster grow to {cpus:g} CPUs and {gpus:g} GPUs"


def _most() -> Counter[str] | None:
    """Resources of a cluster of the launcher at its largest; Ray 2.60 itself never reports them."""
    file = Path(LAUNCHED).expanduser()
    if not file.exists():
        return None
    config = yaml.safe_load(file.read_text())
    kinds = config.get("available_node_types", {})
    if not kinds or any("CPU" not in kind.get("resources", {}) for kind in kinds.values()):
        return None  # machines of one's own
    found: Counter[str] = Counter()
    for name, kind in kinds.items():
        head = name == config["head_node_type"]
        count = kind.get("max_workers", 0 if head else config["max_workers"]) + head
        found.update({key: count * amount for key, amount in kind["resources"].items()})
    return found


@contextmanager
def _asked(bundles: list[dict[str, float]]) -> Iterator[PlacementGroup]:
    """Ask for bundles of resources. While they are missing, an autoscaler starts nodes for them."""
    group = placement_group(bundles)
    try:
        yield group
    finally:
        remove_placement_group(group)


def check_nodes(folder: str, images: Sequence[tuple[str, str]]) -> None:
    """Every node writes to the folder that the driver sees, reads the images, and has its packages.

    Args:
        folder: of the run (path or URI).
        images: a root (path or URI) and the path of an image below it, of every data set.

    Raises:
        OSError: a node does not; names nodes, paths and reasons.
    """
    nodes = {n["NodeID"]: n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}
    packages = {name: installed(name) for name in PACKAGES}
    place = join(folder, f".preflight-{uuid.uuid4().hex[:8]}")
    write_bytes(join(place, MARK), place.encode())
    try:
        asked = {
            _problems.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(node, place, images, packages): node
            for node in nodes
        }
        late = _wait_for_answers(list(asked))
        answers = {node: _answer(task, task in late) for task, node in asked.items()}
    finally:
        filesystem, inner = open_folder(place)
        filesystem.delete_dir(inner)
    bad = {node: reasons for node, reasons in answers.items() if reasons}
    if bad:
        told = [f"{nodes[node]} ({node[:6]}): {', '.join(bad[node])}" for node in list(bad)[:SHOWN]]
        raise OSError(f"{len(bad)} of {len(nodes)} nodes cannot take part; {'; '.join(told)}")


def _wait_for_answers(tasks: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """The tasks that have not ended after ``PROBE_S``."""
    late, end = tasks, time.monotonic() + PROBE_S
    while late and (left := end - time.monotonic()) > 0:
        _, late = ray.wait(late, num_returns=len(late), timeout=min(SAY_S, left))
        if late:
            logger.info(
                "waiting for %d of %d nodes to try storage and data (%.0f s left)",
                len(late), len(tasks), left,
            )  # fmt: skip
    return late


def _answer(task: ray.ObjectRef, late: bool) -> list[str]:
    if late:
        ray.cancel(task, force=True)
        return [f"no answer within {PROBE_S:g} s; does its storage hang?"]
    try:
        return ray.get(task)
    except RayError as error:
        return [f"no answer ({str(error).strip().splitlines()[-1]})"]
