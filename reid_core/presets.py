"""Networks and images that the presets of several methods share."""

from reid_core.settings import AdamConfig, ImageConfig, ModelConfig

SMALL_MODEL = ModelConfig(trunk="tiny", pooling="gem", weights="random", channels_last=True)
"""Learns from random weights in minutes on two cores."""

DEMO_IMAGES = ImageConfig(height=64, width=32, pad=2, erase=0.25)
"""The synthetic persons of ``reid synth``; gentle views, since from random weights one view is a noisy memory row."""

OMNIGLOT_IMAGES = ImageConfig(
    height=48, width=48, pad=0, flip=0, erase=0, rotate=15, shift=0.1, zoom=0.15, shear=10
)
"""Drawings: a mirrored character is another one; hands differ by small affine maps."""

SMALL_OPTIM = AdamConfig(step_rounds=0.75)
