"""SNNet, mining label homogeneity, on top of MMCL: every image is a class, and its label is a set of images.

Multi-label classification of Wang and Zhang (CVPR 2020); SNNet adds the labels that others give an image and those of
its nearest neighbour. methods.md 5, with its decisions on the paper's open points (7, D1 to D10). N images, B global
batch, b this rank's share, D feature size, P pairs of images. There is no label stage and no source set. Departures:
the weight of the old memory row and the start of multi-labels are shares of the run, which at 60 rounds are the
release's numbers; only the ones of the label memory are stored; a rotation fills the corners with the median colour
of the image's border.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.batch import Batch, Domain, Round, Sizes, Step
from reid_core.distributed import gather_batch, gather_rows, global_mean
from reid_core.labelling.online.positives import predict_positives
from reid_core.losses.multilabel import mmcl, plain_pm1
from reid_core.memory.pseudo_labels import PseudoLabelMemory
from reid_core.memory.updates import update_in_order
from reid_core.method import LabelSource, Preset
from reid_core.presets import DEMO_IMAGES, OMNIGLOT_IMAGES, SMALL_MODEL
from reid_core.settings import ImageConfig, ModelConfig, check_group, check_ranges

IMAGES = ImageConfig(
    crop=0.64, pad=0, rotate=10, jitter=0.2, camstyle_dir="bounding_box_train_camstyle"
)
"""T_mmcl of methods.md 1.2, with CamStyle's images where they lie beside the others."""

logger = logging.getLogger(__name__)


TAKES_SOURCE = False


