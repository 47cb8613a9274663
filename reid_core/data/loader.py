"""A rank's share of the global batches of a round, loaded and augmented by a torch DataLoader.

Which image stands at which place of a batch, and how it is augmented, is a function of (run seed, round, step,
place, view) and the labels; the rank only says which places are loaded here.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reid_core import distributed
from reid_core.batch import SOURCE, TARGET, Batch, Round
from reid_core.data.camstyle import styled_copies
from reid_core.data.decode import ImageStore, decode
from reid_core.data.transforms import augment
from reid_core.seeding import derive
from reid_core.settings import ImageConfig


@dataclass(frozen=True)
class TrainImages:
    """The training images of one domain in ``image_id`` order."""

    store: ImageStore
    path: list[str]


class Place(NamedTuple):
    """One place of a global batch and the image that stands there."""

    domain: int
    row: int
    position: int
    round: int
    step: int


class AugmentedImages(Dataset[tuple[Tensor, ...]]):
    """The views of the image at a place; a pure function of the place and the run's seed."""

    def __init__(
        self, images: Mapping[int, TrainImages], views: tuple[ImageConfig, ...], seed: int
    ) -> None:
        self.images = images
        self.views = views
        self.seed = seed
        self.copies = {
            domain: styled_copies(of.store.root, views[0].camstyle_dir, of.path)
            for domain, of in images.items()
        }

    def _path(self, place: Place) -> str:
        """The image at a place, or a copy of it in the style of another camera."""
        path = self.images[place.domain].path[place.row]
        copies = self.copies[place.domain].get(path, [])
        name = ("style", place.round, place.step, place.position)
        rng = random.Random(derive(self.seed, *name))
        return rng.choice(copies) if copies and rng.random() < self.views[0].camstyle else path

    def __getitem__(self, place: Place) -> tuple[Tensor, ...]:
        source, path = self.images[place.domain], self._path(place)
        try:
            image = decode(source.store.read(path))
        except ValueError as error:
            raise ValueError(f"{source.store.root}/{path}: {error}; remove the file") from error
        name = ("image", place.round, place.step, place.position)
        return tuple(
            augment(image, view, derive(self.seed, *name, number))
            for number, view in enumerate(self.views)
        )


class BatchLoader:
    """Loads this rank's share of every round; DataLoader processes live as long as it does."""

    def __init__(
        self,
        images: Mapping[int, TrainImages],
        views: tuple[ImageConfig, ...],
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.places: list[list[Place]] = []
        self.batch_size = batch_size
        self.seed = seed
        self.loader = DataLoader(
            AugmentedImages(images, views, seed),
            batch_sampler=self,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[list[Place]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def round(
        self, start: Round, rows: Mapping[int, Iterator[np.ndarray]], num_steps: int
    ) -> Iterator[Batch]:
        """The batches of a round.

        Args:
            start: the round; its labels and cameras go into the batches.
            rows: for each domain its stream of global batches, (B,) rows.
            num_steps: batches to load.
        """
        self.places = [
            self._share(start.number, step, {d: next(rows[d]) for d in rows})
            for step in range(num_steps)
        ]
        for step, views in enumerate(self.loader):
            yield self._batch(start, step, tuple(views))

    def _share(self, number: int, step: int, rows: dict[int, np.ndarray]) -> list[Place]:
        share = self.batch_size // distributed.world_size()
        first = distributed.rank() * share
        offset = {SOURCE: 0, TARGET: self.batch_size if SOURCE in rows else 0}
        return [
            Place(domain, int(row), offset[domain] + place, number, step)
            for domain in (SOURCE, TARGET)
            if domain in rows
            for place, row in islice(enumerate(rows[domain].tolist()), first, first + share)
        ]

    def _batch(self, start: Round, step: int, views: tuple[Tensor, ...]) -> Batch:
        domains = {SOURCE: start.source, TARGET: start.target}
        mine = {d: [p for p in self.places[step] if p.domain == d] for d in domains}
        rows = {d: torch.tensor([p.row for p in places]) for d, places in mine.items() if places}
        of = {
            name: torch.cat([getattr(domains[d], name)[row] for d, row in rows.items()])
            for name in ("image_id", "camid", "label")
        }
        return Batch(
            image=views,
            row=torch.cat(list(rows.values())),
            position=torch.tensor([p.position for p in self.places[step]]),
            domain=torch.tensor([p.domain for p in self.places[step]]),
            seed=derive(self.seed, "batch", start.number, step),
            **of,
        )
