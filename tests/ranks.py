"""Run a function in several gloo processes of this machine and collect what each rank returns."""

import atexit
import faulthandler
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WAIT = timedelta(seconds=120)


def run_ranks(function: Callable[..., Any], world: int, folder: Path, *arguments: Any) -> list[Any]:
    """``function(*arguments)`` in ``world`` ranks; results in rank order. One rank runs without a process group."""
    if world == 1:
        return [function(*arguments)]
    folder.mkdir(parents=True, exist_ok=True)
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=WAIT)
    ranks = [_process(rank) for rank in range(world)]
    try:
        for rank, process in enumerate(ranks):
            process.send((rank, world, meeting.port, folder, function, arguments))
        for process in ranks:
            process.recv()  # EOFError: the rank failed, its stack is in the captured stderr
    except BaseException:
        _process.cache_clear()  # nobody knows their state
        raise
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@cache
def _process(rank: int) -> Connection:
    """The line to a process that loads torch once and serves all tests of this session."""
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=_serve, args=[there], daemon=True)
    process.start()
    there.close()  # so that a process that has died is noticed
    atexit.register(process.kill)
    return here


def _serve(calls: Connection) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    while True:
        rank, world, port, folder, function, arguments = calls.recv()
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=WAIT)
        dist.init_process_group("gloo", store=store, timeout=WAIT, rank=rank, world_size=world)
        torch.save(function(*arguments), folder / f"{rank}.pt")
        dist.barrier()  # no rank hangs up on one that still listens
        dist.destroy_process_group()
        calls.send("done")
