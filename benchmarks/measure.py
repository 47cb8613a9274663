"""What the benchmarks share: CPU time over all threads, peak memory, one process a case, features."""

import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

BLOCK_ROWS = 1024


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
