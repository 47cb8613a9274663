"""MoCo v1 (He, Fan, Wu, Xie, Girshick, CVPR 2020) as HCD's S-Table 1 has it: a view of an image finds the other one.

methods.md 3.9: network, augmentation and optimiser are HCD's, the rest MoCo's defaults. B global batch, b this rank's
share, Q queue rows, P projection size. Every image is its own class; the embedding before the head is evaluated.

The keys are embedded in another order (the paper's shuffled BN): the BatchNorm groups are those of the published
runs, so a query would share its group with its own key and with no key of the queue, and could find it by that.
The shuffle goes over the whole global batch, hence its images travel between workers.

Departures: the queue holds 8192 keys, for MoCo's 65536 are more than there are images; the head has no bias, so that
unit rows give what rows of any length would; the key encoder's running statistics, which nothing reads, follow too.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import gather_batch, global_mean
from reid_core.losses.views import queue_nce
from reid_core.memory.queue import KeyQueue
from reid_core.method import LabelSource, Preset
from reid_core.models.ema import follow, teacher_of
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.seeding import generator
from reid_core.settings import AdamConfig, ImageConfig, ModelConfig, check_group, check_ranges

TAKES_SOURCE = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are those of HCD's S-Table 1 as far as it states them, else MoCo's."""

    temperature: float = 0.07
    """Softmax temperature of the contrast."""
    queue: int = 8192
    """Keys of earlier batches that serve as negatives, at least a batch."""
    ema: float = 0.999
    """Weight of the key encoder's old value, in [0, 1]."""
    projection: int = 128
    """Size of the queries and keys, after the head."""
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
            ("temperature", self.temperature > 0, "positive, 0.07 is usual"),
            ("ema", 0 <= self.ema <= 1, "in [0, 1], 0.999 is usual"),
            ("projection", self.projection >= 1, "at least 1, 128 is usual"),
            ("rounds", self.rounds >= 1, "at least 1, 60 is usual"),
            ("steps", self.steps >= 1, "at least 1, 400 is usual"),
            ("batch_size", self.batch_size >= 1, "at least 1, 64 is usual"),
            ("queue", self.queue >= self.batch_size, "at least batch_size, 8192 is usual"),
        )
        check_group(self)


def labels_from(config: Config, number: int) -> LabelSource:
    """Every image is its own class, for good."""
    return "none"


def views(config: Config) -> tuple[ImageConfig, ...]:
    """The query's view and the key's, drawn alike."""
    return config.images, config.images


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """Shuffled images, every one once a pass: identities of one image each."""
    image_N = np.arange(len(domain.image_id))
    return identity_batches(image_N, None, batch_size=config.batch_size, instances=1, seed=seed)


class Objective(nn.Module):
    """InfoNCE of projected embeddings against a key of the same image and the keys of earlier batches."""

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(sizes.dim, config.projection, bias=False)
        self.key_embedder, self.key_head = teacher_of(embedder), teacher_of(self.head)
        self.queue = KeyQueue(config.queue, config.projection)

    def begin_round(self, start: Round) -> None:
        """Nothing depends on the round."""

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """Eq. 1; the keys of the whole global batch go on to ``update``."""
        x_bD = embedder(batch.image[0])
        query_bP = F.normalize(self.head(x_bD), dim=1)
        key_BP = self._keys(batch)
        loss_b = queue_nce(
            query_bP, key_BP[batch.position], self.queue.row_QP, self.config.temperature
        )
        return Step(
            terms={"contrast": global_mean(loss_b)}, embedding=x_bD, extra={"key_BP": key_BP}
        )

    @torch.no_grad()
    def _keys(self, batch: Batch) -> Tensor:
        """The keys of the global batch (B, P), in its order; each rank embeds its share of a shuffle of it."""
        (image_B3HW,) = gather_batch(batch.position, batch.image[1])
        order_B = torch.randperm(len(image_B3HW), generator=generator(batch.seed, "shuffle"))
        order_B = order_B.to(image_B3HW.device)
        embedding_bD = self.key_embedder(image_B3HW[order_B[batch.position]])
        key_bP = F.normalize(self.key_head(embedding_bD), dim=1)
        (shuffled_BP,) = gather_batch(batch.position, key_bP)
        return shuffled_BP[order_B.argsort()]

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move the key encoder (Eq. 2), then let the keys into the queue."""
        follow(self.key_embedder, embedder, self.config.ema, statistics=True)
        follow(self.key_head, self.head, self.config.ema, statistics=True)
        self.queue.push(step.extra["key_BP"])


STRONG = {"crop": 0.3, "jitter": 0.4}  # nothing but the views tells what an identity is
DEMO = Config(
    queue=512,
    ema=0.99,
    rounds=20,
    steps=30,
    model=SMALL_MODEL,
    images=replace(DEMO_IMAGES, **STRONG),
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
S_TABLE_1 = {
    "market1501": ("Market-1501", {"mAP": 6.1, "rank1": 12.8, "rank5": 27.1}),
    "dukemtmc": ("DukeMTMC-reID", {"mAP": 5.6, "rank1": 10.7, "rank5": 22.0}),
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
            config=Config(), about=f"HCD (ICCV 2021) S-Table 1, MoCo; {data}", published=figures
        )
        for name, (data, figures) in S_TABLE_1.items()
    },
}
