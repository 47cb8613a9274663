"""Which processor to use, and what it can do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


def has_bfloat16(device: torch.device = CPU) -> bool:
    """Whether products in bfloat16 have units of their own, which make them faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    units = torch.cpu.get_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))


_hidden = False


def has_gpu() -> bool:
    """Whether torch sees a GPU that is to be used."""
    return torch.cuda.is_available() and not _hidden


def default_device() -> torch.device:
    """A GPU where ``has_gpu``, else the CPU."""
    return torch.device("cuda") if has_gpu() else CPU


@contextmanager
def gpus_hidden() -> Iterator[None]:
    """Use none in this process, as a Ray task that got none."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before
