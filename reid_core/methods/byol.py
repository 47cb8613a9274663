"""BYOL (Grill et al., NeurIPS 2020) as HCD's S-Table 1 has it: one view of an image foretells the other's projection.

methods.md 3.9: network, augmentation and optimiser are HCD's, the rest BYOL's defaults. b this rank's share of the
global batch, D feature size, P projection size. There are no negatives: a target network, which follows the online
one slowly, and a predictor that only the latter has keep the projections apart. The embedding before the heads is
evaluated.

Departures: both views go through the network at once, and so its running statistics move once a step; those of the
target, which nothing reads, follow too, and those of the heads stay as they are, for heads serve training only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import global_mean
from reid_core.losses.distillation import feature_distance
from reid_core.method import LabelSource, Preset
from reid_core.models.ema import follow, teacher_of
from reid_core.models.normalisation import convert
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_group,
    check_ranges,
    group_size,
)

TAKES_SOURCE = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are those of HCD's S-Table 1 as far as it states them, else BYOL's."""

    ema: float = 0.996
    """Weight of the target's old value at the start of the run, in [0, 1]; it grows to 1 by a cosine."""
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    projection: int = 256
    """Size of projections and predictions."""
    rounds: int = 60
    """Rounds of the run, the epochs of the paper."""
    steps: int = 400
    """Optimiser steps of a round."""
    batch_size: int = 64
    """Images of the global batch, over all workers."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(pooling="gem"))
    images: ImageConfig = field(default_factory=ImageConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("ema", 0 <= self.ema <= 1, "in [0, 1], 0.996 is usual"),
            ("hidden", self.hidden >= 1, "at least 1, 4096 is usual"),
            ("projection", self.projection >= 1, "at least 1, 256 is usual"),
            ("rounds", self.rounds >= 1, "at least 1, 60 is usual"),
            ("steps", self.steps >= 1, "at least 1, 400 is usual"),
            ("batch_size", self.batch_size >= 1, "at least 1, 64 is usual"),
        )
        check_group(self)


def labels_from(config: Config, number: int) -> LabelSource:
    """Every image is its own class, for good."""
    return "none"


def views(config: Config) -> tuple[ImageConfig, ...]:
    """Two views, drawn alike."""
    return config.images, config.images


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """Shuffled images, every one once a pass: identities of one image each."""
    image_N = np.arange(len(domain.image_id))
    return identity_batches(image_N, None, batch_size=config.batch_size, instances=1, seed=seed)


def target_weight(base: float, progress: float) -> float:
    """Weight of the target's old value: ``base`` at the start of the run, 1 at its end, a cosine between."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def head(inputs: int, hidden: int, outputs: int, group: int) -> nn.Module:
    """Two linear layers, BatchNorm and ReLU between them: the projector's and the predictor's form."""
    layers = (
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )
    return convert(nn.Sequential(*layers), group=group)


class Objective(nn.Module):
    """Squared distance of each view's prediction to the target's projection of the other view."""

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.progress = 0.0
        self.length = math.sqrt(sizes.dim)  # of a row as the neck gives it, before it becomes unit
        group = group_size(config)
        self.projector = head(sizes.dim, config.hidden, config.projection, group)
        self.predictor = head(config.projection, config.hidden, config.projection, group)
        self.target, self.target_projector = teacher_of(embedder), teacher_of(self.projector)

    def begin_round(self, start: Round) -> None:
        """Nothing depends on the round."""

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """Eq. 2 of the paper, for both views: 2 - 2 cos(prediction, projection of the other view)."""
        self.progress = progress
        one, other = batch.image
        x_2bD = embedder(torch.cat([one, other]))
        prediction_2bP = self.predictor(self.projector(self.length * x_2bD))
        distance_2b = feature_distance(
            F.normalize(prediction_2bP, dim=1), self._project(torch.cat([other, one]))
        )
        loss_b = distance_2b[: len(one)] + distance_2b[len(one) :]
        return Step(terms={"distance": global_mean(loss_b)}, embedding=x_2bD[: len(one)])

    @torch.no_grad()
    def _project(self, image_2b3HW: Tensor) -> Tensor:
        """The target's unit projections (2b, P)."""
        x_2bD = self.target(image_2b3HW)
        return F.normalize(self.target_projector(self.length * x_2bD), dim=1)

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move the target network, later steps less."""
        weight = target_weight(self.config.ema, self.progress)
        follow(self.target, embedder, weight, statistics=True)
        follow(self.target_projector, self.projector, weight, statistics=True)


STRONG = {"crop": 0.3, "jitter": 0.4}  # nothing but the views tells what an identity is
DEMO = Config(
    ema=0.96,
    hidden=512,
    projection=64,
    rounds=20,
    steps=30,
    model=SMALL_MODEL,
    images=replace(DEMO_IMAGES, **STRONG),
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
S_TABLE_1 = {
    "market1501": ("Market-1501", {"mAP": 4.9, "rank1": 11.8, "rank5": 21.8}),
    "dukemtmc": ("DukeMTMC-reID", {"mAP": 2.7, "rank1": 5.3, "rank5": 10.3}),
}
PRESETS = {
    "demo": Preset(
        config=DEMO, about="the synthetic set of `reid synth`, a small network, minutes on a CPU"
    ),
    "omniglot": Preset(
        config=OMNIGLOT, about="handwritten characters in Market layout, minutes on a CPU"
    ),
    **{
        name: Preset(
            config=Config(), about=f"HCD (ICCV 2021) S-Table 1, BYOL; {data}", published=figures
        )
        for name, (data, figures) in S_TABLE_1.items()
    },
}
