"""ClusterContrast (Dai et al., arXiv 2103.11568): a memory of one centroid a cluster, new every round.

System A of methods.md 2. S source classes, C clusters, B global batch, b this rank's share, D feature size.
With a labelled source set the memory starts with the S class centroids, and both domains are
classified among all S + C rows; the paper has no such variant.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from reid_core.batch import TARGET, Batch, Round, Sizes, Step
from reid_core.distributed import gather_batch
from reid_core.labelling.clusters import cluster, cluster_directly
from reid_core.labels import Features, Labels
from reid_core.losses.contrastive import memory_nce
from reid_core.losses.terms import by_domain
from reid_core.memory.classes import check_contrast, round_centroids
from reid_core.memory.updates import update_hardest, update_in_order
from reid_core.method import Preset
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_clustering,
    check_training,
)

UPDATES = {"all": update_in_order, "hard": update_hardest}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the published ones for Market-1501."""

    distance: Literal["jaccard", "euclidean", "cosine"] = "jaccard"
    """Distance of DBSCAN: k-reciprocal Jaccard, or that of the features, without k1, k2 and label-free score."""
    eps: float = 0.6
    """DBSCAN radius on the distance, in (0, 1)."""
    min_samples: int = 4
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 30
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""
    temperature: float = 0.05
    """Softmax temperature over the memory."""
    momentum: float = 0.1
    """Weight of the old memory row, in [0, 1)."""
    update: Literal["all", "hard"] = "all"
    """Every embedding of a cluster moves its row, or only the least similar one."""
    rounds: int = 50
    """Rounds of the run, the epochs of the paper."""
    steps: int = 200
    """Optimiser steps of a round."""
    batch_size: int = 256
    """Images of the global batch, per domain, over all workers."""
    instances: int = 16
    """Images of each cluster in a batch."""
    camera_aware: bool = True
    """Draw the images of a cluster from different cameras where they are known."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(pooling="gem"))
    images: ImageConfig = field(default_factory=ImageConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)

    def __post_init__(self) -> None:
        check_clustering(self.eps, self.min_samples, self.k1, self.k2)
        check_training(self)


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """DBSCAN on a distance of the extracted features."""
    density = {"eps": config.eps, "min_samples": config.min_samples}
    if config.distance == "jaccard":
        return cluster(features, **density, k1=config.k1, k2=config.k2)
    return cluster_directly(features, config.distance, **density)


class Objective(nn.Module):
    """InfoNCE against the centroids of the round."""

    memory_RD: Tensor  # source classes, then clusters

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.classes = sizes.classes
        self.register_buffer("memory_RD", torch.empty(0, sizes.dim), persistent=False)

    def begin_round(self, start: Round) -> None:
        """Build the memory from this round's features: norm(mean of the members).

        Raises:
            ValueError: there are fewer than two rows.
        """
        self.memory_RD = round_centroids(start)
        check_contrast(len(self.memory_RD))

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """One cross entropy a domain."""
        x_bD = embedder(batch.image[0])
        loss_b = memory_nce(x_bD, self._row(batch), self.memory_RD, self.config.temperature)
        return Step(terms=by_domain(loss_b, batch.domain, self.classes), embedding=x_bD)

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move the rows of the batch's clusters, in the order of the global batch."""
        row_B, x_BD = gather_batch(batch.position, self._row(batch), step.embedding)
        UPDATES[self.config.update](self.memory_RD, row_B, x_BD, self.config.momentum)

    def _row(self, batch: Batch) -> Tensor:
        return batch.label[:, 0] + self.classes * (batch.domain == TARGET)


DEMO = Config(
    eps=0.5,
    k1=20,
    rounds=20,
    steps=30,
    batch_size=64,
    instances=8,
    bn_group=32,
    model=SMALL_MODEL,
    images=DEMO_IMAGES,
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
SMALL = "minutes on a CPU; at most 2 workers (bn_group)"
PRESETS = {
    "demo": Preset(
        config=DEMO, about=f"the synthetic set of `reid synth`, a small network, {SMALL}"
    ),
    "omniglot": Preset(config=OMNIGLOT, about=f"handwritten characters in Market layout, {SMALL}"),
    "market1501": Preset(
        config=Config(),
        about="arXiv 2103.11568, eps of v3, figures of v1 as quoted in ISE Table 6; Market-1501",
        published={"mAP": 82.6, "rank1": 93.0, "rank5": 97.0, "rank10": 98.1},
    ),
    "dukemtmc": Preset(
        config=Config(),
        about="arXiv 2103.11568 as quoted by HDCPD, DukeMTMC-reID (withdrawn by its authors)",
        published={"mAP": 72.8, "rank1": 85.7, "rank5": 92.0, "rank10": 93.5},
    ),
    "msmt17": Preset(
        config=Config(steps=400),
        about="arXiv 2103.11568 v1 as quoted in ISE Table 6, MSMT17",
        published={"mAP": 33.3, "rank1": 63.3, "rank5": 73.7, "rank10": 77.8},
    ),
    "personx": Preset(
        config=Config(eps=0.7),
        about="arXiv 2103.11568 as quoted by HDCPD, PersonX",
        published={"mAP": 84.8, "rank1": 94.5, "rank5": 98.4, "rank10": 99.2},
    ),
}
