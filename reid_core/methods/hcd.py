"""HCD, online pseudo labels by hierarchical cluster dynamics (Zheng et al., ICCV 2021).

methods.md 3, with its decisions on the paper's open points (7, B1 to B10). S source classes, N target images, R = S + N
rows of the feature bank, H label levels (the first the finest), K classes of the last level, B global batch, b this
rank's share, D feature size. The images are clustered once; from then on every batch changes the labels of its images
and of the clusters around them, and the next batch already learns by the new ones.

Departures: clusters of more than ``split_limit`` nodes are not split; images that are sent to each other as nearest
neighbours come together (the release swaps their labels). The sampler is that of methods.md 1.3: it counts no use of
images, takes no companions from distinct finest clusters where all candidates share a camera, and walks its
permutation once a pass where the release does twice; it sees new labels every ``steps`` steps, not every pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.data.samplers import identity_batches
from reid_core.distributed import copy_from_first_rank, gather_batch
from reid_core.labelling.clusters import cluster
from reid_core.labelling.online.neighbourhood import NeighbourRule, best_neighbours, neighbourhood
from reid_core.labelling.online.splitting import SplitRule
from reid_core.labels import Features, Labels
from reid_core.losses.contrastive import memory_nce
from reid_core.losses.terms import by_domain
from reid_core.memory.hierarchy import LabelHierarchy, MergeRule, Nodes
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
    counted,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the published ones, of the release where the supplement is silent."""

    eps: float = 0.6
    """DBSCAN radius on the Jaccard distance of the one clustering at the start, in (0, 1)."""
    min_samples: int = 3
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 20
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""
    temperature: float = 0.05
    """Softmax temperature."""
    momentum: float = 0.2
    """Weight of the old bank row, in [0, 1)."""
    levels: int = 3
    """Levels of the label hierarchy (H); the last one is learnt from."""
    start_iter: float | None = None
    """Optimiser steps before labels change; below 1 a share of rounds x steps; not given, those of the first round."""
    neighbours: int = 64
    """Nearest bank rows of an image, itself included, among which it finds its cluster."""
    neighbours_target_only: bool = False
    """Leave source prototypes out of the neighbours."""
    min_similarity: float = 0.45
    """Similarity above which two images may be linked in a propagation."""
    connect: int = 30
    """Merges link images of which each is among so many nearest of the other."""
    nearest: int = 20
    """Joins link images of which each is among so many nearest of the other; an image joins only one of those."""
    nn_rule: Literal["propagated", "plain"] = "propagated"
    """Join the neighbour that propagation finds, if any, or always the nearest (Algorithm 1 of the supplement)."""
    sigma: float = 0.25
    """Propagated score above which neighbours are joined and clusters merged."""
    alpha_m: float = 0.99
    """Weight of neighbours in the propagation of joins and merges, in [0, 1)."""
    merge: bool = True
    """Merge clusters."""
    split: bool = True
    """Split clusters."""
    alpha_s: float = 0.99
    """Weight of neighbours in the propagation of splits, in [0, 1)."""
    anchors: int = 8
    """Most parts of a split (K)."""
    anchor_order: Literal["near", "far"] = "near"
    """Which of too many anchors stay: those nearest to a denser node (the release), or the farthest."""
    split_assign: Literal["raw", "column_normalised"] = "raw"
    """Nodes go to the anchor of the largest score, or of the largest share of an anchor's scores. Raw scores
    rarely split at alpha_s = 0.99 where the degrees differ: the metrics count the splits."""
    split_gap: int = 2
    """A cluster of so many nodes or fewer stays whole."""
    split_limit: int = 4096
    """A cluster of more nodes stays whole: a split takes nodes^2 memory."""
    fresh_means: bool = False
    """In splits, nodes that have just been merged take their new mean; the release takes the one before."""
    legacy_anchor_index: bool = False
    """Read places of anchors among the candidates as places in the cluster, as the release does."""
    legacy_floor: bool = False
    """Give nodes that are not linked the affinity exp(-2) instead of 0, as the release does."""
    legacy_double_exp: bool = False
    """Exponentiate similarities twice below the last level, as the release does."""
    rounds: int = 60
    """Rounds of the run; 60 of 400 steps are the published 24,000."""
    steps: int = 400
    """Optimiser steps of a round, and the unit of ``optim.step_rounds``: the rate falls by steps made."""
    round_length: Literal["steps", "pass"] = "steps"
    """Length of the rounds after the first: ``steps`` steps, or one pass over the clusters (then more rounds)."""
    batch_size: int = 64
    """Images of the global batch, per domain, over all workers."""
    instances: int = 4
    """Images of each cluster in a batch; an image alone gives one."""
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
        check_ranges(
            vars(self),
            ("alpha_m", 0 <= self.alpha_m < 1, "in [0, 1), 0.1 to 0.99 is usual"),
            ("alpha_s", 0 <= self.alpha_s < 1, "in [0, 1), 0.1 to 0.99 is usual"),
            ("levels", self.levels >= 1, "at least 1, 2 or 3 is usual"),
            ("anchors", self.anchors >= 2, "at least 2, 2 to 16 is usual; split False for none"),
            ("neighbours", self.neighbours >= 2, "at least 2, 64 is usual"),
            ("connect", self.connect >= 1, "at least 1, 30 is usual"),
            ("nearest", self.nearest >= 1, "at least 1, 20 is usual"),
            ("split_gap", self.split_gap >= 0, "0 or more, 2 is usual"),
            ("split_limit", self.split_limit >= 1, "at least 1, 4096 is usual"),
            ("start_iter", (self.start_iter or 0) >= 0, "0 or more, 400 is usual"),
            ("sigma", self.sigma > 0, "positive, 0.1 to 0.4 is usual"),
        )


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """DBSCAN on the k-reciprocal Jaccard distance of the extracted features, once, for all levels."""
    labels = cluster(
        features, eps=config.eps, min_samples=config.min_samples, k1=config.k1, k2=config.k2
    )
    levels = {
        name: np.repeat(getattr(labels, name), config.levels, axis=1)
        for name in ("label", "is_core", "confidence")
    }
    return replace(labels, **levels)


