"""ISE, implicit sample extension (Zhang et al., CVPR 2022): every image also as samples moved towards other clusters.

methods.md 6, with its decisions on the paper's open points (7, E1 to E12). C clusters, K support samples an image,
E = 1 + K, B global batch, b this rank's share, D feature size. The memory has one centroid a cluster and is new
every round. The method knows no source set. Departure: the label-preserving loss takes each class's maximum by label
where the release trusts the order of the batch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reid_core.batch import Batch, Round, Sizes, Step
from reid_core.distributed import gather_batch, gather_rows, gather_with_grad, global_mean
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.labels import Features, Labels
from reid_core.losses.contrastive import memory_nce
from reid_core.losses.sample_extension import (
    best_other_classes,
    extension_degree,
    label_preserving,
    support_samples,
)
from reid_core.memory.classes import check_contrast, round_centroids
from reid_core.memory.updates import update_hardest, update_in_order
from reid_core.method import LabelSource, Preset
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL, SMALL_OPTIM
from reid_core.seeding import derive, generator
from reid_core.settings import (
    AdamConfig,
    ImageConfig,
    ModelConfig,
    check_clustering,
    check_ranges,
    check_training,
    group_size,
)

UPDATES = {"all": update_in_order, "hard": update_hardest}

logger = logging.getLogger(__name__)


TAKES_SOURCE = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the published ones for Market-1501."""

    eps: float = 0.4
    """DBSCAN radius on the Jaccard distance, in (0, 1)."""
    min_samples: int = 4
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 30
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""
    labels: Literal["clusters", "ids"] = "clusters"
    """Learn from the clusters of DBSCAN, or from the true identities: the supervised upper bound."""
    supports: int = 1
    """Support samples of an image (K); with 0 the label-preserving loss takes the images themselves."""
    direction: Literal["nearest", "farthest", "random"] = "nearest"
    """Which other clusters the support samples are moved towards."""
    degree: Literal["constant", "linear", "square", "log"] = "log"
    """How the degree of extension grows over the run."""
    lam0: float = 1.0
    """Largest degree of extension; 1 moves by up to a quarter of the gap between two centroids."""
    beta: float = 0.1
    """Weight of the label-preserving loss; 0 leaves it out."""
    temperature: float = 0.05
    """Softmax temperature over the memory."""
    lp_temperature: float = 0.6
    """Softmax temperature of the label-preserving loss."""
    mixup: float = 0.0
    """Mix images by shares drawn from Beta(mixup, mixup), without support samples; 0 mixes none."""
    momentum: float = 0.2
    """Weight of the old memory row, in [0, 1)."""
    update: Literal["all", "hard"] = "hard"
    """Every embedding and support sample of a cluster moves its row, or only the least similar one."""
    rounds: int = 70
    """Rounds of the run, the epochs of the paper."""
    steps: int = 400
    """Optimiser steps of a round."""
    batch_size: int = 256
    """Images of the global batch over all workers."""
    instances: int = 16
    """Images of each cluster in a batch."""
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
            ("supports", self.supports >= 0, "0 or more, 1 is usual, 0 is the baseline"),
            ("lam0", self.lam0 >= 0, "0 or more, 0.1 to 2 is usual"),
            ("beta", self.beta >= 0, "0 or more, 0.01 to 0.1 is usual"),
            ("mixup", self.mixup >= 0, "0 (mixes none) or more, 0.1 to 4 is usual"),
            ("lp_temperature", self.lp_temperature > 0, "positive, 0.6 is usual"),
        )
        if self.mixup and (self.supports or self.beta):
            raise UsageError(
                f"mixup = {self.mixup} with supports = {self.supports} and beta = {self.beta}; Mixup is "
                "for the baseline: set supports and beta to 0"
            )


def assign_labels(config: Config, features: Features, previous: Labels | None) -> Labels:
    """DBSCAN on the k-reciprocal Jaccard distance of the extracted features."""
    return cluster(
        features, eps=config.eps, min_samples=config.min_samples, k1=config.k1, k2=config.k2
    )


