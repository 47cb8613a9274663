"""The contract of a method: what it must state, what it may state, and how it is found.

A method is one file in ``reid_core/methods`` with ``Config``, ``assign_labels``, ``Objective`` and ``PRESETS`` (see
``Method``); nothing lists the files, and no class is inherited. In the table is what it may state beside them, in the
file or, below the line, on its ``Objective``; callers ask by the functions here, which know the defaults. N target
images, B images of a global batch, D feature size, L label levels.

====================================================  ===========================  =====================================
statement                                             default                      meaning
====================================================  ===========================  =====================================
``TAKES_SOURCE: bool``                                True                         a labelled source set is of use
``labels_from(config, number) -> LabelSource``        ``"extracted"``              where a round's labels come from
``views(config) -> tuple[ImageConfig, ...]``          ``(config.images,)``         one augmentation a view of an image
``batches(config, domain, seed) -> Iterator[array]``  P x K of the finest labels   endless global batches, (B,) int rows
``num_steps(config, start) -> int``                   ``config.steps``             optimiser steps of a round
``optimizer(config, embedder, objective)``            Adam, one group              the optimiser of the run
``scheduler(config, optimizer)``                      StepLR of ``config.optim``   the learning rate, once a round
----------------------------------------------------  ---------------------------  -------------------------------------
``features() -> Tensor | None``                       None                         memory rows (N, D), None: not filled
``labels() -> Tensor``                                None                         any cluster numbers (N, L)
``embedders() -> dict[str, nn.Module]``               ``{}``                       more networks to evaluate, by name
====================================================  ===========================  =====================================

Rows and cluster numbers are in image id order and equal on all ranks. ``memory`` in ``labels_from`` needs
``features``, ``online`` needs ``labels``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from reid_core import methods
from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data import samplers
from reid_core.errors import UsageError
from reid_core.labels import Features, Labels
from reid_core.settings import AdamConfig, ImageConfig, ModelConfig, counted

LabelSource = Literal["extracted", "memory", "online", "keep", "none", "ids"]
"""``extracted`` features or the ``memory`` rows go to ``assign_labels``; ``online`` are the objective's own labels;
``keep`` are those of the round before; ``none`` makes every image its own class; ``ids`` are the true ones (features
are extracted as well)."""


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


class Method(Protocol):
    """A module of ``reid_core.methods``."""

    Config: type[Any]
    Objective: Callable[[Any, nn.Module, Sizes], nn.Module]
    PRESETS: dict[str, Preset]

    def assign_labels(self, config: Any, features: Features, previous: Labels | None) -> Labels:
        """The label stage: a pure function, run outside the train workers.

        Methods whose labels never come from features or a memory leave it out.
        """
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


@runtime_checkable
class HasTakesSource(Protocol):
    """A method that says whether it takes a source set."""

    TAKES_SOURCE: bool


def takes_source(method: Method) -> bool:
    """Whether a labelled source set is of use; it is unless the method says otherwise."""
    return method.TAKES_SOURCE if isinstance(method, HasTakesSource) else True


@runtime_checkable
class HasLabelsFrom(Protocol):
    """A method that says where labels come from."""

    def labels_from(self, config: Any, number: int) -> LabelSource: ...


def labels_from(method: Method, config: Any, number: int) -> LabelSource:
    """Where the labels of round ``number`` come from; ``extracted`` unless the method says otherwise."""
    return method.labels_from(config, number) if isinstance(method, HasLabelsFrom) else "extracted"


@runtime_checkable
class HasViews(Protocol):
    """A method that says how an image is seen."""

    def views(self, config: Any) -> tuple[ImageConfig, ...]: ...


def views(method: Method, config: Any) -> tuple[ImageConfig, ...]:
    """One augmentation a view; the one of ``config.images`` unless the method says otherwise."""
    return method.views(config) if isinstance(method, HasViews) else (config.images,)


@runtime_checkable
class HasBatches(Protocol):
    """A method that says which images make a batch."""

    def batches(self, config: Any, domain: Domain, seed: int) -> Iterator[np.ndarray]: ...


def batches(method: Method, config: Any, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """Endless global batches of a domain: (B,) rows; P x K of the finest labels unless the method says otherwise."""
    if isinstance(method, HasBatches):
        return method.batches(config, domain, seed)
    return samplers.identity_batches(
        domain.label[:, 0].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
    )


@runtime_checkable
class HasNumSteps(Protocol):
    """A method that says how long a round is."""

    def num_steps(self, config: Any, start: Round) -> int: ...


def num_steps(method: Method, config: Any, start: Round) -> int:
    """Optimiser steps of the round; ``config.steps`` unless the method says otherwise."""
    return method.num_steps(config, start) if isinstance(method, HasNumSteps) else config.steps


@runtime_checkable
class HasOptimizer(Protocol):
    """A method with an optimiser of its own."""

    def optimizer(
        self, config: Any, embedder: nn.Module, objective: nn.Module
    ) -> torch.optim.Optimizer: ...


def optimizer(
    method: Method, config: Any, embedder: nn.Module, objective: nn.Module
) -> torch.optim.Optimizer:
    """Adam over every trainable parameter as one group, unless the method says otherwise."""
    if isinstance(method, HasOptimizer):
        return method.optimizer(config, embedder, objective)
    trained = [
        p for module in (embedder, objective) for p in module.parameters() if p.requires_grad
    ]
    return torch.optim.Adam(trained, lr=config.optim.lr, weight_decay=config.optim.weight_decay)


@runtime_checkable
class HasScheduler(Protocol):
    """A method with a learning rate schedule of its own."""

    def scheduler(self, config: Any, optimizer: torch.optim.Optimizer) -> LRScheduler: ...


def scheduler(method: Method, config: Any, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """StepLR of ``config.optim``, stepped once a round, unless the method says otherwise."""
    if isinstance(method, HasScheduler):
        return method.scheduler(config, optimizer)
    every = counted(config.optim.step_rounds, config.rounds)
    return torch.optim.lr_scheduler.StepLR(optimizer, every, config.optim.decay)


@runtime_checkable
class HasFeatures(Protocol):
    """An objective with one memory row an image."""

    def features(self) -> Tensor | None: ...


def memory_rows(objective: Objective) -> Tensor | None:
    """The memory rows (N, D) to be clustered or judged; None where there are none, or not yet."""
    return objective.features() if isinstance(objective, HasFeatures) else None


def is_judged(method: Method) -> bool:
    """Whether labels that are not made from features are judged all the same, by memory rows."""
    return isinstance(method.Objective, HasFeatures)


@runtime_checkable
class HasLabels(Protocol):
    """An objective that changes labels while it trains."""

    def labels(self) -> Tensor: ...


def online_labels(objective: Objective) -> Tensor | None:
    """The objective's own cluster numbers (N, L), if it has any."""
    return objective.labels() if isinstance(objective, HasLabels) else None


@runtime_checkable
class HasEmbedders(Protocol):
    """An objective with more networks than the one that is trained."""

    def embedders(self) -> dict[str, nn.Module]: ...


def networks(objective: Objective) -> dict[str, nn.Module]:
    """Further networks to evaluate, such as a teacher, by name."""
    return objective.embedders() if isinstance(objective, HasEmbedders) else {}
