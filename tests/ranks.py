"""Run a function in several gloo processes of this machine and collect what each rank returns."""

import faulthandler
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WAIT = timedelta(seconds=60)


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """``function(*arguments)`` in ``world`` ranks; results in rank order. One rank runs without a process group."""
    if world == 1:
        return [function(*arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=WAIT)
    mp.spawn(_rank, args=(meeting.port, world, folder, function, arguments), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(
    rank: int, port: int, world: int, folder: Path, function: Callable[..., Any], arguments: Any
) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=WAIT)
    dist.init_process_group("gloo", store=store, timeout=WAIT, rank=rank, world_size=world)
    torch.save(function(*arguments), folder / f"{rank}.pt")
    dist.barrier()  # no rank hangs up on one that still listens
    dist.destroy_process_group()
    os._exit(0)  # the interpreter's end would race with threads of libtorch
