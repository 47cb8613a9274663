"""The job of ``reid train``: its settings, what refuses them before any work, and what of them changes a number."""

import os
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from pipelines.images.inputs import Inputs, default_cache
from pipelines.results.run_folder import settings
from reid_core.data.decode import ImageStore
from reid_core.errors import UsageError
from reid_core.evaluation.ranking import CameraFilter
from reid_core.labelling.engine import KNN, Backend, Engine
from reid_core.labelling.guard import Guard
from reid_core.labelling.tasks import Tasks
from reid_core.settings import group_size

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class TrainJob(Generic[ConfigT]):
    """Learn an embedding from unlabelled images; the same --storage and --name go on where a run stopped."""

    method: ConfigT
    data: str = ""
    """Root of the images: a path, or a URI such as s3://bucket/folder."""
    source: str = ""
    """Root of a labelled source set, for domain adaptation."""
    layout: str = "auto"
    """Layout of the data; `reid scan` tells which are known."""
    storage: str = "runs"
    """Folder or URI that holds runs; every node must reach it."""
    name: str = ""
    """Name of the run; METHOD-PRESET when empty."""
    local: bool = False
    """Train in this process, without Ray: one worker, the same numbers and the same files. For first tries,
    debuggers and notebooks."""
    workers: int = 1
    """Number of train workers; the result does not depend on it."""
    gpu: bool = False
    """Give every worker a GPU."""
    rounds: int | None = None
    """Number of rounds; that of the preset when not given."""
    seed: int = 1
    """Seed of every random draw."""
    eval_every: int = 10
    """Rounds between evaluations; the first and the last are always made."""
    camera_filter: CameraFilter = "same_camera"
    """Gallery images of the query's identity that do not count: those of its camera, of its tracklet, or none."""
    guard: Guard = field(default_factory=Guard)
    knn: KNN = "auto"
    """Neighbour search of the label stage; auto is torch. All of them find the same neighbours."""
    backend: Backend = "auto"
    """What computes the labels: exact on CPUs, or cuML on a GPU; auto takes cuML with --gpu where it is installed."""
    shards: int = 0
    """Blocks of images in the label stage, each pair of which is a Ray task; 0 makes one for every 131,072 images."""
    block: int = 128
    """Images of one extraction batch."""
    cache: str = default_cache()
    """Folder on each node's local disk that keeps encoded images; '' keeps none."""
    loader_workers: int = 0
    """DataLoader processes of a train worker; 4 to 8 are usual on a GPU."""
    log_every: int = 10
    """Steps between two updates of the progress bar."""
    keep: int = 2
    """Number of checkpoints that are kept."""
    max_failures: int = 3
    """Number of crashed workers that the run survives."""
    wait_s: float = 1800.0
    """Longest wait for another worker or a Ray task, in seconds."""
    start_s: float = 0.0
    """Longest wait for nodes that are still starting, in seconds; 0 takes the nodes that are there."""


def check(job: TrainJob[Any]) -> TrainJob[Any]:
    """Refuse settings that cannot work together; returns the job with ``rounds`` put into its method."""
    if job.local:
        check_local(job)
    if job.rounds is not None:
        job = replace(job, method=replace(job.method, rounds=job.rounds), rounds=None)
    batch, group = job.method.batch_size, group_size(job.method)
    if job.workers < 1 or batch % job.workers or (batch // job.workers) % group:
        raise UsageError(
            f"--workers {job.workers} does not divide batch_size = {batch} into whole BatchNorm groups of "
            f"{group}; use a divisor of {batch // group}"
        )
    for name in ("eval_every", "block", "log_every", "keep"):
        if getattr(job, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(job, name)}; must be at least 1")
    check_labels(job)
    return job


def check_labels(job: TrainJob[Any]) -> None:
    """Refuse settings of the label stage that cannot work."""
    if job.shards < 0:
        raise UsageError(f"--shards {job.shards}; counts blocks from 1, and 0 chooses")
    for name, asked in (("faiss", job.knn == "faiss"), ("cuml", job.backend == "cuml")):
        if asked and not find_spec(name):
            raise UsageError(
                f"{name} is not installed: in the checkout, pip install '.[cpu]' or '.[gpu]'"
            )
    if job.backend == "cuml" and not job.gpu:
        raise UsageError("--backend cuml needs --gpu; leave one out or give both")
    if job.guard.policy == "widen-eps" and not hasattr(job.method, "eps"):
        raise UsageError(
            "--guard.policy widen-eps: this method has no eps; use stop, warn or reuse-last"
        )


def check_local(job: TrainJob[Any]) -> None:
    """Refuse what this process alone cannot do."""
    if job.workers > 1:
        raise UsageError(
            f"--local is one worker in this process; leave out --workers {job.workers}"
        )
    if job.shards > 1:
        raise UsageError(
            f"--local labels in one block, in this process; leave out --shards {job.shards}"
        )
    if job.gpu and not torch.cuda.is_available():
        raise UsageError("--local --gpu: torch sees no GPU here; leave --gpu out")
    if address := os.environ.get("RAY_ADDRESS"):
        raise UsageError(
            f"--local uses no Ray, and RAY_ADDRESS={address} asks for one; unset it or leave out --local"
        )


def absolute(root: str) -> str:
    """A path as every process sees it; a URI or an empty string as it is."""
    return str(Path(root).resolve()) if root and "://" not in root else root


def identity(name: str, job: TrainJob[Any], inputs: Inputs) -> dict[str, Any]:
    """All that changes a number of a run of this method, as plain JSON values."""
    return {
        "method_name": name,
        "method": settings(job.method),
        "round_guard": settings(job.guard),
        "seed": job.seed,
        "block": job.block,
        "camera_filter": job.camera_filter,
        "data": inputs.fingerprints,
        "layout": {part: found.layout for part, found in inputs.found.items()},
    }


def config(name: str, job: TrainJob[Any], inputs: Inputs) -> dict[str, Any]:
    """What ``config.json`` holds."""
    return {
        "command": sys.argv,
        "seed": job.seed,
        "job": settings(job),
        "identity": identity(name, job, inputs),
    }


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All that the rounds need beside the images; plain values, which travel to every train worker."""

    method: str  # its name
    job: TrainJob[Any]
    folder: str  # of the run: path or URI
    stores: dict[str, ImageStore]  # by "target", "source", "test"
    threads: int  # of torch on a CPU
    engine: Engine  # of the label stage
    tasks: Tasks  # of the ranking

    @property
    def config(self) -> Any:
        """Settings of the method."""
        return self.job.method