def labels_from(config: Config, number: int) -> LabelSource:
    """Freshly extracted features, or the true ids."""
    return "ids" if config.labels == "ids" else "extracted"


class Objective(nn.Module):
    """Cross entropy of images and support samples against the centroids, and the label-preserving loss."""

    memory_CD: Tensor

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("memory_CD", torch.empty(0, sizes.dim), persistent=False)

    def begin_round(self, start: Round) -> None:
        """Build the memory from this round's features: norm(mean of the members).

        Raises:
            ValueError: there are fewer than two clusters.
        """
        count = int(start.target.label[:, 0].max()) + 1
        check_contrast(count)
        if self.config.supports >= count:
            logger.warning(
                "supports = %d, but there are only %d other clusters in round %d: %d an image; 1 is usual",
                self.config.supports, count - 1, start.number, count - 1,
            )  # fmt: skip
        self.memory_CD = round_centroids(start)

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """L = L_SE + beta L_LP (Eq. 8); the baseline is L_SE over the images alone."""
        if self.config.mixup:
            return self._mixup(embedder, batch)
        label_b = batch.label[:, 0]
        x_bD = embedder(batch.image[0])
        draw = partial(self._draw, batch)
        support_bKD = supports(self.config, x_bD, label_b, self.memory_CD, progress, draw)
        sample_bED = torch.cat([x_bD[:, None], support_bKD], dim=1)
        terms = {"extension": global_mean(self._nce(sample_bED, label_b))}
        if self.config.beta:
            candidate_bED = support_bKD if self.config.supports else sample_bED
            loss_b = self._label_preserving(x_bD, label_b, candidate_bED)
            terms["preserving"] = self.config.beta * global_mean(loss_b)
        return Step(terms=terms, embedding=x_bD, extra={"sample_bED": sample_bED, "row_b": label_b})

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> None:
        """Move the rows by all images in the order of the global batch, then by all support samples."""
        row_B, sample_BED = gather_batch(
            batch.position, step.extra["row_b"], step.extra["sample_bED"]
        )
        x_BD, support_BKD = sample_BED[:, 0], sample_BED[:, 1:]
        row = torch.cat([row_B, row_B.repeat_interleave(support_BKD.shape[1])])
        x = torch.cat([x_BD, support_BKD.flatten(0, 1)])
        UPDATES[self.config.update](self.memory_CD, row, x, self.config.momentum)

    def _draw(self, batch: Batch) -> Tensor:
        """Uniform scores of the clusters for the images of this rank, of one draw for the global batch, (b, C)."""
        g = generator(batch.seed, "direction")
        score_BC = torch.rand(self.config.batch_size, len(self.memory_CD), generator=g)
        return score_BC.to(self.memory_CD)[batch.position]

    def _nce(self, sample_bED: Tensor, label_b: Tensor) -> Tensor:
        """Eq. 6: one loss a sample, (b E,)."""
        label = label_b.repeat_interleave(sample_bED.shape[1])
        return memory_nce(sample_bED.flatten(0, 1), label, self.memory_CD, self.config.temperature)

    def _label_preserving(self, x_bD: Tensor, label_b: Tensor, candidate_bED: Tensor) -> Tensor:
        """Eq. 7 against the candidates of all ranks, (b,)."""
        label = gather_rows(label_b).repeat_interleave(candidate_bED.shape[1])
        candidate = gather_with_grad(candidate_bED).flatten(0, 1)
        return label_preserving(x_bD, label_b, candidate, label, self.config.lp_temperature)

    def _mixup(self, embedder: nn.Module, batch: Batch) -> Step:
        """The baseline on mixed images (Fig. 5); the row of the label with the larger share is moved."""
        image, label_b = batch.image[0], batch.label[:, 0]
        share, partner_B = mixup_draw(
            self.config.mixup, self.config.batch_size, group_size(self.config), batch.seed
        )
        # A rank's share is whole groups of consecutive places, so its partners are its own images.
        partner_b = partner_B.to(label_b)[batch.position] - batch.position[0]
        x_bD = embedder(share * image + (1 - share) * image[partner_b])
        sample_bED, other_b = x_bD[:, None], label_b[partner_b]
        loss_b = share * self._nce(sample_bED, label_b) + (1 - share) * self._nce(
            sample_bED, other_b
        )
        row_b = label_b if share >= 0.5 else other_b
        return Step(
            terms={"extension": global_mean(loss_b)},
            embedding=x_bD,
            extra={"sample_bED": sample_bED, "row_b": row_b},
        )