@dataclass(frozen=True, kw_only=True)
class SgdConfig:
    """SGD with Nesterov momentum, a slower trunk and a step schedule."""

    lr: float = 0.1
    """Learning rate of new layers."""
    trunk: float = 0.1
    """Factor on the learning rate of the trunk, which is pretrained."""
    momentum: float = 0.9
    """Weight of earlier gradients, in (0, 1)."""
    weight_decay: float = 5e-4
    """Weight of the L2 term in the gradient."""
    step_rounds: float = 30
    """Rounds after which the learning rate is multiplied by ``decay``; below 1 a share of all rounds."""
    decay: float = 0.1
    """Factor on the learning rate every ``step_rounds`` rounds."""

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("lr", self.lr > 0, "positive, 0.1 is usual"),
            ("trunk", self.trunk >= 0, "0 or more, 0.1 is usual"),
            ("momentum", 0 < self.momentum < 1, "in (0, 1), 0.9 is usual"),
            (
                "step_rounds",
                self.step_rounds > 0,
                "positive, 30 is usual; below 1 it is a share of the rounds",
            ),
            prefix="optim.",
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Defaults are the published ones for Market-1501 with ResNet-50."""

    base_weight: float = 1.0
    """Weight of the loss for the labels that an image gives itself."""
    symmetric_weight: float = 0.8
    """Weight of the loss for the images that give an image their label; 0 leaves it out."""
    neighbour_weight: float = 0.6
    """Weight of the loss for the labels of the nearest neighbour; 0 leaves it out."""
    threshold: float = 0.6
    """Similarity that a positive exceeds, in (0, 1)."""
    min_window: int = 10
    """Least length of a positive's own list, in which the image must be found."""
    max_positives: int = 0
    """Most positives of an image; 0 sets no limit. A limit saves time and memory where features are weak."""
    multi_label_from: float = 0.1
    """Share of the run in which every image is its own class only."""
    force_self: bool = True
    """An image is a positive of its own by the neighbour's label too; the paper has no such rule."""
    aux_from_start: bool = False
    """Use symmetric and neighbour labels in the first rounds too, as Algorithm 1 is printed."""
    loss: Literal["mmcl", "plain_pm1"] = "mmcl"
    """MMCL's loss on hard negatives, or squared distance to 1 and -1 over all images."""
    positive_weight: float = 5.0
    """Weight of the positives against the negatives in MMCL's loss."""
    hard_share: float = 0.01
    """Share of the negatives that counts, in (0, 1]; these should be many more than an identity has images."""
    momentum: float = 0.5
    """Weight of the old memory row at the end of the run, in [0, 1); it grows from 0."""
    rounds: int = 60
    """Rounds of the run, the epochs of the paper."""
    steps: int = 0
    """Optimiser steps of a round; 0 takes as many as show every image once."""
    batch_size: int = 128
    """Images of the global batch over all workers."""
    bn_group: int = 0
    """Consecutive images that share BatchNorm statistics, whatever the number of workers; 0: batch_size / 4."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(head="pooled"))
    images: ImageConfig = field(default_factory=lambda: IMAGES)
    optim: SgdConfig = field(default_factory=SgdConfig)

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("base_weight", self.base_weight > 0, "positive, 1 is usual"),
            ("symmetric_weight", self.symmetric_weight >= 0, "0 or more, 0.8 is usual"),
            ("neighbour_weight", self.neighbour_weight >= 0, "0 or more, 0.2 to 1 is usual"),
            ("threshold", 0 < self.threshold < 1, "in (0, 1), 0.6 is usual"),
            ("min_window", self.min_window >= 1, "at least 1, 10 is usual"),
            ("max_positives", self.max_positives >= 0, "0 (no limit) or more, 100 is safe"),
            ("multi_label_from", 0 <= self.multi_label_from <= 1, "in [0, 1], 0.1 is usual"),
            ("positive_weight", self.positive_weight > 0, "positive, 5 is usual"),
            ("hard_share", 0 < self.hard_share <= 1, "in (0, 1], 0.01 is usual"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1), 0.5 is usual"),
            ("rounds", self.rounds >= 1, "at least 1, 60 is usual"),
            ("steps", self.steps >= 0, "0 (every image once) or more"),
            ("batch_size", self.batch_size >= 1, "at least 1, 64 or 128 is usual"),
        )
        check_group(self)


def labels_from(config: Config, number: int) -> LabelSource:
    """Every image is its own class; which of them belong together is learnt while training."""
    return "none"


def num_steps(config: Config, start: Round) -> int:
    """One visit an image, unless ``steps`` is given."""
    return config.steps or _pass(len(start.target.image_id), config.batch_size)


def batches(config: Config, domain: Domain, seed: int) -> Iterator[np.ndarray]:
    """Shuffled: every image once a pass, whose last batch is filled up from the start of its permutation."""
    count, rng = len(domain.image_id), np.random.default_rng(seed)
    while True:
        shape = _pass(count, config.batch_size), config.batch_size
        yield from np.resize(rng.permutation(count), shape)  # repeats itself where it is too short


def _pass(count: int, batch_size: int) -> int:
    return -(-count // batch_size)


def optimizer(config: Config, embedder: nn.Module, objective: nn.Module) -> torch.optim.Optimizer:
    """SGD whose learning rate is lower for the trunk."""
    optim, trunk = config.optim, list(embedder.get_submodule("trunk").parameters())
    everything = [*embedder.parameters(), *objective.parameters()]
    new = [p for p in everything if not any(p is of_trunk for of_trunk in trunk)]
    groups = [{"params": new}, {"params": trunk, "lr": optim.lr * optim.trunk}]
    return torch.optim.SGD(
        groups, optim.lr, optim.momentum, weight_decay=optim.weight_decay, nesterov=True
    )


class Objective(nn.Module):
    """Multi-label classification of images against the memory rows of all images, by three sets of labels."""

    memory_ND: Tensor  # the unit embedding of each image when it was last seen; zeros before

    def __init__(self, config: Config, embedder: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.momentum, self.warned = 0.0, False
        self.register_buffer("memory_ND", torch.zeros(sizes.images, sizes.dim))
        self.claims = PseudoLabelMemory(sizes.images)

    def features(self) -> Tensor | None:
        """The memory rows, for the label-free score; None until every image was seen."""
        return self.memory_ND if bool(self.memory_ND.any(dim=1).all()) else None

    def labels(self) -> Tensor:
        """For reports, (N, 1): images that claim each other, directly or through others, are a cluster."""
        return self.claims.components()[:, None]

    def begin_round(self, start: Round) -> None:
        """Let the weight of the old memory row grow with the share of the run that is done."""
        self.momentum = self.config.momentum * start.number / start.rounds
        self.warned = False

    def forward(self, embedder: nn.Module, batch: Batch, progress: float) -> Step:
        """L = (sum of weight times loss) / (sum of weights), over the labels in use (Eq. 8)."""
        x_bD = embedder(batch.image[0])
        similarity_bN = x_bD @ self.memory_ND.T
        mines = progress >= self.config.multi_label_from
        positive_bN = self._labels(batch.row, mines)
        weight = {name: getattr(self.config, f"{name}_weight") for name in positive_bN}
        terms = {
            name: weight[name] / sum(weight.values()) * self._loss(similarity_bN, labels)
            for name, labels in positive_bN.items()
        }
        if not mines:
            return Step(terms=terms, embedding=x_bD)
        place_P, image_P = positive_bN["base"].nonzero().unbind(1)
        claim_P2 = torch.stack([batch.row[place_P], image_P], dim=1)
        return Step(terms=terms, embedding=x_bD, extra={"claim_P2": claim_P2})

    def _loss(self, similarity_bN: Tensor, positive_bN: Tensor) -> Tensor:
        if self.config.loss == "plain_pm1":
            return global_mean(plain_pm1(similarity_bN, positive_bN))
        loss_b = mmcl(
            similarity_bN,
            positive_bN,
            positive_weight=self.config.positive_weight,
            hard_share=self.config.hard_share,
        )
        return global_mean(loss_b)

    def _labels(self, row_b: Tensor, mines: bool) -> dict[str, Tensor]:
        """The positives of each image by name, (b, N) bool; all read before any of this batch is written."""
        config = self.config
        own_bN = torch.arange(len(self.memory_ND), device=row_b.device) == row_b[:, None]
        if not (mines or config.aux_from_start):
            return {"base": own_bN}
        similarity_bN = self.memory_ND[row_b] @ self.memory_ND.T
        labels = {"base": self._positives(similarity_bN, row_b) if mines else own_bN}
        if config.symmetric_weight:
            labels["symmetric"] = self.claims.columns(row_b)
        if config.neighbour_weight:
            nearest_b = similarity_bN.masked_fill(own_bN, -torch.inf).argmax(dim=1)
            neighbour_bN = self.claims.rows(nearest_b)
            labels["neighbour"] = neighbour_bN | own_bN if config.force_self else neighbour_bN
        return labels

    def _positives(self, similarity_bN: Tensor, row_b: Tensor) -> Tensor:
        return predict_positives(
            similarity_bN,
            row_b,
            self.memory_ND,
            threshold=self.config.threshold,
            min_window=self.config.min_window,
            max_positives=self.config.max_positives,
        )

    def update(self, embedder: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor] | None:
        """Move each image's own row and replace its claims; gives the positives an image, on average."""
        row_B, x_BD = gather_batch(batch.position, batch.row, step.embedding)
        update_in_order(self.memory_ND, row_B, x_BD, self.momentum)
        if "claim_P2" not in step.extra:
            return None
        claim_P2 = gather_unequal(step.extra["claim_P2"])
        self.claims.write(row_B, claim_P2)
        positives = len(claim_P2) / len(row_B)
        if positives > len(self.memory_ND) / 10 and not self.warned:
            self.warned = True
            logger.warning(
                "%.0f positives an image, more than a tenth of all: features are weak or --method.threshold = %g is "
                "low; --method.max-positives 100 saves time and memory", positives, self.config.threshold,
            )  # fmt: skip
        return {"positives": x_BD.new_tensor(positives)}


