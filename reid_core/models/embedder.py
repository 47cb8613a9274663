"""The network that turns images into unit rows: built from settings, saved and loaded with them.

b images, H, W the input, D feature size.
"""

import json
from dataclasses import asdict, replace

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core.models.normalisation import convert, move_running_statistics
from reid_core.models.pooling import POOLINGS
from reid_core.models.trunks import TRUNKS
from reid_core.models.weights import load_file, load_weights, read_metadata
from reid_core.seeding import derive
from reid_core.settings import ImageConfig, ModelConfig
from reid_core.storage import write_bytes


class Embedder(nn.Module):
    """Trunk, pooling, BN neck, unit rows.

    The heads of methods.md 1.1: "neck" (its bias stays 0, it is there in evaluation too) is SpCL's, after Luo et
    al.: Bag of Tricks and A Strong Baseline for Deep Person Re-identification (CVPRW 2019); "pooled" is MMCL's, whose
    neck has a bias and serves training only.

    Args:
        trunk: (b, 3, H, W) to (b, dim, h, w).
        pooling: (b, dim, h, w) to (b, dim).
        dim: D.
        head: "neck" or "pooled".
        bf16: run the trunk under autocast; the rest keeps the precision of the parameters.
        channels_last: memory layout of the trunk and its input.
    """

    def __init__(
        self,
        trunk: nn.Module,
        pooling: nn.Module,
        dim: int,
        *,
        head: str = "neck",
        bf16: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.bf16 = dim, bf16
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.trunk = trunk.to(memory_format=self.layout)
        self.pool = pooling
        self.neck = nn.BatchNorm1d(dim)
        self.head = head
        self.neck.bias.requires_grad_(head == "pooled")

    def forward(self, image_b3HW: Tensor) -> Tensor:
        """(b, 3, H, W) standardised floats to (b, D) unit rows, in the precision of the parameters.

        In training this moves the running statistics of all BatchNorm layers, over all ranks.
        """
        dtype = next(self.parameters()).dtype
        x = image_b3HW.to(dtype, memory_format=self.layout)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.trunk(x)
        x_bD = self.pool(x.to(dtype))
        if self.training or self.head == "neck":
            x_bD = self.neck(x_bD)
        if self.training:
            move_running_statistics(self)
        return F.normalize(x_bD)


def build_embedder(
    config: ModelConfig, *, bn_group: int, domains: int = 1, seed: int = 0
) -> Embedder:
    """Build the network of ``config`` on the CPU, in training mode.

    Args:
        config: trunk, pooling, weights, precision.
        bn_group: images of one set of BatchNorm statistics, see ``models.normalisation``.
        domains: 1, or 2 for own BatchNorm layers of source and target.
        seed: of random weights; the global random state is neither read nor changed.

    Raises:
        UsageError: the weights are not there.
        ValueError: the file of weights does not fit.
    """
    trunk = TRUNKS[config.trunk]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, "weights"))
        embedder = Embedder(
            trunk.build(),
            POOLINGS[config.pooling](),
            trunk.dim,
            head=config.head,
            bf16=config.precision == "bf16",
            channels_last=config.channels_last,
        )
    convert(embedder, group=bn_group, domains=domains)
    load_weights(embedder, config.weights, config.trunk)
    if config.precision == "fp64":
        embedder.double()
    if config.compile:
        embedder.trunk.compile()  # in place: names in the state dict stay
    return embedder


def save_embedder(embedder: Embedder, model: ModelConfig, images: ImageConfig, path: str) -> None:
    """Write weights and settings as one .safetensors file (path or URI), atomically.

    Equal arguments give equal bytes: safetensors writes notes in random order, so there is one.
    """
    state = {name: value.contiguous() for name, value in embedder.state_dict().items()}
    settings = json.dumps({"model": asdict(model), "images": asdict(images)})
    write_bytes(path, safetensors.torch.save(state, {"settings": settings}))


def load_embedder(path: str) -> tuple[Embedder, ModelConfig, ImageConfig]:
    """Read what ``save_embedder`` wrote: the network in eval mode, with the target's BatchNorm.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file.
    """
    notes = read_metadata(path)
    try:
        settings = json.loads(notes["settings"])
        model, images = ModelConfig(**settings["model"]), ImageConfig(**settings["images"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: no settings of this version in the file ({error}); give an embedder that a "
            "run has written"
        ) from error
    embedder = build_embedder(replace(model, weights="random"), bn_group=1)
    load_file(embedder, path)
    return embedder.eval(), model, images
