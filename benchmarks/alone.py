"""A run of ``reid train`` in one process, without Ray: the same rounds on the same numbers, at half the cost.

It leaves metrics, labels, weights and ``result.json`` as a run does, but no checkpoint, and it does not look at the
images beforehand.
"""

from functools import partial
from queue import Queue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipelines import train
from pipelines.images.blocks import decode_block
from pipelines.images.extraction import BlockEmbedder, embed_all
from pipelines.images.inputs import open_store, scan_inputs
from pipelines.results.progress import Listener
from pipelines.results.run_folder import RunFolder, describe_environment, settings, summarise
from pipelines.run.meeting import Stage
from pipelines.run.rounds import Rounds, RunSpec
from pipelines.run.stages import Part
from reid_core.labelling.engine import Engine
from reid_core.labelling.tasks import InProcess
from reid_core.settings import ImageConfig


class Alone(Rounds):
    """The only rank, on blocks that are decoded once and stay in memory."""

    def __init__(self, spec: RunSpec, images: dict[str, pa.Table], block: int) -> None:
        super().__init__(spec, images, torch.device("cpu"))
        self.blocks = {
            name: _blocks(images[name], spec.stores[name].root, spec.config.images, block)
            for name in images
        }

    def extract(
        self, name: str, embed: BlockEmbedder | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """All rows."""
        image_id, feature, errors = embed_all(self.blocks[name], embed or self.embed)
        assert not errors, errors[0]
        return image_id, feature

    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """Run the stage here."""
        return stage.function([part], **stage.arguments)

    def tell(self, kind: str, **event: Any) -> None:
        """Send an event to the listener's thread."""
        self.spec.events.put({"kind": kind, **event})

    def report(self, number: int, metrics: dict[str, float]) -> None:
        """Tell the metrics."""
        self.tell("round", round=number, **metrics)


def _blocks(images: pa.Table, root: str, size: ImageConfig, block: int) -> list[dict[str, Any]]:
    """``block_dataset`` as a list."""
    decode = partial(
        decode_block, root=root, cache=None, height=size.height, width=size.width, size=block
    )
    rows = images.select(["image_id", "path"])
    return [decode(rows.slice(start, block).to_pydict()) for start in range(0, len(rows), block)]


def run(words: list[str]) -> None:
    """Train as ``reid train`` does with these words: METHOD and flags; no source set."""
    name, job = train.parse(words)
    assert job is not None  # only --list gives none
    job = train.check(job)
    inputs = scan_inputs(job.data, "", job.layout, "")
    (found,) = inputs.found.values()
    table = found.images.sort_by("image_id")
    images = {
        "target": table.filter(pc.field("split") == "train"),
        "test": table.filter(pc.field("split") != "train"),
    }
    store = open_store(found.root, found.fingerprint, "")
    folder = RunFolder(job.storage, job.name)
    identity = {"method_name": name, "data": inputs.fingerprints} | settings(job)
    folder.open({"job": settings(job), "identity": identity}, describe_environment(workers="alone"))
    events: Any = Queue()
    spec = RunSpec(
        method=name,
        config=job.method,
        seed=job.seed,
        folder=folder.path,
        tables=None,  # type: ignore[arg-type]
        stores=dict.fromkeys(images, store),
        meeting=None,
        events=events,
        gpu=False,
        eval_every=job.eval_every,
        log_every=job.log_every,
        camera_filter=job.camera_filter,
        guard=job.guard,
        threads=1,
        loader_workers=0,
        wait_s=job.wait_s,
        engine=Engine(),
        tasks=InProcess(),
    )
    try:
        with Listener(events, folder, job.method.rounds, images["target"]):
            Alone(spec, images, job.block).run()
        folder.write_json("result.json", summarise(folder.evaluations()))
    finally:
        folder.close()
