"""A memory of one row an image that lasts for the run, after one row a source class (methods.md 2.4).

S source classes, N target images, R = S + N rows, b this rank's share, D feature size. An objective holds it as two
buffers, ``memory_RD`` and ``filled``: by these names checkpoints know them. Rows move by ``memory.updates``.
"""

import torch
from torch import Tensor, nn

from reid_core.batch import SOURCE, Batch, Round, Sizes
from reid_core.memory.classes import centroids


def add_instances(objective: nn.Module, sizes: Sizes) -> None:
    """Give an objective the buffers of an empty memory: ``memory_RD`` of zeros, and ``filled``, False."""
    rows = sizes.classes + sizes.images
    objective.register_buffer("memory_RD", torch.zeros(rows, sizes.dim))
    objective.register_buffer("filled", torch.tensor(False))


def fill_once(memory_RD: Tensor, filled: Tensor, start: Round, classes: int) -> bool:
    """Take the class centroids of the source and the features of the target, unless the memory is filled already.

    Args:
        memory_RD: changed in place.
        filled: scalar bool, changed in place.
        start: of the first round, which has extracted features.
        classes: S.

    Returns:
        Whether it was filled now.
    """
    if filled:
        return False
    memory_RD[classes:] = start.target.extracted
    if start.source:
        memory_RD[:classes] = centroids(start.source.extracted, start.source.label[:, 0], classes)
    filled.fill_(True)
    return True


def rows_of(batch: Batch, classes: int) -> Tensor:
    """Each image's row (b,): its own, or, of a source image, that of its class."""
    return torch.where(batch.domain == SOURCE, batch.label[:, 0], classes + batch.row)
