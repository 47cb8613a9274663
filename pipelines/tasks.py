"""The pieces of the label stage as Ray tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayTaskError
from tqdm import tqdm

TASKS_PER_NODE = 8  # of many blocks; each gets its part of the node's CPUs


@dataclass(frozen=True)
class RayTasks:
    """Runs every task on some machine of the cluster; see ``reid_core.labelling.tasks.Tasks``."""

    cpus: int  # and threads, of a task
    gpu: bool  # whether the cluster has GPUs; a task that can use one gets one

    @classmethod
    def of_cluster(cls, blocks: int) -> "RayTasks":
        """A node's CPUs for one block; of many blocks, ``TASKS_PER_NODE`` at a time on a node."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = int(max(node.get("CPU", 0) for node in nodes))
        return cls(
            cpus=cpus if blocks == 1 else max(1, cpus // TASKS_PER_NODE),
            gpu=any(node.get("GPU") for node in nodes),
        )

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: Any, gpu: bool = False) -> Any:
        options = {
            "num_cpus": self.cpus,
            "num_gpus": int(gpu and self.gpu),
            "name": function.__name__,
        }
        return _call.options(**options).remote(self.cpus, function, *args)

    def wait(self, references: Sequence[Any], what: str) -> None:
        left = list(references)
        with tqdm(total=len(left), desc=what, disable=None) as bar:
            while left:
                done, left = ray.wait(left, fetch_local=False)
                bar.update(len(done))

    def get(self, references: Sequence[Any]) -> list[Any]:
        try:
            return ray.get(list(references))
        except RayTaskError as error:
            cause: Any = error
            while isinstance(cause, RayTaskError):  # a task fails with the error of its argument
                cause = cause.cause
            raise cause from error


@ray.remote
def _call(threads: int, function: Callable[..., Any], *args: Any) -> Any:
    torch.set_num_threads(threads)
    return function(*args)
