"""ODC, online deep clustering (Zhan et al., CVPR 2020), as a baseline of HCD (ICCV 2021, S-Table 1).

methods.md 3.9. N images, C clusters, B global batch, b this rank's share, D feature size, H and E the inner and outer
size of the head. The images are clustered once by k-means; from then on each batch moves the features of its images,
puts them into the nearest clusters and keeps the clusters of a fair size, and the next batch learns by the new labels.
Head, constants and the order of a step are the release's (OpenSelfSup), network, optimiser and sampler HCD's.

Departures: k-means sees the network's features, not those of the untrained head, whose BatchNorm starts with the
statistics of all images; the nearest centroid is that of the paper, by Euclidean distance (the release takes the
largest inner product); a cluster is split from two far members, without chance; sets too small for C clusters of
``min_size`` images have fewer clusters. There is no source set.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import copy_from_first_rank, gather_batch, global_mean, mean_over_ranks
from reid_core.labelling.direct import kmeans
from reid_core.labelling.given import given_labels
from reid_core.labels import Features, Labels
from reid_core.memory.online_clusters import OnlineClusters
from reid_core.method import LabelSource, Preset
from reid_core.models.normalisation import GroupBatchNorm, move_running_statistics
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.seeding import generator
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_group,
    check_ranges,
    group_size,
)

logger = logging.getLogger(__name__)

TAKES_SOURCE = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are those of HCD's S-Table 1 and, where it is silent, of ODC's release."""

    clusters: int = 500
    """Clusters, which are the classes (C); fewer where the images do not fill so many of ``min_size``."""
    min_size: int = 20
    """A cluster of fewer images is dissolved, and the largest one split in its place."""
    momentum: float = 0.5
    """Weight of the old feature of an image, in [0, 1)."""
    refresh_every: int = 10
    """Optimiser steps between new means of all clusters."""
    reweight: float = 0.5
    """The loss of an image is divided by the size of its cluster to this power; 0 leaves that out."""
    hidden: int = 512
    """Inner size of the head (H)."""
    code: int = 256
    """Size of the features that are clustered while training (E)."""
    dropout: float = 0.5
    """Share of the inner features of the head that is dropped in a step, in [0, 1)."""
    rounds: int = 60
    """Rounds of the run; 60 of 400 steps are HCD's 24,000."""
    steps: int = 400
    """Optimiser steps of a round."""
    batch_size: int = 64
    """Images of the global batch over all workers."""
    instances: int = 4
    """Images of each cluster in a batch."""
    camera_aware: bool = True
    """Draw the images of a cluster from different cameras where they are known."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(pooling="gem"))
    images: ImageConfig = field(default_factory=ImageConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("clusters", self.clusters >= 2, "at least 2, 500 is usual"),
            ("min_size", self.min_size >= 2, "at least 2, 20 is usual"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1), 0.5 is usual"),
            ("refresh_every", self.refresh_every >= 1, "at least 1, 10 is usual"),
            ("reweight", self.reweight >= 0, "0 (equal weights) or more, 0.5 is usual"),
            ("hidden", self.hidden >= 1, "at least 1, 512 is usual"),
            ("code", self.code >= 1, "at least 1, 256 is usual"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1), 0.5 is usual"),
            ("rounds", self.rounds >= 1, "at least 1, 60 is usual"),
            ("steps", self.steps >= 1, "at least 1, 400 is usual"),
            ("batch_size", self.batch_size >= 1, "at least 1, 64 is usual"),
            ("instances", self.instances >= 1, "at least 1, 4 is usual"),
        )
        check_group(self)


def cluster_count(config: Config, images: int) -> int:
    """C: ``config.clusters``, or as many of ``min_size`` as the images fill.

    Raises:
        ValueError: that is fewer than two.
    """
    count = min(config.clusters, images // config.min_size)
    if count < 2:
        raise ValueError(
            f"{images} images make no two clusters of min_size = {config.min_size}; lower --method.min-size "
            "(20 is usual) or give more images"
        )
    return count


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """Spherical k-means on the extracted features, once; its first centres are the same in all runs."""
    count = cluster_count(config, len(features.image_id))
    label, _ = kmeans(features.feature, count, seed=0)
    return given_labels(features.image_id, label[:, None], features.feature, config)


def labels_from(config: Config, number: int) -> LabelSource:
    """Extracted features are clustered once; then the objective's own labels count."""
    return "extracted" if number == 0 else "online"


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """P x K of the clusters as the round found them; an image alone is an identity of its own."""
    return identity_batches(
        domain.label[:, 0].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
        outliers="single",
    )


