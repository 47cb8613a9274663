"""What the rounds ask of the place where they run: a rank of Ray Train (``rank.py``) or this process (``alone.py``)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pipelines.images.extraction import BlockEmbedder

Part = dict[str, tuple[np.ndarray, np.ndarray]]
"""One rank's rows of a stage, by ``target``, ``source``, ``test`` or ``group``: image ids (m,) and rows (m, ...)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A function over the parts of all ranks."""

    name: str  # for messages
    function: Callable[..., Any]  # called as function(parts, **arguments)
    arguments: dict[str, Any] = field(default_factory=dict)
    gpu: bool = False  # it can use one


class Place(Protocol):
    """Where images come from, where stages run, and who is told."""

    device: torch.device

    def extract(self, name: str, embed: BlockEmbedder) -> tuple[np.ndarray, np.ndarray]:
        """This rank's rows of a data set (``target``, ``source``, ``test``): image ids (m,), features (m, D)."""
        ...

    def meet(self, stage: Stage, part: Part, number: int) -> Any:
        """What a stage of round ``number`` makes of the parts of all ranks; the same value on each of them."""
        ...

    def tell(self, kind: str, **event: Any) -> None:
        """Send an event to the listener (``results/progress.py``); only the first rank's arrive."""
        ...

    def report(self, number: int, metrics: dict[str, float], save: Callable[[Path], None]) -> None:
        """Round ``number`` is done: tell its metrics and keep the state that ``save`` writes into a folder."""
        ...

    def restored(self) -> AbstractContextManager[Path | None]:
        """The folder with the state to go on from; None where the run begins."""
        ...


class Stopped(Exception):
    """A reason to end the run that every rank has seen alike; not a crash to be retried."""


@contextmanager
def alike(where: str) -> Iterator[None]:
    """An error of the data or the settings here is the same on every rank: the run stops, and is not retried."""
    try:
        yield
    except ValueError as error:
        raise Stopped(f"{where}: {error}") from error