def supports(
    config: Config,
    x_bD: Tensor,
    label_b: Tensor,
    memory_CD: Tensor,
    progress: float,
    draw: Callable[[], Tensor],
) -> Tensor:
    """The support samples of images, (b, K, D) with gradient to ``x_bD``; K = 0 without support samples.

    Args:
        config: which clusters they are moved towards, how many samples there are, and how far they go.
        x_bD: unit rows.
        label_b: int64 in [0, C), their clusters.
        memory_CD: the centroids.
        progress: share of the run that is done, in [0, 1].
        draw: uniform scores (b, C); called for random directions only.
    """
    if config.direction == "random":
        score_bC = draw()
    else:
        similarity_bC = x_bD.detach() @ memory_CD.T
        score_bC = similarity_bC if config.direction == "nearest" else -similarity_bC
    toward_bK = best_other_classes(score_bC, label_b, config.supports)
    degree = extension_degree(config.degree, config.lam0, progress)
    return support_samples(x_bD, label_b, toward_bK, memory_CD, degree)


def mixup_draw(alpha: float, batch_size: int, group: int, seed: int) -> tuple[float, Tensor]:
    """The share of the own image, from Beta(alpha, alpha), and each place's partner, (B,) int64.

    Args:
        alpha: > 0.
        batch_size: B.
        group: images that share BatchNorm statistics; a partner is of the same group.
        seed: of the batch.
    """
    rng = np.random.default_rng(derive(seed, "mixup"))
    share = float(rng.beta(alpha, alpha))
    partner = rng.permuted(np.arange(batch_size).reshape(-1, group), axis=1)
    return share, torch.from_numpy(partner.reshape(-1))


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
SETS = {
    "market1501": Config(),
    "msmt17": Config(
        eps=0.7, momentum=0.1, update="all", rounds=50, optim=AdamConfig(step_rounds=20)
    ),
}


class Row(NamedTuple):
    """A row of the paper's tables: what differs from ``SETS``, and mAP, rank-1, (rank-5, rank-10) in per cent."""

    about: str
    changes: dict[str, Any]
    market1501: tuple[float, ...] = ()
    msmt17: tuple[float, ...] = ()


