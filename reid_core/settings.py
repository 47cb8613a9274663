"""Settings that every method shares: network, images, optimiser. Frozen; a wrong value fails at once."""

from dataclasses import dataclass
from typing import Literal

from reid_core.errors import UsageError

TrunkName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "squeezenet1_1", "tiny"]
PoolingName = Literal["avg", "gem"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: trunk, pooling, BN neck, unit rows (methods.md 1.1)."""

    trunk: TrunkName = "resnet50"
    """Network up to the feature map; the ResNets with last stride 1."""
    pooling: PoolingName = "avg"
    """Mean over the map, or generalised mean with one learnt power (starts at 3)."""
    weights: str = "imagenet"
    """'random', 'imagenet' (torchvision's file, from its cache; never fetched) or a .pth/.safetensors file."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the network under autocast; losses and memories stay in fp32."""
    channels_last: bool = False
    """Memory layout of images and weights; faster for convolutions on most hardware."""
    compile: bool = False
    """Run the trunk through torch.compile; the first steps then take a minute."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Input size and training augmentation; the defaults are T_std of methods.md 1.2."""

    height: int = 256
    """Rows of the input, pixels."""
    width: int = 128
    """Columns of the input, pixels."""
    pixels: Literal["imagenet", "caffe"] = "imagenet"
    """RGB of unit mean and variance, or BGR in 0..255 minus its mean (the SqueezeNet file)."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad: int = 10
    """Zero border in pixels before the random crop; 0 leaves the crop out."""
    erase: float = 0.5
    """Probability that a random rectangle is erased."""
    rotate: float = 0.0
    """Largest rotation, degrees; it, shift, zoom and shear make one random affine map."""
    shift: float = 0.0
    """Largest shift as a share of the side."""
    zoom: float = 0.0
    """Scale is drawn from 1 - zoom to 1 + zoom."""
    shear: float = 0.0
    """Largest shear, degrees."""
    jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes, 0 to 1."""

    def __post_init__(self) -> None:
        if self.height < 16 or self.width < 16:
            raise UsageError(f"images.height x width = {self.height}x{self.width}; use at least 16x16")
        for name in ("flip", "erase", "shift", "zoom", "jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"images.{name} = {getattr(self, name)}; must lie in [0, 1]")
        if self.pad < 0:
            raise UsageError(f"images.pad = {self.pad}; must be 0 or more pixels")


@dataclass(frozen=True, kw_only=True)
class AdamConfig:
    """Adam with L2 in the gradient and a step schedule (methods.md 1.6)."""

    lr: float = 3.5e-4
    """Learning rate."""
    weight_decay: float = 5e-4
    """Weight of the L2 term in the gradient."""
    step_rounds: int = 20
    """Rounds after which the learning rate is multiplied by ``decay``."""
    decay: float = 0.1
    """Factor on the learning rate every ``step_rounds`` rounds."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.step_rounds < 1:
            raise UsageError(
                f"optim.lr = {self.lr}, step_rounds = {self.step_rounds}; use lr > 0 (3.5e-4 is usual), "
                "step_rounds >= 1"
            )
