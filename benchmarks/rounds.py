"""What a round costs beyond its work: a tiny set through Ray against the same rounds in a plain loop.

Run it from the root: ``python -m benchmarks.rounds [--rounds 5 20]``. Goal: at most 2 s a round, no growth
with the number of rounds.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

from pipelines.cli import main as reid
from pipelines.results.saved_run import SavedRun
from reid_core.data.datasets import synthetic

TINY = [
    "--method.steps", "4", "--method.batch-size", "16", "--method.instances", "4",
    "--method.min-samples", "2", "--method.k1", "8", "--method.k2", "3", "--method.bn-group", "8",
    "--eval-every", "1000", "--block", "32",
]  # fmt: skip


def round_seconds(folder: Path, data: str, rounds: int) -> list[float]:
    """Seconds between the ends of consecutive rounds, from the log of a run."""
    command = ["train", "cluster_contrast", "--preset", "demo", "--data", data, *TINY]
    name = f"rounds-{rounds}"
    assert reid([*command, "--storage", str(folder), "--name", name, "--rounds", str(rounds)]) == 0
    ends = [line["time"] for line in SavedRun.open(str(folder / name)).of_kind("round")]
    return [b - a for a, b in itertools.pairwise(ends)]


def work_seconds(folder: Path, rounds: int) -> float:
    """Median seconds of a round that the run itself counts as optimiser steps, k-NN, Jaccard and DBSCAN."""
    lines = SavedRun.open(str(folder / f"rounds-{rounds}")).of_kind("round")
    parts = ("seconds_train", "seconds_knn", "seconds_jaccard", "seconds_dbscan")
    return statistics.median(sum(line[part] for part in parts) for line in lines)


def main() -> None:
    """Print the cost of a round for each number of rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 20])
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic.draw(str(folder / "set"), ids=8, cameras=3, images=4)
        for count in rounds:
            started = time.perf_counter()
            seconds = round_seconds(folder, data, count)
            whole = time.perf_counter() - started
            half = len(seconds) // 2
            first, last = statistics.median(seconds[: half or 1]), statistics.median(seconds[half:])
            print(
                f"{count:4d} rounds: {statistics.median(seconds):.2f} s a round "
                f"({statistics.median(seconds) - work_seconds(folder, count):.2f} s beyond training and labels), "
                f"first half {first:.2f}, second half {last:.2f}; whole run {whole:.0f} s"
            )


if __name__ == "__main__":
    sys.exit(main())
