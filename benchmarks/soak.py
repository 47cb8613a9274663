"""Many rounds of a tiny run: does the memory of any process or of the object store grow, is a process left behind?

Run it from the root: ``python -m benchmarks.soak [--rounds 50]``. Memory is what a process has for itself: resident
without shared pages, which are mostly the object store's. After the first third of the rounds a kind of process may
grow by what ``GROWTH`` allows a round, and by twice the standard error of the line through its samples.
"""

import argparse
import math
import re
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray.util.state import list_objects
from scipy.stats import linregress

from benchmarks.rounds import TINY
from pipelines.cli import main as reid
from pipelines.nodes.runtime import ray_session
from reid_core.data.datasets import synthetic

GROWTH = {
    "driver": 0.1,
    "train workers": 0.1,
    "our tasks and actors": 0.3,  # several processes
    "object store": 0.1,
    "processes (number)": 0.02,
}  # that is allowed a round; Ray's own processes are shown and not judged
KINDS = {
    "train workers": "ray::RayTrainWorker",
    "Ray's own actors": "ray::(TrainController|SplitCoordinator|_StatsActor|Autoscaling|Preemption|Placement|.*Agent)",
    "our tasks and actors": "ray::",
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
    "dashboard": "dashboard",
    "other Ray processes": "",
}  # by a pattern in their command line, the first that fits
END_S = 30.0  # for Ray's processes to end
Sample = dict[str, float]


def sample(seen: set[psutil.Process]) -> Sample:
    """MB of every kind of process below this one, of this one, and of the object store; numbers of both.

    The processes are added to ``seen``.
    """
    own = psutil.Process()
    found = {"driver": _memory(own)} | dict.fromkeys(KINDS, 0.0)
    children = own.children(recursive=True)
    seen.update(children)
    for process in children:
        with suppress(psutil.NoSuchProcess):
            words = " ".join(process.cmdline())
            found[next(kind for kind, word in KINDS.items() if re.search(word, words))] += _memory(
                process
            )
    address = ray.get_runtime_context().gcs_address  # there may be other Rays on this machine
    objects: list[Any] = list_objects(address, limit=10_000, raise_on_missing_output=False)
    sizes = {entry.object_id: entry.object_size for entry in objects}  # one entry a reference
    return {
        **found,
        "object store": sum(sizes.values()) / 2**20,
        "objects (number)": len(sizes),
        "processes (number)": len(children),
    }


def _memory(process: psutil.Process) -> float:
    info = process.memory_info()
    return (info.rss - info.shared) / 2**20


def watch(
    metrics: Path,
    rounds: int,
    samples: list[Sample],
    seen: set[psutil.Process],
    ended: threading.Event,
) -> None:
    """Take a sample after every round, until all are done or the run has ended."""
    while len(samples) < rounds and not ended.wait(0.2):
        done = metrics.read_text().count('"kind": "round"') if metrics.exists() else 0
        if done > len(samples):
            samples += [sample(seen)] * (done - len(samples))


def growth(values: list[float]) -> tuple[float, float]:
    """Slope of a line through values at equal distances, and its standard error."""
    slope, *_, error = linregress(range(len(values)), values)
    return float(slope), float(np.nan_to_num(error))  # a constant has none


def report(samples: list[Sample]) -> bool:
    """Print a row a kind; whether nothing grows."""
    settled = samples[len(samples) // 3 :]
    print("| | first | after a third | last | a round |\n|---|---|---|---|---|")
    growing = []
    for name in samples[-1]:
        values = [s.get(name, 0.0) for s in settled]
        slope, error = growth(values)
        ends = f"{samples[0].get(name, 0.0):.1f} | {values[0]:.1f} | {values[-1]:.1f}"
        print(f"| {name} | {ends} | {slope:+.3f} ± {error:.3f} |")
        if slope - 2 * error > GROWTH.get(name, math.inf):
            growing.append(name)
    print(f"grows: {', '.join(growing) or 'nothing'}")
    return not growing


def left_behind(seen: set[psutil.Process]) -> list[str]:
    """Command lines of processes that were below this one and outlive the run, wherever they belong now."""
    _, left = psutil.wait_procs(seen, timeout=END_S)
    found = []
    for process in left:
        with suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline())[:100])
    return found


def main() -> int:
    """Print the table; 1 where something grows or is left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    samples: list[Sample] = []
    seen: set[psutil.Process] = set()
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = synthetic.draw(str(folder / "set"), ids=8, cameras=3, images=4)
        metrics = folder / "soak" / "metrics.jsonl"
        watcher = threading.Thread(target=watch, args=(metrics, rounds, samples, seen, ended))
        command = ["train", "cluster_contrast", "--preset", "demo", "--data", data, *TINY]
        command += ["--storage", name, "--name", "soak", "--rounds", str(rounds)]
        command += ["--eval-every", "5"]
        with ray_session(dashboard=True):
            watcher.start()
            try:
                assert reid(command) == 0
            finally:
                ended.set()
                watcher.join()
    assert len(samples) == rounds, f"{len(samples)} samples of {rounds} rounds"
    flat = report(samples)
    left = left_behind(seen)
    print(f"processes left behind: {left or 'none'}")
    return 0 if flat and not left else 1


if __name__ == "__main__":
    sys.exit(main())