class Head(nn.Module):
    """ODC's non-linear neck: linear, BatchNorm, ReLU, dropout, linear, ReLU.

    Args:
        dim: D.
        hidden: H.
        code: E.
        group: images that share BatchNorm statistics.
    """

    def __init__(self, dim: int, hidden: int, code: int, group: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, code)
        self.norm = GroupBatchNorm(nn.BatchNorm1d(hidden), group)
        for layer in (self.inner, self.outer):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x_bD: Tensor, scale_bH: Tensor | None = None) -> Tensor:
        """(b, D) to (b, E); ``scale_bH`` is 0 where the dropout drops. In training the statistics move."""
        inner_bH = F.relu(self.norm(self.inner(x_bD)))
        if self.training:
            move_running_statistics(self)
        return F.relu(self.outer(inner_bH if scale_bH is None else inner_bH * scale_bH))

    @torch.no_grad()
    def start(self, x_ND: Tensor) -> Tensor:
        """Take the statistics of all images, at least two, and give their unit codes (N, E)."""
        inner_NH = self.inner(x_ND)
        self.norm.running_mean.copy_(inner_NH.mean(dim=0))
        self.norm.running_var.copy_(inner_NH.var(dim=0))
        return F.normalize(self.eval()(x_ND))  # the loop says train() before the first step


class Objective(nn.Module):
    """Classification of images into clusters that change after every step."""

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        count = cluster_count(config, sizes.images)
        if count < config.clusters:
            logger.warning(
                "%d clusters, not %d: so many of min_size = %d do %d images fill; see --method.min-size",
                count, config.clusters, config.min_size, sizes.images,
            )  # fmt: skip
        self.config = config
        self.steps = 0  # optimiser steps made in the run
        self.head = Head(sizes.dim, config.hidden, config.code, group_size(config))
        self.classifier = nn.Linear(config.code, count)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        self.clusters = OnlineClusters(
            sizes.images, count, config.code, momentum=config.momentum, min_size=config.min_size
        )

    def features(self) -> Tensor:
        """The codes (N, E) in image id order; what the labels are judged by."""
        return self.clusters.feature_ND

    def labels(self) -> Tensor:
        """The clusters (N, 1)."""
        return self.clusters.label_N[:, None]

    def begin_round(self, start: Round) -> None:
        """Fill the memories in the first round; they go on by themselves after it."""
        self.steps = start.step
        if not self.clusters.filled:
            self.clusters.fill(self.head.start(start.target.extracted), start.target.label[:, 0])

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """Cross entropy by the clusters of this moment, a weighted mean: images of large clusters count less."""
        x_bD = embedder(batch.image[0])
        code_bE = self.head(x_bD, self._dropout(batch, x_bD))
        label_b = self.clusters.label_N[batch.row]
        loss_b = F.cross_entropy(self.classifier(code_bE), label_b, reduction="none")
        weight_b = self.clusters.sizes()[label_b].to(loss_b) ** -self.config.reweight
        loss = global_mean(loss_b * weight_b) / mean_over_ranks(weight_b.mean())
        return Step(terms={"target": loss}, embedding=x_bD, extra={"code_bE": F.normalize(code_bE)})

    def _dropout(self, batch: Batch, like: Tensor) -> Tensor:
        """What the inner features are multiplied by, (b, H): a part of one draw for the global batch."""
        keep = 1 - self.config.dropout
        g = generator(batch.seed, "dropout")
        draw_BH = torch.rand(self.config.batch_size, self.config.hidden, generator=g)
        return (draw_BH < keep).to(like)[batch.position] / keep

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Move the codes of the batch and put it into clusters anew; then see to the clusters.

        Returns:
            ``reassigned``, the share of the batch that went to another cluster, and ``dissolved``, the
            clusters that were too small.
        """
        row_B, code_BE = gather_batch(batch.position, batch.row, step.extra["code_bE"])
        reassigned = self.clusters.move(row_B, code_BE)
        self.steps += 1
        if self.steps % self.config.refresh_every == 0:
            self.clusters.refresh()
        dissolved = self.clusters.balance()
        # Each rank has computed them; on GPUs sums may differ in the last bit, and so might a label.
        copy_from_first_rank(
            [self.clusters.label_N, self.clusters.centroid_CD, reassigned, dissolved]
        )
        return {"reassigned": reassigned, "dissolved": dissolved}


DEMO = Config(
    clusters=50,
    min_size=8,
    momentum=0.9,  # few passes from random weights: with 0.5 half of every batch changes its cluster
    rounds=20,
    steps=30,
    model=SMALL_MODEL,
    images=DEMO_IMAGES,
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
PRESETS = {
    "demo": Preset(
        config=DEMO, about="the synthetic set of `reid synth`, a small network, minutes on a CPU"
    ),
    "omniglot": Preset(
        config=OMNIGLOT, about="handwritten characters in Market layout, minutes on a CPU"
    ),
    "market1501": Preset(
        config=Config(),
        about="HCD (ICCV 2021) S-Table 1 ODC, Market-1501",
        published={"mAP": 20.0, "rank1": 38.8, "rank5": 54.9},
    ),
    "dukemtmc": Preset(
        config=Config(),
        about="HCD (ICCV 2021) S-Table 1 ODC, DukeMTMC-reID (withdrawn by its authors)",
        published={"mAP": 15.7, "rank1": 24.7, "rank5": 39.1},
    ),
}
