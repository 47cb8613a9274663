"""Run a compiled loop over ranges of rows in plain threads.

They make no pool of their own to spin between calls or to break in a forked process.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

Part = TypeVar("Part")


def use_threads(count: int) -> None:
    """Let torch, NumPy's products and ``over_rows`` use so many threads in this process."""
    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")


def over_rows(
    kernel: Callable[..., Part], count: int, *args: object, pieces: int = 1
) -> list[Part]:
    """Call ``kernel(start, stop, *args)`` on consecutive ranges that cover ``range(count)``.

    Args:
        kernel: releases the GIL (``reid_core.kernel``); ranges write to different places.
        count: number of rows.
        args: handed on as they are.
        pieces: ranges a thread; more of them even out rows of unequal cost.

    Returns:
        What each range returned, in row order. There are as many threads as torch uses.
    """
    threads = torch.get_num_threads()
    edges = np.linspace(0, count, min(count, pieces * threads) + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda lo, hi: kernel(lo, hi, *args), edges[:-1], edges[1:]))
