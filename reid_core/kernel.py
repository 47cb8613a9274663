"""Compiled loops, and where numba keeps them: with the user, by the content of the code.

A job's code lies in another folder every time, so what numba keeps beside the source would never be found again on a
node; named by content, it is found by every job, checkout and environment of the user that has the same loops.
"""

import hashlib
import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import UserWideCacheLocator

ROOT = Path(__file__).parent


class KernelCache(UserWideCacheLocator):
    """Numba's locator of what it compiled of ``reid_core``."""

    def __init__(self, py_func: Callable[..., Any], py_file: str) -> None:
        super().__init__(py_func, py_file)
        self._cache_path = str(folder())

    def get_source_stamp(self) -> bytes:
        """The content alone: older numbas take the time of the file, which every job has of its own."""
        return folder().name.encode()

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "KernelCache | None":
        """None for the loops of others, and where the folder cannot be written."""
        if ROOT not in Path(py_file).parents:
            return None
        return super().from_function(py_func, py_file)


@cache
def folder() -> Path:
    """``~/.cache/reid-ray/DIGEST`` (or below ``XDG_CACHE_HOME``); the digest is of all files with compiled loops."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(ROOT.rglob("*.py")):
        content = path.read_bytes()
        if b"@kernel" in content:  # a loop may call one of another file
            digest.update(content)
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "reid-ray" / digest.hexdigest()


config.CACHE_LOCATOR_CLASSES = ",".join(  # type: ignore[attr-defined]
    [
        "UserProvidedCacheLocator",  # NUMBA_CACHE_DIR goes first
        f"{__name__}.{KernelCache.__name__}",
        "InTreeCacheLocator",
        "UserWideCacheLocator",
        "IPythonCacheLocator",
        "ZipCacheLocator",
    ]
)
kernel = partial(njit, nogil=True, cache=True)
"""Decorator, ``@kernel()``: compiled at the first call with new types, runs without the GIL, is kept."""
