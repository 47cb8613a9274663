"""This process as the place of the rounds: one worker, no Ray, the same files and numbers as a run on this machine."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipelines.images.blocks import blocks_here
from pipelines.images.extraction import BlockEmbedder, embed_all
from pipelines.images.inputs import Images, Inputs, look_at
from pipelines.images.look import look_here
from pipelines.nodes.inside import Forward
from pipelines.nodes.share import Node, divide
from pipelines.results import checkpoints
from pipelines.results.progress import Listener
from pipelines.results.run_folder import RunFolder
from pipelines.run.job import RunSpec, TrainJob
from pipelines.run.place import Part, Stage, Stopped
from pipelines.run.rounds import Rounds
from reid_core.hardware import gpus_hidden
from reid_core.labelling.engine import Engine, shards_for
from reid_core.labelling.tasks import InProcess
from reid_core.threads import use_threads


def train(name: str, job: TrainJob[Any], inputs: Inputs, folder: RunFolder) -> dict[str, str]:
    """Run the rounds that are left; ``{"stopped": reason}`` where the data or the labels ended the run."""
    images = look_at(inputs, look_here)
    folder.check_left_out(images.left_out)
    cores = max(2, len(os.sched_getaffinity(0)))
    spec = RunSpec(
        method=name,
        job=job,
        folder=folder.path,
        stores=images.stores,
        threads=divide([Node(cores)], 1, gpu=False).threads,  # as a Ray on this machine shares out
        engine=Engine(
            knn=job.knn,
            backend=job.backend,
            shards=shards_for(len(images.tables["target"]), job.shards),
        ),
        tasks=InProcess(),
    )
    before = torch.get_num_threads()
    events: SimpleQueue[Any] = SimpleQueue()
    try:
        with (
            Listener(events, folder, job.method.rounds, images.tables["target"]),
            _heard(events),
            nullcontext() if job.gpu else gpus_hidden(),
        ):
            use_threads(spec.threads)
            Rounds(Alone(spec, images, events), spec, images.tables).run()
    except Stopped as reason:
        return {"stopped": str(reason)}
    finally:
        use_threads(before)
    return {}


@contextmanager
def _heard(events: "SimpleQueue[Any]") -> Iterator[None]:
    """Send the lines of ``reid_core`` to the listener, which says once what is the same every round."""
    ours = logging.getLogger("reid_core")
    before = ours.handlers, ours.propagate
    ours.handlers, ours.propagate = [Forward(events)], False
    try:
        yield
    finally:
        ours.handlers, ours.propagate = before


class Alone:
    """The only rank."""

    def __init__(self, spec: RunSpec, images: Images, events: "SimpleQueue[Any]") -> None:
        self.spec = spec
        self.images = images
        self.events = events
        self.device = torch.device("cuda" if spec.job.gpu else "cpu")

    @contextmanager
    def restored(self) -> Iterator[Path | None]:
        """The newest whole checkpoint of the run folder, whichever place it was made in."""
        newest = checkpoints.newest(self.spec.folder)
        if newest is None:
            yield None
            return
        with checkpoints.as_local(newest) as folder:
            yield folder

    def tell(self, kind: str, **event: Any) -> None:
        """Send an event to the listener's thread."""
        self.events.put({"kind": kind, **event})

    def extract(self, name: str, embed: BlockEmbedder) -> tuple[np.ndarray, np.ndarray]:
        """All rows."""
        table: pa.Table = self.images.tables[name]
        self.tell("stage", text=f"embedding {name} images", total=len(table))
        size = self.spec.config.images
        blocks = blocks_here(
            table,
            self.images.stores[name],
            height=size.height,
            width=size.width,
            size=self.spec.job.block,
        )
        return embed_all(blocks, embed, lambda done: self.tell("done", done=done))

    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """Run the stage here; a wrong-data error ends the run."""
        self.tell("stage", text=stage.name)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return stage.function([part], **stage.arguments)
        except ValueError as error:
            raise Stopped(f"{stage.name}: {error}") from error

    def report(self, number: int, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Tell the metrics and write a checkpoint."""
        self.tell("round", round=number, **metrics)
        with TemporaryDirectory() as folder:
            save(Path(folder))
            checkpoints.keep(
                Path(folder), self.spec.folder, f"round-{number + 1:04d}", self.spec.job.keep
            )
