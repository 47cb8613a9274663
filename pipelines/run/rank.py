"""A rank of Ray Train as the place of the rounds: its shards of the data, stages as Ray tasks, a checkpoint a round."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.util.queue import Queue

from pipelines.images.extraction import BlockEmbedder, embed_all, shard_blocks
from pipelines.nodes.inside import forward_logs
from pipelines.nodes.share import STAGE_CPUS, STAGE_GPUS
from pipelines.results.checkpoints import as_local, round_of
from pipelines.run.meeting import meet
from pipelines.run.place import Part, Stage, Stopped
from reid_core import distributed

TELL_S = 0.5  # between two events of one extraction


@dataclass(frozen=True, kw_only=True)
class Handles:
    """What a rank holds of Ray."""

    tables: ray.ObjectRef  # dict of IMAGES by "target", "source", "test", sorted by id
    meeting: Any  # of the Meeting actor
    events: Queue
    wait_s: float  # for other ranks and for tasks
    begun: str  # checkpoint that was made without Ray (path or URI); "" where there is none


class Rank:
    """One train worker."""

    def __init__(self, handles: Handles, images: dict[str, pa.Table], *, gpu: bool) -> None:
        self.handles = handles
        self.images = images
        self.device = ray.train.torch.get_device() if gpu else torch.device("cpu")
        self.rank = distributed.rank()
        self.world = distributed.world_size()
        if self.rank == 0:
            forward_logs(handles.events)
        self.attempt = broadcast_from_rank_zero(uuid4().hex if self.rank == 0 else None)

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        """Ray's last checkpoint, or the one that the run began with where that is newer."""
        begun, checkpoint = self.handles.begun, ray.train.get_checkpoint()
        if begun and (checkpoint is None or round_of(begun) > round_of(checkpoint.path)):
            with as_local(begun) as folder:
                yield folder
        elif checkpoint is not None:
            with checkpoint.as_directory() as folder:
                yield Path(folder)
        else:
            yield None

    def tell(self, kind: str, **event: Any) -> None:
        """Put an event into the queue; rank 0 only."""
        if self.rank == 0:
            self.handles.events.put({"kind": kind, **event})

    def extract(self, name: str, embed: BlockEmbedder) -> tuple[np.ndarray, np.ndarray]:
        """The rows of this rank's shard; progress is told as if all ranks were alike."""
        shard = ray.train.get_dataset_shard(name)
        assert shard is not None, name
        total, told = len(self.images[name]), time.monotonic()
        self.tell("stage", text=f"embedding {name} images", total=total)

        def tell(done: int) -> None:
            nonlocal told
            if time.monotonic() - told > TELL_S:
                told = time.monotonic()
                self.tell("done", done=min(total, done * self.world))

        return embed_all(shard_blocks(shard), embed, tell)

    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """Run a stage as a Ray task; a wrong-data error ends the run on all ranks."""
        self.tell("stage", text=stage.name)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for itself the task cannot have
        handles = self.handles
        try:
            return meet(
                handles.meeting,
                f"{self.attempt}/{number}/{stage.name}",
                self.rank,
                self.world,
                (ray.put((stage, handles.events)), ray.put(part)),
                {
                    "name": stage.name,
                    "num_cpus": 0.0 if stage.gpu else STAGE_CPUS,
                    "num_gpus": STAGE_GPUS if stage.gpu else 0.0,
                },
                timeout_s=handles.wait_s,
            )
        except (ValueError, TimeoutError) as error:  # RayTaskError takes the class of its cause
            raise Stopped(f"{stage.name}: {getattr(error, 'cause', error)}") from error

    def report(self, number: int, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Report the finished round once, with the whole state as one checkpoint."""
        self.tell("round", round=number, **metrics)
        name = f"round-{number + 1:04d}"
        if self.rank:
            ray.train.report(metrics, checkpoint=None, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
