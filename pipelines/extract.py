"""``reid extract``: features of a data folder as a FEATURES table, through Ray Data."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import tyro

from pipelines.images.blocks import block_dataset, told_when_stuck
from pipelines.images.extraction import BlockEmbedder
from pipelines.images.inputs import default_cache, open_store
from pipelines.results.bar import Bar
from reid_core.data.datasets import scan
from reid_core.errors import UsageError
from reid_core.models.embedder import build_embedder, load_embedder
from reid_core.settings import ImageConfig, ModelConfig
from reid_core.storage import atomic_path
from reid_core.tables import SPLITS, features_schema, features_table

if TYPE_CHECKING:
    import ray.data

REPLICA_CPUS = 0.4  # unlike DECODE_CPUS, or Ray would fuse decoding and embedding into one process
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExtractJob:
    """Embed the images of a data folder; corrupt ones are listed and left out."""

    data: str = ""
    """The root of the images: a path or a URI."""
    out: str = "features.parquet"
    """The FEATURES table to write: a path or a URI."""
    weights: str = ""
    """An embedder file of a run (.safetensors); it tells network and input size, in place of --model and --images."""
    split: Literal["train", "query", "gallery", "test", "all"] = "train"
    """The images to embed; test is query and gallery."""
    layout: str = "auto"
    """The layout of the data; `reid scan` tells which are known."""
    model: ModelConfig = field(default_factory=ModelConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    workers: int = 1
    """The number of replicas of the network, each in a process of its own."""
    gpu: bool = False
    """Give every replica a GPU."""
    block: int = 128
    """The number of images of one embedding batch."""
    cache: str = default_cache()
    """The folder on each node's local disk that keeps encoded images; '' keeps none."""
    seed: int = 1
    """The seed of random weights, where no --weights are given."""


class EmbedActor:
    """A model replica: builds its network once and embeds blocks."""

    def __init__(self, job: ExtractJob) -> None:
        if job.weights:
            embedder, _, images = load_embedder(job.weights)
        else:
            embedder, images = build_embedder(job.model, bn_group=1, seed=job.seed), job.images
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.workers))
        device = torch.device("cuda" if job.gpu else "cpu")
        self.embed = BlockEmbedder(embedder, images, device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embed a batch of one block."""
        result = self.embed({name: column[0] for name, column in batch.items()})
        return {name: [value] for name, value in result.items()}


def run(job: ExtractJob) -> int:
    """Write the FEATURES table, row groups as they come; returns the number of images in it.

    Raises:
        UsageError: a path, the split or the GPU that was asked for is not there.
        ValueError: no image could be read.
    """
    if not job.data:
        raise UsageError("--data is missing: give the root of the images, a path or URI")
    if job.weights:  # on the driver first: a wrong file is one clear message
        job = replace(job, images=load_embedder(job.weights)[2])
    found = scan(job.data, job.layout)
    chosen = found.images
    wanted = {"all": list(SPLITS), "test": ["query", "gallery"]}.get(job.split, [job.split])
    chosen = chosen.filter(pc.field("split").isin(wanted))
    if not len(chosen):
        raise UsageError(
            f"{job.data}: no images of split {job.split!r}; `reid scan` tells which there are"
        )
    import ray.data

    from pipelines.nodes.runtime import ray_session

    with ray_session(), told_when_stuck():
        if job.gpu and ray.cluster_resources().get("GPU", 0) < job.workers:
            raise UsageError(
                f"--gpu needs {job.workers} GPUs; the cluster has fewer. Leave --gpu out or lower --workers"
            )
        store = open_store(found.root, found.fingerprint, job.cache)
        dataset = block_dataset(
            chosen,
            store,
            height=job.images.height,
            width=job.images.width,
            size=job.block,
        ).map_batches(
            EmbedActor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=job.workers),
            num_gpus=1 if job.gpu else 0,
            num_cpus=0 if job.gpu else REPLICA_CPUS,
        )
        return _write(dataset, chosen, job)


def _write(dataset: "ray.data.Dataset", images: Any, job: ExtractJob) -> int:
    written, failed, writer = 0, [], None
    with (
        atomic_path(job.out) as (filesystem, temporary),
        Bar("embedding images", len(images)) as bar,
    ):
        for batch in dataset.iter_batches(batch_size=1, batch_format="numpy"):
            image_id, feature = np.asarray(batch["image_id"][0]), np.asarray(batch["feature"][0])
            failed += [str(message) for message in batch["error"][0]]
            if len(image_id):
                table = features_table(images, image_id, feature)
                if writer is None:
                    schema = features_schema(feature.shape[1])
                    writer = pq.ParquetWriter(temporary, schema, filesystem=filesystem)
                writer.write_table(table.cast(writer.schema))
            written += len(image_id)
            bar.update(len(image_id))
        if writer is None:
            raise ValueError(
                f"{job.data}: none of {len(images)} images could be read: {failed[:3]}"
            )
        writer.close()
    for message in failed:
        logger.warning("left out %s", message)
    if written + len(failed) != len(images):
        raise RuntimeError(
            f"{written} features and {len(failed)} failures for {len(images)} images"
        )
    logger.info("%s: %d features, %d images left out", job.out, written, len(failed))
    return written


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid extract``."""
    run(tyro.cli(ExtractJob, args=argv, prog="reid extract"))
    return 0
