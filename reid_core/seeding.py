"""Seeds of single draws: functions of the run's seed and of what is drawn, never of the rank."""

import hashlib

import torch


def derive(seed: int, *parts: int | str) -> int:
    """A 63-bit seed for the draw that ``parts`` name, e.g. ``derive(run, "image", round, step, position, view)``."""
    text = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *parts: int | str) -> torch.Generator:
    """A CPU generator seeded with ``derive(seed, *parts)``."""
    return torch.Generator().manual_seed(derive(seed, *parts))
