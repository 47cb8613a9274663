"""Training augmentation of one image, and the pixel values that networks take.

H, W rows and columns. Every random draw of an image comes from the one seed it is given.
"""

import math
import random
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reid_core.data.decode import resize
from reid_core.settings import ImageConfig

Pixels = Literal["imagenet", "caffe"]

# Mean and standard deviation of each channel on the scale 0..255, in the network's order.
CHANNELS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),  # red, green, blue
    "caffe": ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),  # blue, green, red
}
ERASED = (0.485, 0.456, 0.406)  # written after normalisation, as published: not the mean colour
ERASED_AREA = (0.02, 0.4)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # rows / columns
CROP_ATTEMPTS = 10
ERASE_ATTEMPTS = 100  # rectangles drawn until one fits; else the image stays whole


def standardise(image: Tensor, pixels: Pixels) -> Tensor:
    """Turn (..., 3, H, W) uint8 RGB into the float32 values that a network takes.

    Args:
        image: any device.
        pixels: "imagenet" is RGB of zero mean and unit variance over ImageNet; "caffe" is BGR in
            0..255 minus its mean.
    """
    if pixels == "caffe":
        image = image.flip(-3)
    mean, std = torch.tensor(CHANNELS[pixels], device=image.device)[..., None, None]
    return (image - mean) / std


def augment(image: Tensor, config: ImageConfig, seed: int) -> Tensor:
    """One random view of an image, T_std or T_mmcl of methods.md 1.2; the same seed gives the same view.

    Order: random crop, resize, flip, pad and crop, affine map, colour jitter, standardise, erase. The corners
    that an affine map uncovers take the median colour of the image's border, so that a drawing
    stays on its paper.

    Args:
        image: (3, h, w) uint8 RGB of any size.
        config: a step whose setting is 0 is left out.
        seed: of this image and view; the global random state is neither read nor changed.

    Returns:
        (3, config.height, config.width) float32.
    """
    rng = random.Random(seed)
    if config.crop < 1:
        image = _random_crop(image, config.crop, config.width / config.height, rng)
    image = resize(image, config.height, config.width)
    moved = any((config.rotate, config.shift, config.zoom, config.shear))
    border = _border_colour(image) if moved else []
    if rng.random() < config.flip:
        image = image.flip(-1)
    if config.pad:
        image = _shift_crop(image, config.pad, rng)
    if moved:
        image = _affine(image, config, border, rng)
    if config.jitter:
        image = _jitter(image, config.jitter, rng)
    view = standardise(image, config.pixels)
    if rng.random() < config.erase:
        _erase(view, rng)
    return view


def _random_crop(image: Tensor, smallest: float, aspect: float, rng: random.Random) -> Tensor:
    """A part of at least that share of the area, 2/3 to 1 times as wide to high as the output; all where none fits."""
    height, width = image.shape[1:]
    for _ in range(CROP_ATTEMPTS):
        area = rng.uniform(smallest, 1) * height * width
        ratio = aspect * math.exp(rng.uniform(math.log(2 / 3), 0))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
            return image[:, top : top + rows, left : left + columns]
    return image


def _border_colour(image: Tensor) -> list[float]:
    edges = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    return edges.median(dim=1).values.tolist()


def _shift_crop(image: Tensor, pad: int, rng: random.Random) -> Tensor:
    """Pad with zeros on all sides, then crop the old size at a random place."""
    height, width = image.shape[1:]
    top, left = rng.randint(0, 2 * pad), rng.randint(0, 2 * pad)
    return F.pad(image, (pad, pad, pad, pad))[:, top : top + height, left : left + width]


def _affine(image: Tensor, config: ImageConfig, border: list[float], rng: random.Random) -> Tensor:
    from torchvision.transforms.v2 import functional as TF  # imported in 4 s, and few sets need it

    height, width = image.shape[1:]
    fill = torch.tensor(border)[:, None, None]
    moved = TF.affine(
        image - fill,  # the map fills up with zeros; TF's own fill would darken the edges
        angle=rng.uniform(-config.rotate, config.rotate),
        translate=[rng.uniform(-config.shift, config.shift) * side for side in (width, height)],
        scale=rng.uniform(1 - config.zoom, 1 + config.zoom),
        shear=[rng.uniform(-config.shear, config.shear), 0.0],
        interpolation=TF.InterpolationMode.BILINEAR,
    )
    return (moved + fill).round().to(torch.uint8)


def _jitter(image: Tensor, strength: float, rng: random.Random) -> Tensor:
    """Change brightness, contrast and saturation by factors around 1, in random order."""
    from torchvision.transforms.v2 import functional as TF

    changes = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    rng.shuffle(changes)
    for change in changes:
        image = change(image, rng.uniform(1 - strength, 1 + strength))
    return image


def _erase(view: Tensor, rng: random.Random) -> None:
    """Overwrite a random rectangle of ``view`` in place."""
    height, width = view.shape[1:]
    for _ in range(ERASE_ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        aspect = rng.uniform(*ERASED_ASPECT)
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if rows < height and columns < width:
            top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
            view[:, top : top + rows, left : left + columns] = torch.tensor(ERASED)[:, None, None]
            return