BASELINE: dict[str, Any] = {"supports": 0, "beta": 0.0}
FULL = ((84.7, 94.0, 97.8, 98.8), (35.0, 64.7, 75.5, 79.4))
CONSTANT = ((83.3, 93.4), (33.8, 64.8))
DEGREE = {
    "constant": CONSTANT,
    "square": ((84.0, 93.1), (32.4, 61.0)),
    "linear": ((84.6, 93.7), (33.8, 63.0)),
    "log": FULL,
}
DIRECTION = {
    "random": ((83.8, 92.7), (28.3, 56.5)),
    "farthest": ((83.8, 93.1), (27.8, 56.2)),
    "nearest": FULL,
}
SUPPORTS = {
    1: FULL,
    3: ((84.2, 93.3), (33.3, 63.1)),
    5: ((84.8, 93.9), (31.9, 61.8)),
    10: ((84.2, 93.6), (30.5, 60.2)),
}
ROWS = {
    "full": Row("Table 1 No. 5 and Table 6", {}, *FULL),
    "baseline": Row(
        "Table 1 No. 1 and Table 6, neither support samples nor label-preserving loss",
        BASELINE,
        (82.5, 92.5, 96.9, 97.9),
        (30.1, 58.6, 69.6, 74.4),
    ),
    "pli": Row(
        "Table 1 No. 2, no label-preserving loss", {"beta": 0.0}, (83.9, 93.9), (33.5, 63.9)
    ),
    "lp_real": Row(
        "Table 1 No. 3, label-preserving loss on the images, no support samples",
        {"supports": 0},
        (83.6, 92.7),
        (31.4, 59.9),
    ),
    "const": Row("Table 1 No. 4, constant degree", {"degree": "constant"}, *CONSTANT),
    "gem": Row(
        "Table 6 +GeM",
        {"model": ModelConfig(pooling="gem")},
        (85.3, 94.3, 98.0, 98.8),
        (37.0, 67.6, 77.5, 81.0),
    ),
    "gt": Row(
        "Table 6 ground truth, ids instead of clusters",
        {"labels": "ids"},
        (87.8, 95.6, 98.5, 99.2),
        (51.0, 76.8, 87.1, 90.6),
    ),
    **{f"type_{t}": Row(f"Table 2 {t}", {"degree": t}, *DEGREE[t]) for t in DEGREE},
    **{f"dir_{d}": Row(f"Table 3 {d}", {"direction": d}, *DIRECTION[d]) for d in DIRECTION},
    "lam0_1": Row("Table 3 nearest, lambda0 = 1", {"lam0": 1.0}, *FULL),
    **{
        f"lam0_{x:g}": Row(
            f"Table 3 nearest, lambda0 = {x:g} (uncertain which row this is: no figure)",
            {"lam0": x},
        )
        for x in (0.1, 0.5, 2.0)
    },
    **{f"K_{k}": Row(f"Table 4 K = {k}", {"supports": k}, *SUPPORTS[k]) for k in SUPPORTS},
    **{
        f"mixup_{a:g}": Row(
            f"Fig. 5, Mixup on the baseline, Beta({a:g}, {a:g}); our grid, no figure",
            BASELINE | {"mixup": a},
        )
        for a in (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
    },
}
DG = "Table 5, direct generalisation: train on {}, then `reid evaluate --checkpoint RUN/last.safetensors --data {}`"
MARKET_TO_MSMT, MSMT_TO_MARKET = (
    DG.format("market1501", "MSMT17"),
    DG.format("msmt17", "MARKET1501"),
)


def _preset(row: Row, data: Literal["market1501", "msmt17"]) -> Preset:
    names = ("mAP", "rank1", "rank5", "rank10")
    return Preset(
        config=replace(SETS[data], **row.changes),
        about=f"ISE (CVPR 2022) {row.about}; {data}",
        published=dict(zip(names, getattr(row, data), strict=False)),
    )


PRESETS = {
    "demo": Preset(
        config=DEMO, about=f"the synthetic set of `reid synth`, a small network, {SMALL}"
    ),
    "omniglot": Preset(config=OMNIGLOT, about=f"handwritten characters in Market layout, {SMALL}"),
    **{
        data if name == "full" else f"{name}_{data}": _preset(row, data)
        for name, row in ROWS.items()
        for data in ("market1501", "msmt17")
    },
    "baseline_hard_msmt17": _preset(
        Row(
            "footnote 2, baseline with hard update",
            BASELINE | {"update": "hard"},
            msmt17=(19.5, 41.2),
        ),
        "msmt17",
    ),
    "msmt17_released": _preset(
        Row(
            "settings of the published script; figure of its README", {"beta": 0.01}, msmt17=(34.8,)
        ),
        "msmt17",
    ),
    "dg_ms2m": _preset(Row(MSMT_TO_MARKET, {}, msmt17=(30.2, 59.7)), "msmt17"),
    "dg_ms2m_baseline": _preset(Row(MSMT_TO_MARKET, BASELINE, msmt17=(25.5, 53.8)), "msmt17"),
    "dg_m2ms": _preset(Row(MARKET_TO_MSMT, {}, market1501=(2.7, 8.6)), "market1501"),
    "dg_m2ms_baseline": _preset(Row(MARKET_TO_MSMT, BASELINE, market1501=(1.5, 5.9)), "market1501"),
}
