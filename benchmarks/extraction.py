"""Feature extraction through Ray Data against the same model in a plain loop, images a second.

Run it from the root: ``python -m benchmarks.extraction [--images 5000] [--trunk resnet18]``. Goal: 0.9.
Both read the same files, decode and resize to the same size, embed blocks of the same size, and are measured in
the steady state: the seconds of the first block, which pay for processes and imports, are left out of both.
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipelines.images.blocks import block_dataset, block_rows, read_block
from pipelines.images.extraction import BlockEmbedder, shard_blocks
from pipelines.nodes.runtime import ray_session
from reid_core.data.datasets import scan, synthetic
from reid_core.data.decode import ImageStore
from reid_core.models.embedder import build_embedder
from reid_core.settings import ImageConfig, ModelConfig


def plain_blocks(
    images: pa.Table, root: str, config: ImageConfig, size: int
) -> Iterator[dict[str, Any]]:
    """Blocks as ``block_dataset`` gives them, decoded here, one after the other."""
    for row in block_rows(images, size):
        yield read_block(
            row, root=root, cache=None, height=config.height, width=config.width, size=size
        )


def rate(blocks: Iterable[dict[str, Any]], embed: BlockEmbedder) -> float:
    """Images a second from the end of the first block to the end of the last one."""
    seen, started = 0, 0.0
    for number, block in enumerate(blocks):
        count = len(embed(block)["image_id"])
        if number == 0:
            started = time.perf_counter()
        else:
            seen += count
    return seen / (time.perf_counter() - started)


def main() -> None:
    """Print both rates and their ratio."""
    import ray  # after pipelines, which sets its environment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--trunk", default="resnet18")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--block", type=int, default=128)
    asked = parser.parse_args()
    config = ImageConfig(height=asked.height, width=asked.width)
    with tempfile.TemporaryDirectory() as folder:
        ids = 2 * math.ceil(asked.images / 20)
        found = scan(synthetic.draw(str(Path(folder) / "set"), ids=ids, cameras=4, images=5))
        images = found.images.slice(0, asked.images)
        model = ModelConfig(trunk=asked.trunk, weights="random", channels_last=True)
        embed = BlockEmbedder(build_embedder(model, bn_group=1), config, torch.device("cpu"))
        with ray_session():
            dataset = block_dataset(
                images,
                ImageStore(found.root),
                height=config.height,
                width=config.width,
                size=asked.block,
            )
            plain = rate(plain_blocks(images, found.root, config, asked.block), embed)
            (shard,) = dataset.streaming_split(1, equal=False)
            through = ray.get(ray.remote(num_cpus=0.8)(_rate_of_shard).remote(shard, embed))
        print(
            f"{len(images)} images, {asked.trunk} at {asked.height}x{asked.width}: plain loop {plain:.0f} "
            f"images/s, through Ray Data {through:.0f} images/s, ratio {through / plain:.2f}"
        )


def _rate_of_shard(shard: Any, embed: BlockEmbedder) -> float:
    torch.set_num_threads(os.cpu_count() or 1)
    return rate(shard_blocks(shard), embed)


if __name__ == "__main__":
    main()
