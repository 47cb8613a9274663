"""What the benchmarks share: CPU time over all threads, peak memory, one process a case, features."""

import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import psutil

BLOCK_ROWS = 1024
SAMPLE_S = 0.2


@dataclass
class Cost:
    """CPU seconds (user and system, all threads), wall seconds, MB above the peak before."""

    cpu: float = 0.0
    wall: float = 0.0
    memory: float = 0.0


@contextmanager
def cost() -> Iterator[Cost]:
    """Measure a block of code; the value is filled when it ends."""
    spent = Cost()
    cpu, wall, memory = time.process_time(), time.perf_counter(), _peak()
    yield spent
    spent.cpu = time.process_time() - cpu
    spent.wall = time.perf_counter() - wall
    spent.memory = _peak() - memory


@contextmanager
def cost_of_all() -> Iterator[Cost]:
    """Measure this process and all below it, such as those of a local Ray; memory in steps of ``SAMPLE_S``.

    What processes share counts once: the sum of proportional set sizes, MB above that at the start.
    """
    spent, ended = Cost(), threading.Event()
    cpu: dict[int, float] = {}
    before = _of_all(cpu)
    start, already = time.perf_counter(), dict(cpu)

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            spent.memory = max(spent.memory, _of_all(cpu) - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield spent
    finally:
        ended.set()
        watcher.join()
    _of_all(cpu)
    spent.wall = time.perf_counter() - start
    spent.cpu = sum(seconds - already.get(pid, 0.0) for pid, seconds in cpu.items())


def _of_all(cpu: dict[int, float]) -> float:
    """Memory of the processes there are, MB; their CPU seconds are noted in ``cpu`` by process id."""
    memory, own = 0.0, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            memory += process.memory_full_info().pss / 2**20
            times = process.cpu_times()
            cpu[process.pid] = times.user + times.system
    return memory


def _peak() -> float:
    """The largest resident size of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_own_process(case: Callable[..., None], *args: Any) -> None:
    """Run ``case`` in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(case, *args).result()


def people(count: int, dim: int, seed: int, images: int = 17) -> tuple[np.ndarray, ...]:
    """Unit rows (count, dim) float32, ids from 1 and cameras (count,), made without large temporaries.

    Identities lie in 64 dimensions and have ``images`` rows on average, a tenth of which is of nobody;
    six cameras shift their rows.
    """
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((64, dim), dtype=np.float32) / 8
    identity = rng.standard_normal((max(2, count // images), 64), dtype=np.float32) @ basis
    camera = 0.5 * rng.standard_normal((6, dim), dtype=np.float32)
    pid, camid = rng.integers(len(identity), size=count), rng.integers(6, size=count)
    feature = np.empty((count, dim), np.float32)
    for start in range(0, count, BLOCK_ROWS):
        rows = feature[start : start + BLOCK_ROWS]
        part = slice(start, start + len(rows))
        rows[:] = identity[pid[part]] + camera[camid[part]]
        nobody = rng.random(len(rows)) < 0.1
        rows[nobody] += 2 * rng.standard_normal((nobody.sum(), 64), dtype=np.float32) @ basis
        rows += rng.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return feature, pid + 1, camid
