"""Where the parts of all ranks meet, outside the trainer: when all have come, one Ray task gets them.

A Ray task that a train worker started itself would wait for resources that the trainer holds; an actor of the
driver's has none of these troubles, and the task's result outlives the workers.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.queue import Queue

from pipelines.progress import forward_logs


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A function over all parts, run as one Ray task."""

    name: str  # for messages
    function: Callable[..., Any]  # called as function(parts, **arguments)
    arguments: dict[str, Any] = field(default_factory=dict)
    events: Queue | None = None  # where its log lines go
    num_cpus: float = 0.2
    num_gpus: float = 0.0


@dataclass
class _Gathering:
    parts: dict[int, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    result: Any = None
    taken: int = 0


@ray.remote(num_cpus=0)
class Meeting:
    """One gathering a key; a key names the attempt, the round and the stage, so dead attempts never mix."""

    def __init__(self) -> None:
        self.gatherings: dict[str, _Gathering] = {}

    async def hand_in(
        self, key: str, rank: int, world: int, part: list[ray.ObjectRef], stage: Stage
    ) -> list[ray.ObjectRef]:
        """Give one rank's part (a reference in a list); returns the reference of the stage's result in a list."""
        gathering = self.gatherings.setdefault(key, _Gathering())
        gathering.parts[rank] = part[0]
        if len(gathering.parts) == world:
            task = ray.remote(run_stage).options(
                name=stage.name, num_cpus=stage.num_cpus, num_gpus=stage.num_gpus, max_retries=3
            )
            ordered = [gathering.parts[r] for r in range(world)]
            gathering.result = task.remote(stage, ordered)
            gathering.complete.set()
        await gathering.complete.wait()
        gathering.taken += 1
        if gathering.taken == world:
            del self.gatherings[key]
        return [gathering.result]

    async def missing(self, key: str, world: int) -> list[int]:
        """Ranks whose part has not come."""
        gathering = self.gatherings.get(key)
        return [r for r in range(world) if gathering is None or r not in gathering.parts]


def run_stage(stage: Stage, parts: list[ray.ObjectRef]) -> Any:
    """Fetch the parts and run the stage's function on them."""
    if stage.events is not None:
        forward_logs(stage.events)
    return stage.function(ray.get(parts), **stage.arguments)


def meet(
    meeting: Any, key: str, rank: int, world: int, part: Any, stage: Stage, *, timeout_s: float
) -> Any:
    """Hand in this rank's part and wait for the stage's result; the same value on every rank.

    Raises:
        TimeoutError: parts or the task did not come within ``timeout_s``; says which and what the
            cluster has free.
    """
    mine = meeting.hand_in.remote(key, rank, world, [ray.put(part)], stage)
    try:
        result = ray.get(mine, timeout=timeout_s)[0]
    except GetTimeoutError as error:
        absent = ray.get(meeting.missing.remote(key, world), timeout=30)
        raise TimeoutError(
            f"{stage.name}: no part from ranks {absent} within {timeout_s:.0f} s; raise --wait-s or look "
            "at their logs"
        ) from error
    try:
        return ray.get(result, timeout=timeout_s)
    except GetTimeoutError as error:
        raise TimeoutError(
            f"{stage.name} (needs {stage.num_cpus} CPUs, {stage.num_gpus} GPUs) did not end within "
            f"{timeout_s:.0f} s; the cluster has free: {ray.available_resources()}; raise --wait-s or "
            "leave more CPUs to it with fewer --workers"
        ) from error
