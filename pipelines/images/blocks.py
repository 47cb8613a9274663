"""Fixed blocks of images as a Ray Data set, decoded on any CPU, each given to exactly one rank.

One row of the dataset is one block is one embedding batch, whichever process gets it: a feature then does
not depend on how Ray splits the work. n images a block (the last one padded).

Ray's own actors unpickle what stands here, a process each: the heavy imports are inside the function that
needs them, which keeps the start of a run short.
"""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.train import DataConfig

DECODE_CPUS = 0.5  # of a core, a decode task: two a core keep it busy while one waits for bytes
NO_PROGRESS_S = 300  # Ray Data gives up when nothing moved for so long; its own default is 1800
PAD = -1  # image id of a padded place


def block_dataset(
    images: pa.Table, root: str, cache: str | None, *, height: int, width: int, size: int
) -> ray.data.Dataset:
    """A dataset of decoded blocks of ``size`` images, in ``image_id`` order.

    Args:
        images: IMAGES.
        root: of their paths.
        cache: folder of each node's disk that keeps encoded images, see ``ImageStore``.
        height: of the decoded images, pixels.
        width: likewise.
        size: n.

    Returns:
        Rows of ``image_id`` (n,) int64 (PAD in padded places), ``image`` (n, 3, height, width) uint8, ``error``
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
    decode = partial(decode_block, root=root, cache=cache, height=height, width=width, size=size)
    return ray.data.from_arrow(blocks).map(decode, num_cpus=DECODE_CPUS)


def decode_block(
    row: dict[str, Any], *, root: str, cache: str | None, height: int, width: int, size: int
) -> dict[str, Any]:
    """Read and decode the images of one block; a bad one is black and has its reason in ``error``."""
    import torch

    from reid_core.data.decode import ImageStore, load

    torch.set_num_threads(1)
    store = ImageStore(root, cache)
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
