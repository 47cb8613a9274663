"""SpCL's hybrid memory (Ge et al., NeurIPS 2020): one row an image, kept for the run; self-paced where ``eps_gap`` > 0.

System A, ``memory: hybrid`` of methods.md 2.3 and 2.4. S source classes, N target images, K classes of a round
(source classes, clusters, and every outlier as its own), b this rank's share, D feature size. The memory is filled once
from extracted features; from the second round on its rows are what is clustered. The threshold that the first round
fixes for self-paced reliability travels in the ``state`` of the LABELS. Departure: the release's -log(p + 1e-6) is a
log-softmax here, as methods.md 2.4 says.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import gather_batch
from reid_core.labelling.clusters import cluster
from reid_core.labelling.reliability import reliable_clusters
from reid_core.labels import Features, Labels
from reid_core.losses.contrastive import memory_nce
from reid_core.losses.terms import by_domain
from reid_core.memory.classes import own_class_for_outliers
from reid_core.memory.instance import add_instances, fill_once, rows_of
from reid_core.memory.updates import class_means, update_in_order
from reid_core.method import LabelSource, Preset
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_clustering,
    check_ranges,
    check_training,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the published ones for Market-1501."""

    eps: float = 0.6
    """DBSCAN radius on the Jaccard distance, in (0, 1)."""
    eps_gap: float = 0.0
    """How far eps moves up and down while clusters must nearly stay as they are; 0 trusts all, 0.02 is SpCL's."""
    min_samples: int = 4
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 30
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""
    temperature: float = 0.05
    """Softmax temperature over the classes of the memory."""
    momentum: float = 0.2
    """Weight of the old memory row, in [0, 1)."""
    rounds: int = 50
    """Rounds of the run, the epochs of the paper."""
    steps: int = 400
    """Optimiser steps of a round."""
    batch_size: int = 64
    """Images of the global batch, per domain, over all workers."""
    instances: int = 4
    """Images of each cluster in a batch; an outlier gives one."""
    camera_aware: bool = True
    """Draw the images of a cluster from different cameras where they are known."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=ModelConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    optim: AdamConfig = field(default_factory=AdamConfig)

    def __post_init__(self) -> None:
        check_clustering(self.eps, self.min_samples, self.k1, self.k2)
        check_ranges(
            vars(self),
            (
                "eps_gap",
                0 <= self.eps_gap < min(self.eps, 1 - self.eps),
                f"0 or more, and eps = {self.eps} less or more of it must lie in (0, 1): 0.02 is usual, 0 trusts "
                "every cluster",
            ),
        )
        check_training(self)


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """DBSCAN on the k-reciprocal Jaccard distance of the memory rows; self-paced, its reliable clusters."""
    density = {"min_samples": config.min_samples, "k1": config.k1, "k2": config.k2}
    if not config.eps_gap:
        return cluster(features, eps=config.eps, **density)
    radii = (config.eps - config.eps_gap, config.eps, config.eps + config.eps_gap)
    return reliable_clusters(features, radii, previous=previous, **density)


def labels_from(config: Config, number: int) -> LabelSource:
    """Extracted features fill the memory once; then the memory itself is clustered."""
    return "extracted" if number == 0 else "memory"


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """P x K; an outlier is an identity of one image."""
    return identity_batches(
        domain.label[:, 0].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
        outliers="single",
    )


class Objective(nn.Module):
    """Cross entropy over the class means of an instance memory; gives ``features`` to the label stage."""

    memory_RD: Tensor  # S source prototypes, then N target instances
    filled: Tensor
    class_R: Tensor

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes
        self.classes = 0
        add_instances(self, sizes)
        none_R = torch.zeros(len(self.memory_RD), dtype=torch.int64)
        self.register_buffer("class_R", none_R, persistent=False)

    def features(self) -> Tensor:
        """The target rows (N, D) in image id order: what the label stage clusters."""
        return self.memory_RD[self.sizes.classes :]

    def begin_round(self, start: Round) -> None:
        """Fill the memory in the first round; number the classes of this one."""
        fill_once(self.memory_RD, self.filled, start, self.sizes.classes)
        self.class_R = own_class_for_outliers(start.target.label[:, 0], self.sizes.classes)
        self.classes = int(self.class_R.max()) + 1

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """One cross entropy a domain, over all classes of both."""
        x_bD = embedder(batch.image[0])
        prototype_KD = class_means(self.memory_RD, self.class_R, self.classes)
        class_b = self.class_R[rows_of(batch, self.sizes.classes)]
        loss_b = memory_nce(x_bD, class_b, prototype_KD, self.config.temperature)
        return Step(terms=by_domain(loss_b, batch.domain, self.sizes.classes), embedding=x_bD)

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move each image's own row; a source image moves the row of its class."""
        row_b = rows_of(batch, self.sizes.classes)
        row_B, x_BD = gather_batch(batch.position, row_b, step.embedding)
        update_in_order(self.memory_RD, row_B, x_BD, self.config.momentum)


