"""Where the parts of all ranks meet, outside the trainer: when all have come, one Ray task gets them.

A Ray task that a train worker started itself would wait for resources that the trainer holds; an actor of the
driver's has none of these troubles, and the task's result outlives the workers.
"""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

ON_HEAD: dict[str, Any] = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
"""Options of an actor that a run cannot lose: without them it is on any node, and its loss would end the run."""


@dataclass
class _Gathering:
    parts: dict[int, Any] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    result: Any = None
    taken: int = 0


@ray.remote(max_restarts=-1, **ON_HEAD)
class Meeting:
    """One gathering a key; a key names the attempt, the round and the stage, so dead attempts never mix.

    Where its process dies, the ranks that wait fail, and their next attempt meets in a new one.
    """

    def __init__(self) -> None:
        self.gatherings: dict[str, _Gathering] = {}
        self.attempts: set[str] = set()

    async def hand_in(
        self,
        key: str,
        rank: int,
        world: int,
        refs: tuple[ray.ObjectRef, ray.ObjectRef],
        options: dict[str, Any],
    ) -> list[ray.ObjectRef]:
        """Give one rank's part; returns the reference of the stage's result in a list.

        Args:
            key: of the gathering, which begins with ``ATTEMPT/``.
            rank: that gives.
            world: ranks that must give.
            refs: to the Stage and to the part; neither is unpickled in this process.
            options: of the Ray task.
        """
        self._begin(key.partition("/")[0])
        gathering = self.gatherings.setdefault(key, _Gathering())
        gathering.parts[rank] = refs[1]
        if len(gathering.parts) == world:
            task = ray.remote(run_stage).options(**options)
            ordered = [gathering.parts[r] for r in range(world)]
            gathering.result = task.remote([refs[0]], ordered)
            gathering.complete.set()
        await gathering.complete.wait()
        gathering.taken += 1
        if gathering.taken == world:
            del self.gatherings[key]
        return [gathering.result]

    def _begin(self, attempt: str) -> None:
        """Drop the parts that the attempts before this one left: their ranks are dead."""
        if attempt not in self.attempts:
            self.attempts.add(attempt)
            self.gatherings.clear()

    async def missing(self, key: str, world: int) -> list[int]:
        """Ranks whose part has not come."""
        gathering = self.gatherings.get(key)
        return [r for r in range(world) if gathering is None or r not in gathering.parts]


def run_stage(stage_ref: list[ray.ObjectRef], parts: list[ray.ObjectRef]) -> Any:
    """Fetch the stage, the queue of its log lines and the parts, and run its function on all cores."""
    from pipelines.nodes.inside import forward_logs, hide_other_gpus  # not needed by the actor
    from reid_core.threads import use_threads

    stage, events = ray.get(stage_ref[0])
    hide_other_gpus()
    use_threads(len(os.sched_getaffinity(0)))  # the train workers wait
    forward_logs(events)
    try:
        return stage.function(ray.get(parts), **stage.arguments)
    finally:
        forward_logs(None)  # the process may serve another run next


def meet(
    meeting: Any,
    key: str,
    rank: int,
    world: int,
    refs: tuple[ray.ObjectRef, ray.ObjectRef],
    options: dict[str, Any],
    *,
    timeout_s: float,
) -> Any:
    """Hand in this rank's part and wait for the stage's result; the same value on every rank.

    Args:
        meeting: handle of the actor.
        key: of the gathering, which begins with ``ATTEMPT/``.
        rank: that gives.
        world: ranks that must give.
        refs: to a Stage with the queue of its log lines, and to the part.
        options: of the Ray task: ``name``, ``num_cpus``, ``num_gpus``.
        timeout_s: for the parts, and again for the task.

    Raises:
        TimeoutError: parts or the task did not come within ``timeout_s``; says which and what the
            cluster has free.
    """
    mine = meeting.hand_in.remote(key, rank, world, refs, options)
    try:
        result = ray.get(mine, timeout=timeout_s)[0]
    except GetTimeoutError as error:
        absent = ray.get(meeting.missing.remote(key, world), timeout=30)
        raise TimeoutError(
            f"{options['name']}: no part from ranks {absent} within {timeout_s:.0f} s; raise --wait-s or look "
            "at their logs"
        ) from error
    try:
        return ray.get(result, timeout=timeout_s)
    except GetTimeoutError as error:
        ray.cancel(result, recursive=True)
        raise TimeoutError(
            f"{options['name']} (needs {options['num_cpus']} CPUs, {options['num_gpus']} GPUs) did not end within "
            f"{timeout_s:.0f} s; the cluster has free: {ray.available_resources()}; raise --wait-s or "
            "leave more CPUs to it with fewer --workers"
        ) from error
