"""Images to features through Ray Data: fixed blocks, decoded on any CPU, embedded where the weights are.

One row of the dataset is one block is one embedding batch, whichever process gets it: a feature then does
not depend on how Ray splits the work. n images a block (the last one padded), D feature size.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.train import DataConfig

from reid_core.data.decode import ImageStore, load
from reid_core.data.transforms import standardise
from reid_core.models.embedder import Embedder
from reid_core.settings import ImageConfig

DECODE_CPUS = 0.5  # of a core, a decode task: two a core keep it busy while one waits for bytes
NO_PROGRESS_S = 300  # Ray Data gives up when nothing moved for so long; its own default is 1800
PAD = -1  # image id of a padded place


class BadImages(ValueError):
    """Images that could not be read or decoded."""


def block_dataset(
    images: pa.Table, store: ImageStore, config: ImageConfig, size: int
) -> ray.data.Dataset:
    """A dataset of decoded blocks of ``size`` images, in ``image_id`` order.

    Its rows: ``image_id`` (n,) int64 (PAD in padded places), ``image`` (n, 3, H, W) uint8, ``error``
    (n,) string, empty where the image was read.
    """
    rows = images.select(["image_id", "path"]).sort_by("image_id")
    blocks = [
        pa.table(
            {
                "image_id": [rows.column("image_id").slice(start, size).to_pylist()],
                "path": [rows.column("path").slice(start, size).to_pylist()],
            }
        )
        for start in range(0, len(rows), size)
    ]
    dataset = ray.data.from_arrow(blocks)
    decode = partial(decode_block, store=store, height=config.height, width=config.width, size=size)
    return dataset.map(decode, num_cpus=DECODE_CPUS)


def decode_block(
    row: dict[str, Any], *, store: ImageStore, height: int, width: int, size: int
) -> dict[str, Any]:
    """Read and decode the images of one block; a bad one is black and has its reason in ``error``."""
    torch.set_num_threads(1)
    image_id = np.full(size, PAD, dtype=np.int64)
    image_id[: len(row["path"])] = row["image_id"]
    image = np.zeros((size, 3, height, width), dtype=np.uint8)
    error = [""] * size
    for place, path in enumerate(row["path"]):
        try:
            image[place] = load(store, path, height, width).numpy()
        except (ValueError, OSError) as reason:
            error[place] = f"{path}: {reason}"
    return {"image_id": image_id, "image": image, "error": error}


class BlockEmbedder:
    """A plain callable on one block; Ray Data, a rank or a loop can drive it."""

    def __init__(self, embedder: Embedder, config: ImageConfig, device: torch.device) -> None:
        self.embedder = embedder.to(device)
        self.config = config
        self.device = device

    @torch.inference_mode()
    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Embed a whole block; returns the rows of images that were read, and the errors of the others.

        Args:
            block: one row of ``block_dataset``.

        Returns:
            ``image_id`` (m,) int64, ``feature`` (m, D) float32 and ``error``, a list of messages.
        """
        self.embedder.eval()
        image = standardise(
            torch.as_tensor(np.array(block["image"])).to(self.device), self.config.pixels
        )
        feature = self.embedder(image).float().cpu().numpy()
        image_id = np.asarray(block["image_id"])
        error = [str(message) for message in block["error"] if message]
        kept = (image_id != PAD) & np.array([not message for message in block["error"]])
        return {"image_id": image_id[kept], "feature": feature[kept], "error": error}


def embed_all(
    blocks: Iterable[dict[str, Any]], embed: BlockEmbedder
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embed every block of an iterable.

    Returns:
        image ids (m,) int64, features (m, D) float32 (no rows where there was no block) and errors.
    """
    parts = [embed(block) for block in blocks]
    dim = embed.embedder.dim
    image_id = np.concatenate([np.empty(0, np.int64), *(p["image_id"] for p in parts)])
    feature = np.concatenate([np.empty((0, dim), np.float32), *(p["feature"] for p in parts)])
    return image_id, feature, [message for p in parts for message in p["error"]]


def shard_blocks(shard: ray.data.DataIterator) -> Iterator[dict[str, Any]]:
    """The blocks of a rank's shard, one after the other."""
    for batch in shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {str(name): column[0] for name, column in batch.items()}


class AllRows(DataConfig):
    """Give every row to exactly one rank; Ray Train's own splits are of equal length and drop rows."""

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One ``streaming_split(equal=False)`` a dataset."""
        shards: list[dict[str, ray.data.DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.set_name(name)
            copy = dataset.copy(dataset)
            copy.context.execution_options = self._resolve_execution_options(name)
            split = copy.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for rank, shard in enumerate(split):
                shards[rank][name] = shard
        return shards


def quiet_ray_data() -> None:
    """Settings of Ray Data in this process: no bars and no prints of its own, and no endless waits."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S  # type: ignore[attr-defined]