DEMO = Config(
    eps=0.5,
    k1=20,
    momentum=0.6,
    rounds=20,
    steps=30,
    instances=8,
    bn_group=32,
    model=SMALL_MODEL,
    images=DEMO_IMAGES,
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
SPCL = {
    "usl_market1501": ("Market-1501", (73.1, 88.1, 95.1, 97.0)),
    "usl_dukemtmc": ("DukeMTMC-reID (withdrawn by its authors)", (65.3, 81.2, 90.3, 92.2)),
    "usl_msmt17": ("MSMT17", (19.1, 42.3, 55.6, 61.2)),
    "usl_personx": ("PersonX; no figure (HDCPD Table V repeats Market's)", ()),
    "uda_d2m": ("--source DukeMTMC-reID, target Market-1501", (76.7, 90.3, 96.2, 97.7)),
    "uda_m2d": ("--source Market-1501, target DukeMTMC-reID", (68.8, 82.9, 90.1, 92.5)),
    "uda_m2ms": ("--source Market-1501, target MSMT17", (26.8, 53.7, 65.0, 69.8)),
    "uda_d2ms": ("--source DukeMTMC-reID, target MSMT17", (26.5, 53.1, 65.8, 70.5)),
}
"""The paper with its self-paced part: what it learns from, and its figures."""
SMALL = "minutes on a CPU; at most 2 workers (bn_group)"
PLAIN = {
    "market1501": ("Market-1501", "Table VIII row 1", (76.3, 90.1, 96.1, 97.3)),
    "dukemtmc": (
        "DukeMTMC-reID (withdrawn by its authors)",
        "Table VIII row 1",
        (61.9, 78.0, 87.1, 90.5),
    ),
    "duke2market": (
        "UDA: --source DukeMTMC-reID, target Market-1501",
        "Table IX baseline",
        (80.0, 91.5, 96.8, 97.9),
    ),
}
"""Without it: what it learns from, and HDCPD's run, which ``hdcpd`` has as viii_1_* and ix_baseline_d2m."""
PRESETS = {
    "demo": Preset(
        config=DEMO, about=f"the synthetic set of `reid synth`, a small network, {SMALL}"
    ),
    "omniglot": Preset(config=OMNIGLOT, about=f"handwritten characters in Market layout, {SMALL}"),
    **{
        name: Preset(
            config=Config(),
            about=f"SpCL's settings without its self-paced part; figures of HDCPD {row}, a run with other settings "
            f"(batch 256, eps 0.5 or 0.6, memory by a teacher); {where}",
            published=dict(zip(("mAP", "rank1", "rank5", "rank10"), figures, strict=True)),
        )
        for name, (where, row, figures) in PLAIN.items()
    },
    "msmt17": Preset(
        config=Config(steps=800), about="SpCL's settings, MSMT17; no figure without self-paced part"
    ),
    "personx": Preset(
        config=Config(), about="SpCL's settings, PersonX; no figure without self-paced part"
    ),
    **{
        f"spcl_{task}": Preset(
            config=Config(eps_gap=0.02, steps=800 if "MSMT17" in where else 400),
            about=f"SpCL (arXiv 2006.02713), self-paced; {where}",
            published=dict(zip(("mAP", "rank1", "rank5", "rank10"), figures, strict=False)),
        )
        for task, (where, figures) in SPCL.items()
    },
}
