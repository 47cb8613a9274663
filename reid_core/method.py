"""The contract of a method: what the one loop hands over, what it gets back, and how it is found.

N images of a domain, B global batch of a domain, b this rank's share, D feature size, L label levels.
A method is one file in ``reid_core/methods`` with ``Config``, ``assign_labels`` and ``Objective``; nothing
lists the files, and no class is inherited.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from reid_core import methods
from reid_core.data import samplers
from reid_core.errors import UsageError
from reid_core.labelling.engine import Engine
from reid_core.settings import AdamConfig, ImageConfig, ModelConfig, counted
from reid_core.tables import LABELS, check_ids, check_table

LabelSource = Literal["extracted", "memory", "online", "keep", "none", "ids"]
TARGET, SOURCE = 0, 1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This rank's share of a global batch; source images first, then target images."""

    image: tuple[Tensor, ...]  # one (b, 3, H, W) float tensor a view
    image_id: Tensor  # (b,) int64
    row: Tensor  # (b,) int64, rank of the id among the training ids of its domain
    camid: Tensor  # (b,) int64, -1 unknown
    label: Tensor  # (b, L) int64; of the LABELS of this round, or the class of a source image
    domain: Tensor  # (b,) int64, TARGET or SOURCE
    position: Tensor  # (b,) int64, place in the global batch: source 0..B-1, target after it
    seed: int  # of (run, round, step), equal on all ranks

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to ``device``."""
        moved = {
            k: v.to(device, non_blocking=True)
            for k, v in vars(self).items()
            if isinstance(v, Tensor)
        }
        views = tuple(view.to(device, non_blocking=True) for view in self.image)
        return Batch(image=views, seed=self.seed, **moved)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a forward pass gives to the loop and to ``update``."""

    terms: dict[str, Tensor]  # named scalar losses; their sum is minimised
    embedding: Tensor  # (b, D) unit rows, with gradient
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The training images of one domain in ``image_id`` order, as one round sees them."""

    image_id: Tensor  # (N,) int64
    camid: Tensor  # (N,) int64, -1 unknown
    label: Tensor  # (N, L) int64, -1 outlier
    feature: Tensor | None  # (N, D) unit rows where this round extracted them

    @property
    def extracted(self) -> Tensor:
        """The features of a round that did extract them."""
        assert self.feature is not None, "labels_from() of this round says no 'extracted' or 'ids'"
        return self.feature

    def to(self, device: torch.device) -> "Domain":
        """Copy the tensors to ``device``."""
        moved = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: what the papers call an epoch."""

    number: int  # from 0
    rounds: int
    step: int  # optimiser steps made before this round
    target: Domain
    source: Domain | None

    def to(self, device: torch.device) -> "Round":
        """Copy the tensors to ``device``."""
        source = None if self.source is None else self.source.to(device)
        return replace(self, target=self.target.to(device), source=source)


class Sizes(NamedTuple):
    """What an objective must know before the first round."""

    images: int  # N target training images
    classes: int  # S source classes, 0 without a source
    dim: int  # D


@dataclass(frozen=True, kw_only=True)
class Features:
    """Rows to cluster, in ``image_id`` order, and what clusters them."""

    image_id: np.ndarray  # (N,) int64, increasing
    feature: np.ndarray  # (N, D) float32 unit rows
    engine: Engine = field(default_factory=Engine)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Pseudo labels of all images, in ``image_id`` order; the value behind a LABELS table."""

    image_id: np.ndarray  # (N,) int64, increasing
    label: np.ndarray  # (N, L) int64; -1 outlier; numbered by the smallest core image id
    is_core: np.ndarray  # (N, L) bool
    confidence: np.ndarray  # (N, L) float32
    state: dict[str, float] = field(
        default_factory=dict
    )  # what the method carries to the next round
    metrics: dict[str, float] = field(
        default_factory=dict
    )  # logged: clusters, outliers, label_free, ...

    def table(self) -> pa.Table:
        """The LABELS table; ``state.NAME`` and ``metrics.NAME`` (no times) lie in its metadata."""
        count, levels = self.label.shape
        columns = [
            np.tile(self.image_id, levels),
            np.repeat(np.arange(levels, dtype=np.int8), count),
            *(a.T.reshape(-1) for a in (self.label, self.is_core, self.confidence)),
        ]
        notes = {f"state.{k}": repr(v) for k, v in self.state.items()}
        kept = {k: v for k, v in self.metrics.items() if not k.startswith("seconds_")}
        notes |= {f"metrics.{k}": repr(v) for k, v in kept.items()}
        return pa.table(columns, schema=LABELS).replace_schema_metadata(notes)

    @classmethod
    def from_table(cls, table: pa.Table, where: str = "labels") -> "Labels":
        """Read a LABELS table in any row order.

        Raises:
            ValueError: a column is wrong, an id occurs twice, or levels hold different images.
        """
        notes = {
            k.decode(): float(v) for k, v in (table.schema.metadata or {}).items() if b"." in k
        }
        rows = check_table(table, LABELS, where).sort_by(
            [("level", "ascending"), ("image_id", "ascending")]
        )
        levels = len(rows.column("level").unique())
        ids, label, core, sure = (
            rows.column(name).to_numpy().reshape(levels, -1)
            for name in ("image_id", "label", "is_core", "confidence")
        )
        check_ids(ids[0], where)
        if (ids != ids[0]).any():
            raise ValueError(
                f"{where}: levels hold different images; re-run the stage that wrote it"
            )
        parts = {
            part: {
                k.removeprefix(f"{part}."): v for k, v in notes.items() if k.startswith(f"{part}.")
            }
            for part in ("state", "metrics")
        }
        return cls(image_id=ids[0], label=label.T, is_core=core.T, confidence=sure.T, **parts)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named, complete setting of a method, and what was published for it."""

    config: Any
    about: str  # paper, table and row, or what it is for
    published: Mapping[str, float] = field(
        default_factory=dict
    )  # per cent: mAP, rank1, rank5, rank10


