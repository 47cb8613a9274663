"""``reid demo``: draw the synthetic set and run the main job on it, on a local Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pipelines import train
from pipelines.run.job import TrainJob
from reid_core import method as contract
from reid_core.data.datasets import synthetic


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Watch an embedding learn to find the same person without labels, in minutes on a CPU."""

    out: str = "runs"
    """The folder for the data (OUT/demo-data) and the run (OUT/demo)."""
    method: str = "cluster_contrast"
    """The method that is trained, any of them, with its preset `demo`."""
    local: bool = False
    """Run in this process, without Ray: the quick look, with the same result."""
    workers: int = 1
    """The number of train workers; the result does not depend on it."""
    seed: int = 1
    """The seed of every random draw of the run."""


def run(job: DemoJob) -> dict[str, Any]:
    """Draw the data where they are not there yet, train, and return what ``result.json`` holds."""
    data = str(Path(job.out) / "demo-data")
    synthetic.draw(data)
    preset = contract.load(job.method).PRESETS["demo"]
    return train.run(
        job.method,
        TrainJob(
            method=preset.config,
            local=job.local,
            data=data,
            storage=job.out,
            name="demo" if job.method == "cluster_contrast" else f"demo-{job.method}",
            workers=job.workers,
            seed=job.seed,
            eval_every=5,
        ),
    )


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid demo``."""
    run(tyro.cli(DemoJob, args=argv, prog="reid demo"))
    return 0