def gather_unequal(x_P2: Tensor) -> Tensor:
    """All ranks' rows in rank order, where each rank may hold another number of them, at least one."""
    count_W = gather_rows(torch.tensor([len(x_P2)], device=x_P2.device)).tolist()
    padded = F.pad(x_P2, (0, 0, 0, max(count_W) - len(x_P2)))
    parts = gather_rows(padded).split(max(count_W))
    return torch.cat([part[:count] for part, count in zip(parts, count_W, strict=True)])


DEMO = Config(
    hard_share=0.1,
    rounds=20,
    steps=30,
    batch_size=64,
    model=replace(SMALL_MODEL, head="pooled"),
    images=replace(DEMO_IMAGES, erase=0.0),
    optim=SgdConfig(lr=0.01, trunk=1.0, step_rounds=0.75),
)
OMNIGLOT = replace(DEMO, images=OMNIGLOT_IMAGES)
SMALL_SET = (
    "minutes on a CPU; hard_share 0.1, as 0.01 of so few images would be of the own identity; lr 0.01 everywhere, as "
    "weights are random"
)


class Row(NamedTuple):
    """A row of the paper's tables: what differs from ``Config``, and mAP, rank-1, (rank-5, rank-10) in per cent."""

    about: str
    changes: dict[str, Any]
    market1501: tuple[float, ...] = ()
    dukemtmc: tuple[float, ...] = ()