class Config(Protocol):
    """The fields that the loop itself reads; a method's frozen dataclass has these and its own."""

    @property
    def rounds(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def instances(self) -> int: ...
    @property
    def camera_aware(self) -> bool: ...
    @property
    def bn_group(self) -> int: ...
    @property
    def model(self) -> ModelConfig: ...
    @property
    def images(self) -> ImageConfig: ...
    @property
    def optim(self) -> AdamConfig: ...


class Objective(Protocol):
    """A ``torch.nn.Module`` whose buffers are the state that checkpoints carry."""

    def begin_round(self, start: Round) -> None:
        """Rebuild or keep the memory for the labels of this round."""
        ...

    def __call__(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """The losses of one batch; ``progress`` is the share of the whole run, in [0, 1)."""
        ...

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor] | None:
        """After the optimiser step: memory, teacher, online labels. Scalars it returns are logged."""
        ...

    # Optional: features() -> (N, D) rows, labels() -> (N, L) any cluster numbers, both in image id
    # order and equal on all ranks; embedders() -> further networks to evaluate, by name.


class Method(Protocol):
    """A module of ``reid_core.methods``; one that refuses a labelled source says ``TAKES_SOURCE = False``."""

    Config: type[Any]
    Objective: Callable[[Any, nn.Module, Sizes], nn.Module]
    PRESETS: Mapping[str, Preset]

    def assign_labels(self, config: Any, features: Features, previous: Labels | None) -> Labels:
        """The label stage: a pure function, run outside the train workers."""
        ...


def names() -> list[str]:
    """The methods there are: the files of ``reid_core/methods``."""
    return sorted(module.name for module in iter_modules(methods.__path__))


def load(name: str) -> Method:
    """Import ``reid_core.methods.<name>``.

    Raises:
        UsageError: there is no such file.
    """
    if name not in names():
        raise UsageError(f"no method {name!r}; there are {', '.join(names())}")
    return cast("Method", import_module(f"{methods.__name__}.{name}"))


def _stated(method: Method, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(cast("ModuleType", method), name, default)


def labels_from(method: Method, config: Any, number: int) -> LabelSource:
    """Where the labels of round ``number`` come from; ``extracted`` unless the method says otherwise.

    ``extracted`` features or the ``memory`` rows (``features()``) go to ``assign_labels``; ``online``
    are the objective's own ``labels()``; ``keep`` those of the round before; ``none`` makes every
    image its own class; ``ids`` are the true ones (features are extracted as well).
    """
    return _stated(method, "labels_from", lambda *_: "extracted")(config, number)


def num_steps(method: Method, config: Any, start: Round) -> int:
    """Optimiser steps of the round; ``config.steps`` unless the method says otherwise."""
    return _stated(method, "num_steps", lambda config, _: config.steps)(config, start)


def batches(method: Method, config: Any, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """Endless global batches of a domain: (B,) rows; P x K of the finest labels unless the method says."""
    return _stated(method, "batches", _identity_batches)(config, domain, seed)


def _identity_batches(config: Any, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    return samplers.identity_batches(
        domain.label[:, 0].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
    )


def views(method: Method, config: Any) -> tuple[ImageConfig, ...]:
    """One augmentation a view; the one of ``config.images`` unless the method says otherwise."""
    return _stated(method, "views", lambda config: (config.images,))(config)


def optimizer(
    method: Method, config: Any, embedder: nn.Module, objective: nn.Module
) -> torch.optim.Optimizer:
    """Adam over every trainable parameter as one group, unless the method says otherwise."""
    return _stated(method, "optimizer", _adam)(config, embedder, objective)


def _adam(config: Any, embedder: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    trained = [
        p for module in (embedder, objective) for p in module.parameters() if p.requires_grad
    ]
    return torch.optim.Adam(trained, lr=config.optim.lr, weight_decay=config.optim.weight_decay)


def scheduler(
    method: Method, config: Any, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """StepLR of ``config.optim``, stepped once a round, unless the method says otherwise."""
    return _stated(method, "scheduler", _step_lr)(config, optimizer)


def _step_lr(config: Any, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    every = counted(config.optim.step_rounds, config.rounds)
    return torch.optim.lr_scheduler.StepLR(optimizer, every, config.optim.decay)


def takes_source(method: Method) -> bool:
    """Whether a labelled source set is of use to the method."""
    return getattr(method, "TAKES_SOURCE", True)


def memory_rows(objective: Any) -> Tensor | None:
    """Rows."""
    return getattr(objective, "features", lambda: None)()


def online_labels(objective: Any) -> Tensor | None:
    """Labels."""
    return getattr(objective, "labels", lambda: None)()


def networks(objective: Any) -> dict[str, nn.Module]:
    """Networks."""
    return getattr(objective, "embedders", dict)()