def labels_from(config: Config, number: int) -> LabelSource:
    """Extracted features are clustered once; then the objective's own labels count."""
    return "extracted" if number == 0 else "online"


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """P x K of the last level as the round found it; an image alone is an identity of its own."""
    return identity_batches(
        domain.label[:, -1].numpy(),
        domain.camid.numpy() if config.camera_aware else None,
        batch_size=config.batch_size,
        instances=config.instances,
        seed=seed,
        outliers="single",
    )


def num_steps(config: Config, start: Round) -> int:
    """``steps`` in the first round, then one pass over the clusters and lone images of the last level."""
    if start.number == 0 or config.round_length == "steps":
        return config.steps
    label_N = start.target.label[:, -1]
    drawn = config.instances * (int(label_N.max()) + 1) + int((label_N < 0).sum())
    return drawn // config.batch_size + 1


def scheduler(
    config: Config, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate falls every ``step_rounds`` x ``steps`` optimiser steps, at the end of a round."""
    unit = counted(config.optim.step_rounds, config.rounds) * config.steps

    def factor(_: int) -> float:
        made = max((int(of["step"]) for of in optimizer.state.values()), default=0)
        return config.optim.decay ** (made // unit)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Objective(nn.Module):
    """Cross entropy over the class means of a feature bank whose labels change after every step."""

    memory_RD: Tensor  # S source prototypes, then N target instances
    filled: Tensor

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes
        add_instances(self, sizes)
        self.hierarchy = LabelHierarchy(config.levels, sizes.images, sizes.classes)
        self.waits = 0  # steps until labels change
        self.joining = NeighbourRule(
            rule=config.nn_rule,
            nearest=config.nearest,
            threshold=config.min_similarity,
            alpha=config.alpha_m,
            sigma=config.sigma,
        )
        self.merging = MergeRule(
            connect=config.connect,
            threshold=config.min_similarity,
            alpha=config.alpha_m,
            sigma=config.sigma,
        )
        self.splitting = SplitRule(
            gap=config.split_gap,
            limit=config.split_limit,
            anchors=config.anchors,
            alpha=config.alpha_s,
            assign=config.split_assign,
            order=config.anchor_order,
            legacy_index=config.legacy_anchor_index,
            legacy_floor=config.legacy_floor,
        )

    def features(self) -> Tensor:
        """The target rows (N, D) in image id order; what the labels are judged by."""
        return self.memory_RD[self.sizes.classes :]

    def labels(self) -> Tensor:
        """The clusters of the target images (N, H), finest level first."""
        return self.hierarchy.label_HR[:, self.sizes.classes :].T - self.sizes.classes

    def begin_round(self, start: Round) -> None:
        """Fill bank and labels in the first round; they go on by themselves after it."""
        if fill_once(self.memory_RD, self.filled, start, self.sizes.classes):
            self.hierarchy.fill(start.target.label[:, -1])
        config = self.config
        first = config.steps if config.start_iter is None else config.start_iter
        self.waits = max(0, counted(first, config.rounds * config.steps) - start.step)

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """One cross entropy a domain, over all classes of both, by the labels of this moment (Eq. 1)."""
        x_bD = embedder(batch.image[0])
        name_K, class_R = self.hierarchy.label_HR[-1].unique(return_inverse=True)
        prototype_KD = class_means(self.memory_RD, class_R, len(name_K))
        class_b = class_R[rows_of(batch, self.sizes.classes)]
        loss_b = memory_nce(x_bD, class_b, prototype_KD, self.config.temperature)
        return Step(terms=by_domain(loss_b, batch.domain, self.sizes.classes), embedding=x_bD)

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Move each image's own row (a source image: that of its class), then change labels.

        Returns:
            ``joined``, images that joined a neighbour; for each level h from 1 ``splits_h``, the splits
            that had an effect, and ``merges_h``, the clusters that went into another one.
        """
        row_b = rows_of(batch, self.sizes.classes)
        row_B, x_BD = gather_batch(batch.position, row_b, step.embedding)
        update_in_order(self.memory_RD, row_B, x_BD, self.config.momentum)
        names = [
            f"{what}_{h + 1}" for h in range(self.config.levels) for what in ("splits", "merges")
        ]
        counts = dict.fromkeys(["joined", *names], row_B.new_zeros(()))
        if self.waits:
            self.waits -= 1
            return counts
        counts |= self._change_labels(row_B[row_B >= self.sizes.classes])
        # Each rank has computed them; on GPUs sums may differ in the last bit, and so might a label.
        copy_from_first_rank([self.hierarchy.label_HR, *counts.values()])
        return counts

    def _change_labels(self, row_B: Tensor) -> dict[str, Tensor]:
        """One iteration of methods.md 3.7: isolate, join a neighbour, then split and merge level by level."""
        config, labels, bank_RD = self.config, self.hierarchy, self.memory_RD
        first = self.sizes.classes if config.neighbours_target_only else 0
        near = neighbourhood(bank_RD, row_B, config.neighbours, first)
        best_B, joins_B = best_neighbours(near, self.sizes.classes, self.joining)
        labels.isolate(row_B)
        labels.join(row_B[joins_B], best_B[joins_B])
        counts = {"joined": joins_B.sum()}
        node_R = mean_R = torch.arange(len(bank_RD), device=row_B.device)
        for level, label_R in enumerate(labels.label_HR):
            if config.split:
                nodes = Nodes(bank_RD, node_R, mean_R)
                counts[f"splits_{level + 1}"] = labels.split(level, nodes, row_B, self._rule(level))
            unmerged_R = label_R.clone()
            if config.merge:
                merged = labels.merge(level, bank_RD, near, best_B, self.merging)
                counts[f"merges_{level + 1}"] = merged
            node_R, mean_R = label_R, label_R if config.fresh_means else unmerged_R
        return counts

    def _rule(self, level: int) -> SplitRule:
        below = level + 1 < self.config.levels
        return replace(self.splitting, legacy_double_exp=below and self.config.legacy_double_exp)


DEMO = Config(
    eps=0.5,
    momentum=0.7,
    min_similarity=0.4,
    sigma=0.2,
    start_iter=0.05,
    rounds=20,
    steps=30,
    instances=8,
    bn_group=32,
    model=SMALL_MODEL,
    images=DEMO_IMAGES,
    optim=SMALL_OPTIM,
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES, min_similarity=0.45, sigma=0.25, bn_group=0)
SMALL = (
    "from random weights one view is a noisy bank row: rows average views (momentum), and clusters weigh more beside "
    "all the outliers (instances)"
)
PERSONS = "larger BatchNorm groups (at most 2 workers), lower min_similarity and sigma, or few rows find a neighbour"
PAPER = "HCD (ICCV 2021)"
SETS = {"m": "Market-1501", "d": "DukeMTMC-reID", "ms": "MSMT17"}
FULL = {"d2m": (80.0, 91.5, 96.3), "m2d": (70.1, 82.2, 89.7)}
ALPHA_M = {
    0.1: {"d2m": (66.9, 84.7, 93.1), "m2d": (56.4, 72.6, 82.2)},
    0.3: {"d2m": (68.0, 83.8, 94.1), "m2d": (58.5, 72.8, 83.8)},
    0.5: {"d2m": (69.2, 84.2, 94.1), "m2d": (63.3, 76.8, 87.2)},
    0.7: {"d2m": (70.7, 84.9, 94.6), "m2d": (64.6, 78.8, 87.9)},
    0.9: {"d2m": (78.9, 91.1, 96.6), "m2d": (69.0, 82.6, 89.9)},
    0.99: FULL,
}
ALPHA_S = {
    0.3: {"d2m": (76.1, 89.6, 95.2), "m2d": (68.8, 81.5, 90.0)},
    0.5: {"d2m": (76.3, 89.8, 95.4), "m2d": (69.0, 82.4, 90.4)},
    0.7: {"d2m": (76.4, 90.2, 95.7), "m2d": (69.2, 82.1, 90.0)},
    0.9: {"d2m": (77.1, 90.0, 96.0), "m2d": (69.2, 82.0, 89.5)},
    0.95: {"d2m": (77.9, 90.7, 96.0), "m2d": (69.5, 82.3, 90.4)},
    0.99: FULL,
}
OURS = "our grid, no figure"
RELEASED: dict[str, Any] = {
    "levels": 2,
    "legacy_anchor_index": True,
    "legacy_floor": True,
    "legacy_double_exp": True,
}


def _preset(row: str, data: str, figures: tuple[float, ...] = (), **changes: Any) -> Preset:
    """A row of a table on ``data``: a set, or the source and the target of an adaptation (d2m)."""
    source, _, target = data.rpartition("2")
    where = f"--source {SETS[source]}, target {SETS[target]}" if source else SETS[target]
    return Preset(
        config=Config(**changes),
        about=f"{PAPER} {row}; {where}",
        published=dict(zip(("mAP", "rank1", "rank5", "rank10"), figures, strict=False)),
    )


PRESETS = {
    "demo": Preset(
        config=DEMO,
        about=f"the synthetic set of `reid synth`, a small network, minutes on a CPU; {SMALL}; {PERSONS}",
    ),
    "omniglot": Preset(
        config=OMNIGLOT,
        about=f"handwritten characters in Market layout, minutes on a CPU; {SMALL}",
    ),
    "market1501": _preset("S-Table 1 (R10: ISE Table 6)", "m", (78.1, 91.1, 96.4, 97.7)),
    "dukemtmc": _preset("S-Table 1", "d", (65.6, 79.8, 88.6)),
    "msmt17": _preset("as quoted in ISE Table 6", "ms", (26.9, 53.7, 65.3, 70.2)),
    **{
        f"uda_{task}": _preset("supplement, tables of alpha_m and alpha_s, row 0.99", task, figures)
        for task, figures in FULL.items()
    },
    **{
        f"uda_{task}": _preset("a task of the abstract, no figure", task)
        for task in ("ms2m", "ms2d", "m2ms", "d2ms")
    },
    **{
        f"{name}_{alpha:g}_{task}": _preset(
            f"supplement, table of {name}: {alpha:g}", task, figures, **{name: alpha}
        )
        for name, table in (("alpha_m", ALPHA_M), ("alpha_s", ALPHA_S))
        for alpha, row in table.items()
        for task, figures in row.items()
    },
    **{f"H_{h}": _preset(f"H = {h}; {OURS}", "d2m", levels=h) for h in (1, 2, 3, 4)},
    **{f"K_{k}": _preset(f"K = {k}; {OURS}", "d2m", anchors=k) for k in (2, 4, 8, 16)},
    **{f"sigma_{s:g}": _preset(f"sigma = {s:g}; {OURS}", "d2m", sigma=s) for s in (0.1, 0.25, 0.4)},
    "no_split": _preset("without splits, no figure", "d2m", split=False),
    "no_merge": _preset("without merges, no figure", "d2m", merge=False),
    "released": _preset(
        "settings and quirks of the release's demo.sh, no figure", "d2m", **RELEASED
    ),
}
