"""Blocks of images to features: the embedding that a rank, a replica or a plain loop runs. D feature size."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipelines.images.blocks import PAD
from reid_core.data.transforms import standardise
from reid_core.models.embedder import Embedder
from reid_core.settings import ImageConfig

if TYPE_CHECKING:
    import ray.data


class BadImages(ValueError):
    """Images that could not be read or decoded."""


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
    blocks: Iterable[dict[str, Any]],
    embed: BlockEmbedder,
    tell: Callable[[int], None] = lambda _: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed every block of an iterable.

    Args:
        blocks: rows of ``block_dataset``.
        embed: the network.
        tell: is called with the number of images embedded so far.

    Returns:
        image ids (m,) int64 and features (m, D) float32; no rows where there was no block.

    Raises:
        BadImages: an image could not be read; names some.
    """
    parts, count = [], 0
    for block in blocks:
        parts.append(embed(block))
        count += len(parts[-1]["image_id"])
        tell(count)
    if errors := [message for p in parts for message in p["error"]]:
        raise BadImages(f"{len(errors)} images were readable before and are not now: {errors[:3]}")
    dim = embed.embedder.dim
    image_id = np.concatenate([np.empty(0, np.int64), *(p["image_id"] for p in parts)])
    feature = np.concatenate([np.empty((0, dim), np.float32), *(p["feature"] for p in parts)])
    return image_id, feature


def shard_blocks(shard: "ray.data.DataIterator") -> Iterator[dict[str, Any]]:
    """The blocks of a rank's shard, one after the other."""
    for batch in shard.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=2):
        yield {str(name): column[0] for name, column in batch.items()}
