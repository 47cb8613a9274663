"""What a processor can do."""

import torch

CPU = torch.device("cpu")


def has_bfloat16(device: torch.device = CPU) -> bool:
    """Whether products in bfloat16 have units of their own, which make them faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    units = torch.cpu.get_capabilities()
    return bool(units.get("avx512_bf16") or units.get("amx_bf16"))
