"""HDCPD: hybrid dynamic contrast and probability distillation (Cheng et al., arXiv 2109.14157; methods.md 4, 4.8).

S source classes, N target images, C clusters of a round, K classes (source classes, clusters, and every outlier as
its own), R memory rows, b this rank's share, D feature size. One row an image lies in a memory that is filled once
and then clustered itself; a query is contrasted with the hardest row of every class and with the hardest image of
its batch, and a teacher (EMA of the student, own view) gives probabilities over the clusters to match.
With ``memory = "cluster"`` the same losses go on top of ClusterContrast (4.7).

Where paper and release contradict each other (register C1 to C22 of methods.md): temperature 0.05 in Eq. 1 and 0.6
in Eq. 2; both temperatures of Eq. 6 times 0.05, without which it does nothing; Eq. 2 within each domain; log-softmax
without the release's + 1e-6. The presets ``paper`` and ``released`` go either way as far as they are known.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.batch import SOURCE, TARGET, Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import gather_batch, global_mean
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.labels import Features, Labels
from reid_core.losses.contrastive import memory_nce
from reid_core.losses.distillation import feature_distance, probability_distance
from reid_core.losses.hardest import batch_nce, hardest_nce
from reid_core.memory.classes import check_contrast, own_class_for_outliers, round_centroids
from reid_core.memory.instance import add_instances, fill_once, rows_of
from reid_core.memory.updates import class_means, update_hardest, update_in_order
from reid_core.method import LabelSource, Preset
from reid_core.models.ema import Ramp, ema_weight, follow, teacher_of
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_clustering,
    check_ranges,
    check_training,
)

UPDATES = {"instance": update_in_order, "cluster": update_hardest}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the recommended ones for Market-1501."""

    eps: float = 0.5
    """DBSCAN radius on the Jaccard distance, in (0, 1)."""
    min_samples: int = 4
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 30
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""
    cluster_every: int = 1
    """Rounds between two clusterings; those between keep the labels."""
    memory: Literal["instance", "cluster"] = "instance"
    """One row an image, kept for the run; or one centroid a cluster, new every round, without outliers."""
    memory_source: Literal["teacher", "student"] = "teacher"
    """Whose embeddings move the memory."""
    contrast: Literal["hardest", "centroid"] = "hardest"
    """What stands for a class in the memory: its hardest row, or the mean of its rows."""
    local: Literal["all", "hardest_per_identity", "none"] = "all"
    """Negatives of the contrast within the batch, or no such contrast."""
    distil: Literal["probability", "feature", "none"] = "probability"
    """What the student takes from the teacher: class probabilities, embeddings (MeanTeacher-L2), or nothing."""
    gamma: float = 0.2
    """Weight of the distillation."""
    temperature: float = 0.05
    """Softmax temperature over the memory (Eq. 1)."""
    local_temperature: float = 0.6
    """Softmax temperature within the batch (Eq. 2)."""
    base_temperature: float = 0.05
    """Factor on the temperatures of student and teacher; 1 is the paper's text."""
    student_temperature: float = 1.0
    """Softmax temperature of the student's class probabilities."""
    teacher_temperature: float = 0.5
    """Softmax temperature of the teacher's class probabilities; one below the student's sharpens them."""
    distil_mean: Literal["batch", "classes"] = "batch"
    """Divide the distillation by the images of the batch, or, as released, by the classes."""
    legacy_pd_axis: bool = False
    """Class probabilities by a softmax over the images of the batch, a defect of the release with 'cluster'."""
    ema: float = 0.999
    """Largest weight of the teacher's old value, in [0, 1]."""
    ema_ramp: Ramp = "released"
    """The weight is ``ema`` always, or climbs to it from 0 at step 0 ('mean_teacher') or at ``ema_reset``."""
    ema_reset: int = 49
    """Step at which the teacher becomes a copy of the student; it hardly moves before ('released')."""
    ema_bn: bool = True
    """The teacher's running BatchNorm statistics follow the student's; if not, they are those of its own batches."""
    teacher_aug: Literal["strong", "weak"] = "strong"
    """The teacher's view: drawn like the student's, or without random erasing."""
    momentum: float = 0.2
    """Weight of the old memory row, in [0, 1)."""
    rounds: int = 70
    """Rounds of the run, the epochs of the paper."""
    steps: int = 100
    """Optimiser steps of a round."""
    batch_size: int = 256
    """Images of the global batch, per domain, over all workers."""
    instances: int = 16
    """Images of each cluster in a batch; an outlier gives one."""
    camera_aware: bool = True
    """Draw the images of a cluster from different cameras where they are known."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=ModelConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    optim: AdamConfig = field(default_factory=lambda: AdamConfig(step_rounds=30))

    def __post_init__(self) -> None:
        check_clustering(self.eps, self.min_samples, self.k1, self.k2)
        check_training(self)
        check_ranges(
            vars(self),
            ("local_temperature", self.local_temperature > 0, "positive, 0.6 is usual"),
            ("base_temperature", self.base_temperature > 0, "positive, 0.05 is usual"),
            ("student_temperature", self.student_temperature > 0, "positive, 1 is usual"),
            ("teacher_temperature", self.teacher_temperature > 0, "positive, 0.5 is usual"),
            ("gamma", self.gamma >= 0, "0 or more, 0.1 to 0.5 is usual"),
            ("ema", 0 <= self.ema <= 1, "in [0, 1], 0.999 is usual"),
            ("ema_reset", self.ema_reset >= 0, "0 or more, 49 is usual"),
            ("cluster_every", self.cluster_every >= 1, "at least 1, 1 or 2 is usual"),
        )
        if self.local != "none" and self.instances < 2:
            raise UsageError(
                f"instances = {self.instances}: the contrast within the batch needs 2 images of a cluster, 16 is "
                "usual; or set local to none"
            )
        if self.cluster_every > 1 and self.memory == "cluster":
            raise UsageError(
                f"cluster_every = {self.cluster_every}: a cluster memory is new every round; set it to 1, or "
                "memory to instance"
            )

    @property
    def has_teacher(self) -> bool:
        """Whether anything reads the teacher."""
        return self.distil != "none" or self.memory_source == "teacher"


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """DBSCAN on the k-reciprocal Jaccard distance of the memory rows, or of extracted features."""
    return cluster(
        features, eps=config.eps, min_samples=config.min_samples, k1=config.k1, k2=config.k2
    )


def labels_from(config: Config, number: int) -> LabelSource:
    """Extracted features fill the instance memory once; then the memory is clustered, every few rounds."""
    if config.memory == "cluster" or number == 0:
        return "extracted"
    return "keep" if number % config.cluster_every else "memory"


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """P x K; an outlier is an identity of one image of an instance memory, and left out of a cluster memory."""
    return identity_batches(
        domain.label[:, 0].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
        outliers="single" if config.memory == "instance" else "drop",
    )


def views(config: Config) -> tuple[ImageConfig, ...]:
    """The student's view and the teacher's."""
    if not config.has_teacher:
        return (config.images,)
    weak = replace(config.images, erase=0.0)
    return config.images, weak if config.teacher_aug == "weak" else config.images


class Objective(nn.Module):
    """L = L_G + L_B + gamma L_S (Eq. 8) in each domain; gives ``features`` to the label stage."""

    memory_RD: Tensor  # S source prototypes, then N target instances or C target centroids
    filled: Tensor
    class_R: Tensor

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes
        self.domains = {"target": TARGET} | ({"source": SOURCE} if sizes.classes else {})
        self.classes = self.clusters = self.step = 0
        self.teacher = (
            teacher_of(embedder, own_statistics=not config.ema_bn) if config.has_teacher else None
        )
        if config.memory == "instance":
            add_instances(self, sizes)
        else:
            self.register_buffer("memory_RD", torch.zeros(0, sizes.dim), persistent=False)
        none_R = torch.zeros(len(self.memory_RD), dtype=torch.int64)
        self.register_buffer("class_R", none_R, persistent=False)

    def features(self) -> Tensor:
        """The target rows in image id order: what the label stage clusters, with an instance memory."""
        return self.memory_RD[self.sizes.classes :]

    def embedders(self) -> dict[str, nn.Module]:
        """The teacher is evaluated beside the student."""
        return {} if self.teacher is None else {"teacher": self.teacher}

    def begin_round(self, start: Round) -> None:
        """Fill the instance memory in the first round, or rebuild the cluster memory; number the classes.

        Raises:
            ValueError: there are fewer than two classes.
        """
        label_N = start.target.label[:, 0]
        self.step, self.clusters = start.step, int(label_N.max()) + 1
        if self.config.memory == "cluster":
            self.memory_RD = round_centroids(start)
            self.class_R = torch.arange(len(self.memory_RD), device=label_N.device)
        else:
            fill_once(self.memory_RD, self.filled, start, self.sizes.classes)
            self.class_R = own_class_for_outliers(label_N, self.sizes.classes)
        self.classes = len(self.class_R.bincount())
        check_contrast(self.classes)

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """Three terms a domain: global and local contrast, distillation."""
        config = self.config
        x_bD = embedder(batch.image[0])
        teacher_bD = self._teach(batch) if config.has_teacher else x_bD.detach()
        class_b = self.class_R[self._row(batch)]
        global_b = self._global(x_bD, class_b)
        terms = {}
        for name, domain in self.domains.items():
            own = batch.domain == domain
            terms[f"global_{name}"] = global_mean(global_b[own])
            if config.local != "none":
                loss_b, paired_b = batch_nce(
                    x_bD[own],
                    class_b[own],
                    batch.image_id[own],
                    config.local_temperature,
                    config.local,
                )
                terms[f"local_{name}"] = global_mean(loss_b, paired_b)
            if config.distil != "none":
                loss = self._distil(x_bD[own], teacher_bD[own], domain)
                terms[f"distil_{name}"] = config.gamma * loss
        return Step(terms=terms, embedding=x_bD, extra={"teacher": teacher_bD})

    @torch.no_grad()
    def _teach(self, batch: Batch) -> Tensor:
        """The teacher's embeddings of its own view, by the statistics of the batch, (b, D)."""
        assert self.teacher is not None
        return self.teacher(batch.image[1])

    def _global(self, x_bD: Tensor, class_b: Tensor) -> Tensor:
        """L_G over the classes of both domains, (b,)."""
        memory, temperature = (self.memory_RD, self.class_R, self.classes), self.config.temperature
        if self.config.contrast == "centroid":
            return memory_nce(x_bD, class_b, class_means(*memory), temperature)
        return hardest_nce(x_bD, class_b, *memory, temperature)

    def _distil(self, x_bD: Tensor, teacher_bD: Tensor, domain: int) -> Tensor:
        """L_S over the clusters of a domain; zero with fewer than two."""
        config = self.config
        if config.distil == "feature":
            return global_mean(feature_distance(x_bD, teacher_bD))
        prototype_CD = self._prototypes(domain)
        if len(prototype_CD) < 2:
            return x_bD.new_zeros(())
        loss_b = probability_distance(
            x_bD,
            teacher_bD,
            prototype_CD,
            config.base_temperature * config.student_temperature,
            config.base_temperature * config.teacher_temperature,
            over_batch=config.legacy_pd_axis,
        )
        share = config.batch_size / len(prototype_CD) if config.distil_mean == "classes" else 1
        return share * global_mean(loss_b)

    def _prototypes(self, domain: int) -> Tensor:
        """The source prototypes, or the means of the target clusters (Eq. 5), without outliers."""
        classes = self.sizes.classes
        if domain == SOURCE:
            return self.memory_RD[:classes]
        cluster_N = self.class_R[classes:] - classes
        cluster_N = cluster_N.where(cluster_N < self.clusters, -1)
        return class_means(self.memory_RD[classes:], cluster_N, self.clusters)

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move the rows of the batch, then the teacher."""
        config = self.config
        x_bD = step.extra["teacher"] if config.memory_source == "teacher" else step.embedding
        row_B, x_BD = gather_batch(batch.position, self._row(batch), x_bD)
        UPDATES[config.memory](self.memory_RD, row_B, x_BD, config.momentum)
        if self.teacher is not None:
            weight = ema_weight(
                self.step, ema=config.ema, ramp=config.ema_ramp, reset=config.ema_reset
            )
            follow(self.teacher, embedder, weight, statistics=config.ema_bn)
        self.step += 1

    def _row(self, batch: Batch) -> Tensor:
        if self.config.memory == "instance":
            return rows_of(batch, self.sizes.classes)
        return batch.label[:, 0] + self.sizes.classes * (batch.domain == TARGET)


NO_DISTILLATION: dict[str, Any] = {"distil": "none"}
CENTROID: dict[str, Any] = {"contrast": "centroid"}
BASELINE = CENTROID | {"local": "none"} | NO_DISTILLATION
COMPONENTS: list[tuple[str, dict[str, Any]]] = [
    ("centroid L_G", BASELINE),
    ("centroid L_G + L_B", CENTROID | NO_DISTILLATION),
    ("hardest L_G + L_B = L_L2G", NO_DISTILLATION),
    ("centroid L_G + L_S", CENTROID | {"local": "none"}),
    ("all", {}),
]
"""Table VIII; the memory is the teacher's in every row."""
VIII = {
    "market1501": [
        (76.3, 90.1, 96.1, 97.3),
        (79.1, 91.0, 96.4, 97.5),
        (80.8, 92.2, 96.8, 97.9),
        (78.1, 90.6, 96.5, 97.5),
        (81.7, 92.4, 97.4, 98.1),
    ],
    "dukemtmc": [
        (61.9, 78.0, 87.1, 90.5),
        (64.2, 80.1, 88.2, 90.4),
        (67.7, 82.1, 90.1, 92.6),
        (64.8, 80.4, 88.2, 90.5),
        (69.0, 82.9, 90.9, 93.0),
    ],
}
IX = {
    "baseline": (0, (80.0, 91.5, 96.8, 97.9)),
    "l2g": (2, (82.5, 92.9, 97.1, 98.1)),
    "baseline_pd": (3, (81.3, 92.2, 96.8, 97.7)),
    "full": (4, (83.9, 93.6, 97.5, 98.3)),
}
XI = {
    0.0: (80.8, 92.2, 96.8, 97.9),
    0.1: (81.1, 92.2, 97.1, 98.1),
    0.2: (81.7, 92.4, 97.4, 98.1),
    0.3: (81.6, 92.5, 96.9, 98.1),
    0.5: (80.9, 91.8, 96.9, 98.0),
    1.0: (81.0, 92.4, 97.0, 98.1),
    1.5: (79.9, 91.7, 96.6, 97.8),
}
SETS = {
    "market1501": Config(),
    "dukemtmc": Config(eps=0.6),
    "msmt17": Config(eps=0.6),
    "personx": Config(eps=0.7),
}
FINAL = {
    "market1501": VIII["market1501"][4],
    "dukemtmc": VIII["dukemtmc"][4],
    "msmt17": (24.6, 50.2, 61.4, 65.7),
    "personx": (84.1, 94.4, 98.7, 99.5),
}
CLUSTER_CONTRAST = Config(
    memory="cluster",
    memory_source="student",
    contrast="centroid",
    local="none",
    momentum=0.1,
    ema_reset=99,
    rounds=110,
    steps=200,
    optim=AdamConfig(step_rounds=40),
)
CC_SETS = {
    "market1501": replace(CLUSTER_CONTRAST, eps=0.4, rounds=120),
    "dukemtmc": replace(CLUSTER_CONTRAST, eps=0.6),
    "msmt17": replace(CLUSTER_CONTRAST, eps=0.6, steps=400),
    "personx": replace(CLUSTER_CONTRAST, eps=0.7),
}
CC = {
    "market1501": ((82.6, 93.0, 97.0, 98.1), (84.5, 93.5, 97.6, 98.6)),
    "dukemtmc": ((72.8, 85.7, 92.0, 93.5), (73.5, 85.4, 92.2, 94.5)),
    "msmt17": ((18.7, 40.5, 51.7, 56.9), (20.7, 43.8, 55.1, 60.1)),
    "personx": ((84.8, 94.5, 98.4, 99.2), (89.5, 95.6, 98.7, 99.4)),
}
PAPER = Config(
    momentum=0.3,
    temperature=0.6,
    min_samples=5,
    cluster_every=2,
    base_temperature=1.0,
)
RELEASED = Config(
    memory_source="student",
    local="none",
    teacher_temperature=1.0,
    distil_mean="classes",
    gamma=1.0,
    ema_bn=False,
)
DEMO = Config(
    k1=20,
    local_temperature=0.1,
    ema=0.99,
    ema_reset=5,
    teacher_aug="weak",
    momentum=0.6,
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
SMALL = (
    "from random weights one view is a noisy memory row: rows average gentler views (momentum, teacher_aug; bn_group, "
    "so at most 2 workers), and clusters weigh more beside all the outliers (instances, local_temperature)"
)
D2M = "UDA: --source DukeMTMC-reID, target Market-1501"


def _preset(config: Config, about: str, figures: tuple[float, ...]) -> Preset:
    names = ("mAP", "rank1", "rank5", "rank10")
    return Preset(
        config=config,
        about=f"HDCPD (arXiv 2109.14157) {about}",
        published=dict(zip(names, figures, strict=True)),
    )


PRESETS = {
    "demo": Preset(
        config=DEMO,
        about=f"the synthetic set of `reid synth`, a small network, minutes on a CPU; {SMALL}",
    ),
    "omniglot": Preset(
        config=OMNIGLOT,
        about=f"handwritten characters in Market layout, minutes on a CPU; {SMALL}",
    ),
    **{data: _preset(SETS[data], f"final, {data}", FINAL[data]) for data in SETS},
    "d2m": _preset(SETS["market1501"], f"final, {D2M}", IX["full"][1]),
    "m2d": _preset(
        SETS["dukemtmc"],
        "final, UDA: --source Market-1501, target DukeMTMC-reID",
        (70.9, 83.5, 90.8, 93.3),
    ),
    "paper": _preset(
        PAPER,
        "settings as far as the paper's text states them (the EMA ramp is the release's), market1501",
        FINAL["market1501"],
    ),
    "released": _preset(
        RELEASED,
        "settings of the published code, figure of its README, market1501",
        (81.6, 92.6, 97.4, 98.2),
    ),
    **{
        f"viii_{row}_{data}": _preset(
            replace(SETS[data], **changes),
            f"Table VIII row {row}, {what}; {data}",
            VIII[data][row - 1],
        )
        for data in VIII
        for row, (what, changes) in enumerate(COMPONENTS, 1)
    },
    **{
        f"ix_{name}_d2m": _preset(
            replace(SETS["market1501"], **COMPONENTS[row][1]),
            f"Table IX, {COMPONENTS[row][0]}; {D2M}",
            figures,
        )
        for name, (row, figures) in IX.items()
    },
    "x_meanteacher_market1501": _preset(
        Config(distil="feature"),
        "Table X, MeanTeacher-L2 (probably a misprint: equals Table XI, gamma 1); market1501",
        (81.0, 92.4, 97.0, 98.1),
    ),
    **{
        f"xi_gamma_{gamma:g}_market1501": _preset(
            Config(gamma=gamma), f"Table XI, gamma = {gamma:g}; market1501", figures
        )
        for gamma, figures in XI.items()
    },
    **{
        f"{name}_{data}": _preset(replace(CC_SETS[data], **changes), f"{what}; {data}", figures)
        for data in CC
        for name, what, changes, figures in (
            ("cc", "ClusterContrast as it tabulates it", NO_DISTILLATION, CC[data][0]),
            ("cc_pd", "ClusterContrast + probability distillation", {}, CC[data][1]),
        )
    },
}
