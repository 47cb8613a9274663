"""The pieces of the label stage as Ray tasks."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipelines.nodes.inside import hide_other_gpus
from pipelines.results.bar import Bar
from reid_core.errors import UsageError
from reid_core.forecast import TASKS_PER_NODE
from reid_core.threads import use_threads

QUIET_S = 60.0  # without any task done, say what is waited for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayTasks:
    """Runs every task on some machine of the cluster; see ``reid_core.labelling.tasks.Tasks``."""

    cpus: float  # of a task
    threads: int  # of a task
    gpus: float = 0.0  # of a task that can use a GPU; 0 where none is to be used
    gpu_cpus: float = 0.0  # of such a task
    wait_s: float = 3600.0  # longest time in which no task ends

    @classmethod
    def of_cluster(cls, blocks: int) -> "RayTasks":
        """A node's CPUs for one block; of many blocks, ``TASKS_PER_NODE`` at a time on a node.

        Raises:
            UsageError: no node has a whole CPU.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [node for node in nodes if node.get("CPU", 0) >= 1]
        if not nodes:
            raise UsageError("no node of the Ray cluster offers a whole CPU; start one that does")
        most = int(max(node["CPU"] for node in nodes))
        each = most if blocks == 1 else max(1, most // TASKS_PER_NODE)
        with_gpu = [int(max(1, n["CPU"] // n["GPU"])) for n in nodes if n.get("GPU", 0) >= 1]
        gpu_cpus = min(with_gpu, default=0)
        return cls(cpus=each, threads=each, gpus=float(bool(with_gpu)), gpu_cpus=gpu_cpus)

    @property
    def gpu(self) -> bool:
        return self.gpus > 0

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: Any, gpu: bool = False) -> Any:
        on_gpu = gpu and self.gpu
        call: Any = _call_on_gpu if on_gpu else _call
        ask = (
            {"num_cpus": self.gpu_cpus, "num_gpus": self.gpus}
            if on_gpu
            else {"num_cpus": self.cpus}
        )
        return call.options(**ask, name=function.__name__).remote(self.threads, function, *args)

    def wait(self, references: Sequence[Any], what: str) -> None:
        """Wait for all of them, and say every minute for what.

        Raises:
            TimeoutError: none has ended for ``wait_s``.
        """
        left, said_s = list(references), 0.0
        with Bar(what, len(left)) as bar:
            while left:
                done, left = ray.wait(left, timeout=bar.every_s, fetch_local=False)
                bar.update(len(done))
                said_s = 0.0 if done else said_s
                if bar.quiet_s > min(said_s + QUIET_S, self.wait_s):
                    said_s = bar.quiet_s
                    text = (
                        f"{what}: {len(left)} of {len(references)} left; a task asks for {self.cpus:g} CPUs, or "
                        f"for {self.gpu_cpus:g} and {self.gpus:g} GPUs; free: {ray.available_resources()}"
                    )
                    if bar.quiet_s > self.wait_s:
                        raise TimeoutError(f"{text}. Waited {self.wait_s:g} s; see `ray status`")
                    logger.info("waiting for %s", text)

    def get(self, references: Sequence[Any]) -> list[Any]:
        """The values, in the order of the references.

        Raises:
            OSError: a task was lost, by a crash or for want of memory; or the error of the task itself.
        """
        try:
            return ray.get(list(references))
        except RayTaskError as error:
            cause: Any = error
            while isinstance(cause, RayTaskError):  # a task fails with the error of its argument
                cause = cause.cause
            raise cause from error
        except RayError as error:
            raise OSError(
                f"a task of the label stage was lost ({type(error).__name__}: {error}); give more memory or --shards"
            ) from error


@ray.remote
def _call(threads: int, function: Callable[..., Any], *args: Any) -> Any:
    hide_other_gpus()
    use_threads(threads)
    return function(*args)


@ray.remote(max_calls=1)  # the process ends, so that the next task finds the GPU's memory free
def _call_on_gpu(threads: int, function: Callable[..., Any], *args: Any) -> Any:
    use_threads(threads)
    return function(*args)
