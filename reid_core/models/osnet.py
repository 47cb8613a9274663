"""OSNet: a small trunk whose blocks look at four sizes of detail at once.

Zhou, Yang, Cavallaro, Xiang: Omni-Scale Feature Learning for Person Re-Identification (ICCV 2019, arXiv 1905.00953);
written from its description and Table 1. b images, C channels, H, W the input. State-dict names are those of the
public weights (torchreid), so that its files fit as they are: of `osnet_x1_0_imagenet.pth`, ``fc`` and ``classifier``
are left out, as of torchvision's files.
"""

from collections import OrderedDict

from torch import Tensor, nn

STREAMS = ("conv2a", "conv2b", "conv2c", "conv2d")
"""Streams of 1, 2, 3 and 4 light convolutions: receptive fields of 3, 5, 7 and 9 pixels."""
BOTTLENECK, GATE = 4, 16
"""How many times narrower a block is than its output, and a gate's hidden layer than the block."""


def osnet_x1_0() -> nn.Sequential:
    """(b, 3, H, W) to (b, 512, H / 16, W / 16); 2.2 million parameters with the layers that are left out."""
    return nn.Sequential(
        OrderedDict(
            conv1=_convolution(3, 64, size=7, stride=2),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1),
            conv2=nn.Sequential(*_blocks(64, 256), _halved(256)),
            conv3=nn.Sequential(*_blocks(256, 384), _halved(384)),
            conv4=nn.Sequential(*_blocks(384, 512)),
            conv5=_convolution(512, 512),
        )
    )


def _blocks(before: int, after: int) -> tuple[nn.Module, nn.Module]:
    return OmniScaleBlock(before, after), OmniScaleBlock(after, after)


def _halved(channels: int) -> nn.Sequential:
    return nn.Sequential(_convolution(channels, channels), nn.AvgPool2d(2))


def _convolution(before: int, after: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    layers = _linear_convolution(before, after, size, stride)
    layers.add_module("relu", nn.ReLU(inplace=True))
    return layers


def _linear_convolution(before: int, after: int, size: int = 1, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after)))


def _light_convolution(channels: int) -> nn.Sequential:
    """Lite 3x3: first across channels, then each channel by itself."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, channels, 1, bias=False),
            conv2=nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            bn=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
        )
    )


class ChannelGate(nn.Module):
    """Weights the channels of a stream by what the whole map holds; one for all streams of a block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // GATE, 1)
        self.fc2 = nn.Conv2d(channels // GATE, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, C, h, w) to the same."""
        hidden = self.fc1(x.mean((2, 3), keepdim=True)).relu()
        return x * self.fc2(hidden).sigmoid()


class OmniScaleBlock(nn.Module):
    """A residual bottleneck whose streams of different depth share one gate."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        width = after // BOTTLENECK
        self.conv1 = _convolution(before, width)
        self.conv2a = _light_convolution(width)
        for depth, name in enumerate(STREAMS[1:], 2):
            self.add_module(name, nn.Sequential(*(_light_convolution(width) for _ in range(depth))))
        self.gate = ChannelGate(width)
        self.conv3 = _linear_convolution(width, after)
        self.downsample = _linear_convolution(before, after) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, before, h, w) to (b, after, h, w)."""
        narrow = self.conv1(x)
        first, *others = (self.gate(self.get_submodule(name)(narrow)) for name in STREAMS)
        return (self.conv3(sum(others, first)) + self.downsample(x)).relu()
