"""Compiled loops are kept by their content: code that lies elsewhere finds them, other code does not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import reid_core

COUNT = """
import numpy as np
from reid_core.labelling import neighbours
found = [f for f in vars(neighbours).values() if hasattr(f, "stats") and f.__module__ == neighbours.__name__]
feature = np.eye(12, dtype=np.float32)
neighbours.merge_neighbours([(0, neighbours.nearest(feature, 5))], 5)
print(sum(sum(f.stats.cache_hits.values()) for f in found), sum(sum(f.stats.cache_misses.values()) for f in found))
"""


def hits_and_misses(code: Path, cache: Path) -> list[int]:
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(code)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, cwd=code, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return [int(word) for word in done.stdout.split()]


@pytest.mark.slow
def test_a_job_finds_what_another_compiled(tmp_path: Path) -> None:
    source = Path(reid_core.__file__).parent
    places = [tmp_path / name / "reid_core" for name in ("one", "two")]
    for place in places:
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
    hits, compiled = hits_and_misses(places[0].parent, tmp_path / "cache")
    assert (hits, compiled > 0) == (0, True)
    for path in places[1].rglob("*.py"):
        os.utime(path, (1, 1))
    hits, again = hits_and_misses(places[1].parent, tmp_path / "cache")
    assert (hits > 0, again) == (True, 0)
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert not list(places[0].rglob("*.nbi"))
    screens = places[1] / "labelling" / "screens.py"
    screens.write_text(screens.read_text() + "\n")  # loops of one file call those of another
    assert hits_and_misses(places[1].parent, tmp_path / "cache") == [0, compiled]