OSNET: dict[str, Any] = {"model": ModelConfig(trunk="osnet_x1_0", head="pooled"), "batch_size": 64}
MMCL: dict[str, Any] = {"symmetric_weight": 0.0, "neighbour_weight": 0.0}
BASELINE = ((45.0, 80.3, 89.9, 93.0), (41.9, 66.3, 77.7, 81.1))
NO_OTHERS = (BASELINE[0], (41.9, 66.3, 77.0, 81.5))  # another rank-5 and 10 of Duke
S = ((49.0, 83.8, 91.3, 93.8), (44.1, 67.5, 78.5, 81.8))
SYMMETRIC = {
    0.0: NO_OTHERS,
    0.2: ((47.6, 81.9, 90.9, 93.4), (42.6, 66.9, 77.8, 82.1)),
    0.4: ((49.6, 82.2, 91.1, 93.3), (43.3, 67.1, 77.5, 80.9)),
    0.6: ((49.3, 82.9, 90.6, 93.2), (43.5, 67.5, 78.2, 82.2)),
    0.8: S,
    1.0: ((50.2, 83.5, 91.2, 93.2), (42.8, 66.1, 77.5, 81.8)),
}
NEIGHBOUR = {
    0.0: NO_OTHERS,
    0.2: ((55.7, 84.8, 91.7, 94.1), (46.1, 69.2, 79.8, 83.0)),
    0.4: ((55.2, 82.8, 90.6, 92.8), (45.7, 68.6, 78.5, 82.2)),
    0.6: ((51.7, 80.1, 88.7, 91.9), (46.2, 69.1, 79.7, 81.8)),
    0.8: ((51.4, 80.3, 89.3, 91.6), (46.0, 68.8, 79.5, 82.5)),
    1.0: ((50.5, 78.5, 88.2, 91.1), (46.7, 69.1, 79.8, 83.3)),
}
ROWS = {
    "r50": Row("Table I SNNet, ResNet-50", {}, (48.3, 80.2), (41.5, 66.1)),
    "osnet": Row(
        "Table I SNNet and Table II +S+N, OSNet",
        OSNET,
        (58.3, 85.1, 92.6, 94.3),
        (46.7, 69.2, 79.6, 83.2),
    ),
    "mmcl_r50": Row("Table I MMCL, ResNet-50", MMCL, (44.1, 79.1), (39.0, 63.6)),
    "mmcl_osnet": Row("Table I MMCL and Table II baseline, OSNet", MMCL | OSNET, *BASELINE),
    "s": Row("Table II +S, OSNet", OSNET | {"neighbour_weight": 0.0}, *S),
    **{
        f"sym_{w:g}": Row(
            f"Table III, symmetric labels alone, weight {w:g}, OSNet",
            OSNET | MMCL | {"symmetric_weight": w},
            *SYMMETRIC[w],
        )
        for w in SYMMETRIC
    },
    **{
        f"nh_{w:g}": Row(
            f"Table IV, neighbour's labels alone, weight {w:g}, OSNet",
            OSNET | MMCL | {"neighbour_weight": w},
            *NEIGHBOUR[w],
        )
        for w in NEIGHBOUR
    },
}
WITHOUT_CAMSTYLE = {
    "r50": {},
    "osnet": {},
    "mmcl_r50": {"market1501": (35.3, 66.6), "dukemtmc": (36.3, 58.0)},
    "mmcl_osnet": {},
}
ROWS |= {
    f"{name}_nocamstyle": Row(
        f"{ROWS[name].about}, without CamStyle's images",
        ROWS[name].changes | {"images": replace(IMAGES, camstyle_dir="")},
        **figures,
    )
    for name, figures in WITHOUT_CAMSTYLE.items()
}


def _preset(row: Row, data: Literal["market1501", "dukemtmc"]) -> Preset:
    names = ("mAP", "rank1", "rank5", "rank10")
    return Preset(
        config=replace(Config(), **row.changes),
        about=f"SNNet {row.about}; {data}",
        published=dict(zip(names, getattr(row, data), strict=False)),
    )


PRESETS = {
    "demo": Preset(
        config=DEMO,
        about=f"the synthetic set of `reid synth`, a small network, {SMALL_SET}; erase 0, as labels come from "
        "one view an image",
    ),
    "omniglot": Preset(
        config=OMNIGLOT, about=f"handwritten characters in Market layout, {SMALL_SET}"
    ),
    **{
        data if name == "r50" else f"{name}_{data}": _preset(row, data)
        for name, row in ROWS.items()
        for data in ("market1501", "dukemtmc")
    },
    "msmt17": Preset(config=Config(), about="the settings for Market-1501, MSMT17; no figure"),
}
