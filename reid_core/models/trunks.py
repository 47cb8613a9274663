"""Networks from an image to a feature map. b images, D channels, H, W the input.

State-dict names are torchvision's (of OSNet torchreid's), so that its files fit.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from reid_core.models.osnet import osnet_x1_0


class Trunk(NamedTuple):
    """How to build a trunk, and what is known of it."""

    build: Callable[[], nn.Sequential]  # random weights from torch's CPU generator
    dim: int  # D
    file: str | None  # public ImageNet weights, by their name in the cache of torch.hub


def resnet(name: str) -> nn.Sequential:
    """A ResNet of torchvision up to its map (b, D, H / 16, W / 16): last stride 1, see methods.md 1.1."""
    import torchvision.models as zoo  # imported in 4 s: only where one of its networks is made

    net = getattr(zoo, name)(weights=None)
    for layer in net.layer4[0].modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    return nn.Sequential(
        OrderedDict((k, v) for k, v in net.named_children() if k not in ("avgpool", "fc"))
    )


def squeezenet() -> nn.Sequential:
    """SqueezeNet 1.1 up to its map (b, 512, about H / 16, about W / 16); it has no BatchNorm."""
    import torchvision.models as zoo

    return nn.Sequential(OrderedDict(features=zoo.squeezenet1_1(weights=None).features))


def tiny() -> nn.Sequential:
    """Four convolutions to (b, 256, H / 8, W / 8), for images of about 64 x 32 pixels on a CPU."""
    return nn.Sequential(
        OrderedDict(
            stage1=_stage(
                3, 32, stride=2
            ),  # most pixels are dropped before there are many channels
            stage2=nn.Sequential(*_stage(32, 64), nn.MaxPool2d(2)),
            stage3=nn.Sequential(*_stage(64, 128), nn.MaxPool2d(2)),
            stage4=_stage(128, 256),
        )
    )


def _stage(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


TRUNKS: dict[str, Trunk] = {
    "resnet18": Trunk(partial(resnet, "resnet18"), 512, "resnet18-f37072fd.pth"),
    "resnet34": Trunk(partial(resnet, "resnet34"), 512, "resnet34-b627a593.pth"),
    "resnet50": Trunk(partial(resnet, "resnet50"), 2048, "resnet50-0676ba61.pth"),
    "resnet101": Trunk(partial(resnet, "resnet101"), 2048, "resnet101-63fe2227.pth"),
    "osnet_x1_0": Trunk(osnet_x1_0, 512, "osnet_x1_0_imagenet.pth"),
    "squeezenet1_1": Trunk(squeezenet, 512, "squeezenet1_1-b8a52dc0.pth"),
    "tiny": Trunk(tiny, 256, None),
}
