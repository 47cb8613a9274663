"""Run a function in several gloo processes of this machine and collect what each rank returns."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """``function(*arguments)`` in ``world`` ranks; results in rank order. One rank runs without a process group."""
    if world == 1:
        return [function(*arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, args=(world, folder, function, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(
    rank: int, world: int, folder: Path, function: Callable[..., Any], arguments: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", timeout=timedelta(seconds=60), rank=rank, world_size=world
    )
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()
