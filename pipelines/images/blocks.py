"""Fixed blocks of images, decoded on any CPU as a Ray Data set or in this process.

One block is one embedding batch, whichever process gets it: a feature then does not depend on how the work is
split. n images a block (the last one padded).

Ray's own actors unpickle what stands here, a process each: the heavy imports are inside the functions that need
them, which keeps the start of a run short.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipelines.nodes.share import DECODE_CPUS

if TYPE_CHECKING:
    import ray.data

    from reid_core.data.decode import ImageStore

NO_PROGRESS_S = 300  # Ray Data gives up when nothing moved for so long; its own default is 1800
PAD = -1  # image id of a padded place


def block_dataset(
    images: pa.Table, store: "ImageStore", *, height: int, width: int, size: int
) -> "ray.data.Dataset":
    """A dataset of decoded blocks of ``size`` images, in ``image_id`` order.

    Args:
        images: IMAGES.
        store: of their paths.
        height: of the decoded images, pixels.
        width: likewise.
        size: n.

    Returns:
        Rows of ``image_id`` (n,) int64 (PAD in padded places), ``image`` (n, 3, height, width) uint8, ``error``
        (n,) string, empty where the image was read.
    """
    import ray.data

    quiet_ray_data()
    blocks = [pa.table({name: [row[name]] for name in row}) for row in block_rows(images, size)]
    read = partial(
        read_block, root=store.root, cache=store.folder, height=height, width=width, size=size
    )
    return ray.data.from_arrow(blocks).map(partial(decode_block, read=read), num_cpus=DECODE_CPUS)


def decode_block(
    row: dict[str, Any], read: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """``read`` a block in one thread, as there are as many such tasks as cores."""
    import torch

    torch.set_num_threads(1)
    return read(row)


def blocks_here(
    images: pa.Table, store: "ImageStore", *, height: int, width: int, size: int
) -> Iterator[dict[str, Any]]:
    """The rows of ``block_dataset``, decoded in threads of this process while earlier ones are in use."""
    read = partial(
        read_block, root=store.root, cache=store.folder, height=height, width=width, size=size
    )
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[dict[str, Any]]] = deque()
        for row in block_rows(images, size):
            waiting.append(pool.submit(read, row))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def block_rows(images: pa.Table, size: int) -> list[dict[str, Any]]:
    """Ids and paths of each block of ``size`` images, in ``image_id`` order; the last one may be shorter."""
    rows = images.select(["image_id", "path"]).sort_by("image_id")
    return [rows.slice(start, size).to_pydict() for start in range(0, len(rows), size)]


def read_block(
    row: dict[str, Any], *, root: str, cache: str | None, height: int, width: int, size: int
) -> dict[str, Any]:
    """Read and decode the images of one block; a bad one is black and has its reason in ``error``."""
    from reid_core.data.decode import ImageStore, load

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


def quiet_ray_data() -> None:
    """Settings of Ray Data in this process: no bars and no prints of its own, and no endless waits."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    context.execution_no_progress_timeout_s = NO_PROGRESS_S  # type: ignore[attr-defined]


@contextmanager
def told_when_stuck() -> Iterator[None]:
    """Ray Data's own error of a standstill as one line."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except ExecutionTimeoutError as error:
        raise TimeoutError(
            f"no image was read or embedded for {NO_PROGRESS_S:g} s; the cluster has free: "
            f"{ray.available_resources()}; wait until others have left it, or give it more nodes"
        ) from error
