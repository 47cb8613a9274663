"""What computes the labels, and where; they do not depend on it, but for distances within 1e-6 of eps."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Literal, get_args

import numpy as np

from reid_core.errors import UsageError
from reid_core.labelling.blocks import Blocks
from reid_core.labelling.tasks import InProcess, Tasks

Backend = Literal["auto", "cpu", "cuml"]
KNN = Literal["auto", "torch", "faiss"]

BLOCK_IMAGES = 131_072  # of one block, unless told

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Backends of the label stage, the number of blocks, and where their tasks run."""

    knn: KNN = "auto"
    backend: Backend = "auto"  # auto: cuml where there are a GPU and cuML, else cpu
    shards: int = 1
    tasks: Tasks = field(default_factory=InProcess)

    def blocks(self, feature: np.ndarray) -> Blocks:
        """The rows (N, D) of all images in ``shards`` blocks of about one size."""
        edges = block_edges(len(feature), self.shards)
        parts = np.split(feature, edges[1:-1])
        return Blocks([self.tasks.put(part) for part in parts], edges)

    @cached_property
    def on_gpu(self) -> bool:
        """Whether the Jaccard graph and DBSCAN (cuML's) run on a GPU; logs what ``auto`` took.

        Raises:
            UsageError: the backend is unknown, or cuML or a GPU is asked for and missing.
        """
        if self.backend not in get_args(Backend):
            known = ", ".join(get_args(Backend))
            raise UsageError(f"no label backend {self.backend!r}; there are {known}")
        if self.backend == "cpu":
            return False
        missing = "" if self.tasks.gpu else "there is no GPU"
        if not find_spec("cuml"):
            missing = "cuML is not installed (pip install '.[gpu]' in the checkout)"
        if missing and self.backend == "cuml":
            raise UsageError(f"label backend 'cuml': {missing}; choose the backend 'cpu'")
        logger.info("label backend %s", f"cpu: {missing}" if missing else "cuml")
        return not missing


def block_edges(count: int, shards: int) -> list[int]:
    """The first row of each block and, at the end, ``count``; no block is empty if there are rows."""
    return np.linspace(0, count, max(1, min(shards, count)) + 1).astype(int).tolist()


def shards_for(count: int, asked: int = 0) -> int:
    """Blocks of ``count`` images: ``asked``, or where it is 0 one for every ``BLOCK_IMAGES``."""
    return asked or max(1, -(-count // BLOCK_IMAGES))
