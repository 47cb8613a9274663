"""Settings that every method shares: network, images, optimiser (methods.md 1.1, 1.2, 1.6); a wrong one fails."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from reid_core.errors import UsageError

logger = logging.getLogger(__name__)

TrunkName = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "osnet_x1_0", "squeezenet1_1", "tiny"
]
PoolingName = Literal["avg", "gem"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: trunk, pooling, BN neck, unit rows."""

    trunk: TrunkName = "resnet50"
    """Network up to the feature map; the ResNets with last stride 1."""
    pooling: PoolingName = "avg"
    """Mean over the map, or generalised mean with one learnt power (starts at 3)."""
    head: Literal["neck", "pooled"] = "neck"
    """Rows after the BN neck, whose bias stays 0; or, to evaluate, rows before a neck with a learnt bias (MMCL)."""
    weights: str = "imagenet"
    """First weights: 'random', 'imagenet' (torchvision's cached file, never fetched) or a .pth/.safetensors file."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 runs the network under autocast, losses and memories stay in fp32; fp64 is for proofs."""
    channels_last: bool = False
    """Memory layout of images and weights; faster for convolutions on most hardware."""
    compile: bool = False
    """Run the trunk through torch.compile; the first steps then take a minute."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Input size and training augmentation; the defaults are the usual ones of re-identification."""

    height: int = 256
    """Height of the input in pixels."""
    width: int = 128
    """Width of the input in pixels."""
    pixels: Literal["imagenet", "caffe"] = "imagenet"
    """Pixels as RGB of unit mean and variance, or as BGR in 0..255 minus its mean (the SqueezeNet file)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop: float = 1.0
    """Smallest share of the area that a random resized crop keeps, in (0, 1]; 1 leaves it out."""
    pad: int = 10
    """Zero border in pixels before the random crop; 0 leaves the crop out."""
    erase: float = 0.5
    """Probability that a random rectangle is erased."""
    rotate: float = 0.0
    """Largest rotation in degrees; rotation, shift, zoom and shear make one random affine map."""
    shift: float = 0.0
    """Largest shift as a share of the side."""
    zoom: float = 0.0
    """Largest change of the scale, which is drawn from 1 - zoom to 1 + zoom."""
    shear: float = 0.0
    """Largest shear in degrees."""
    jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes, in [0, 1]."""
    camstyle_dir: str = ""
    """Folder under the data root with copies in the style of other cameras, STEM_fake_1to2.jpg; '' for none."""
    camstyle: float = 0.3
    """Probability that such a copy stands in for an image."""

    def __post_init__(self) -> None:
        shares = ("flip", "erase", "shift", "zoom", "jitter", "camstyle")
        check_ranges(
            vars(self),
            ("height", self.height >= 16, "at least 16 pixels, 256 is usual"),
            ("width", self.width >= 16, "at least 16 pixels, 128 is usual"),
            *((name, 0 <= vars(self)[name] <= 1, "in [0, 1]") for name in shares),
            ("crop", 0 < self.crop <= 1, "in (0, 1], 0.64 is usual"),
            ("pad", self.pad >= 0, "0 or more pixels, 10 is usual"),
            prefix="images.",
        )


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam with L2 in the gradient and a step schedule."""

    lr: float = 3.5e-4
    """Learning rate."""
    weight_decay: float = 5e-4
    """Weight of the L2 term in the gradient."""
    step_rounds: float = 20
    """Rounds after which the learning rate is multiplied by ``decay``; below 1 a share of all rounds."""
    decay: float = 0.1
    """Factor on the learning rate every ``step_rounds`` rounds."""

    def __post_init__(self) -> None:
        check_ranges(
            vars(self),
            ("lr", self.lr > 0, "positive, 3.5e-4 is usual"),
            (
                "step_rounds",
                self.step_rounds > 0,
                "positive, 20 is usual; below 1 it is a share of the rounds",
            ),
            prefix="optim.",
        )


class Batching(Protocol):
    """The fields of a method's Config that say how a batch is normalised."""

    @property
    def batch_size(self) -> int: ...
    @property
    def bn_group(self) -> int: ...


class Training(Batching, Protocol):
    """The fields of a method's Config that ``check_training`` reads."""

    @property
    def temperature(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def rounds(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def instances(self) -> int: ...


def check_ranges(
    values: Mapping[str, Any], *rules: tuple[str, bool, str], prefix: str = ""
) -> None:
    """Refuse a setting outside its range, naming it, its value, the range and what is usual.

    Args:
        values: the settings by name, of a Config ``vars(self)``.
        rules: for each setting its name, whether the value fits, and what would: "in (0, 1), 0.5 is usual".
        prefix: of the names in messages.

    Raises:
        UsageError: a value does not fit.
    """
    for name, fits, what in rules:
        if not fits:
            raise UsageError(f"{prefix}{name} = {values[name]}; must be {what}")


def check_clustering(eps: float, min_samples: int, k1: int, k2: int) -> None:
    """Refuse label settings that cannot work."""
    check_ranges(
        {"eps": eps, "min_samples": min_samples, "k1": k1, "k2": k2},
        ("eps", 0 < eps < 1, "in (0, 1), 0.4 to 0.7 is usual"),
        ("min_samples", min_samples >= 1, "at least 1, 4 is usual"),
        ("k1", k1 >= 1, "at least 1, 20 or 30 is usual"),
        ("k2", 1 <= k2 <= k1, f"from 1 to k1 = {k1}, 6 is usual"),
    )


def check_training(config: Training) -> None:
    """Refuse training settings that cannot work."""
    check_ranges(
        vars(config),
        ("temperature", config.temperature > 0, "positive, 0.05 is usual"),
        ("momentum", 0 <= config.momentum < 1, "in [0, 1), 0.1 or 0.2 is usual"),
        ("rounds", config.rounds >= 1, "at least 1, 50 to 70 is usual"),
        ("steps", config.steps >= 1, "at least 1, 100 to 400 is usual"),
        ("batch_size", config.batch_size >= 1, "at least 1, 64 or 256 is usual"),
        ("instances", config.instances >= 1, "at least 1, 4 or 16 is usual"),
    )
    check_group(config)
    if group_size(config) < 2 * config.instances:
        logger.warning(
            "bn_group = %d holds fewer than two identities (instances = %d); its statistics then tell "
            "identities apart; use at least %d",
            group_size(config),
            config.instances,
            2 * config.instances,
        )


def check_group(config: Batching) -> None:
    """Refuse a BatchNorm group that does not divide the batch."""
    if config.batch_size % group_size(config):
        raise UsageError(
            f"bn_group = {group_size(config)} does not divide batch_size = {config.batch_size}; "
            "a quarter of the batch is usual"
        )


def counted(number: float, total: int) -> int:
    """A setting that counts rounds or steps; between 0 and 1 it is a share of ``total``, at least 1."""
    return max(1, round(number * total)) if 0 < number < 1 else int(number)


def group_size(config: Batching) -> int:
    """Images that share BatchNorm statistics: ``bn_group``, or a quarter of the batch where it is 0."""
    return config.bn_group or max(1, config.batch_size // 4)
