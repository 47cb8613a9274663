"""``reid plan``: time, RAM, VRAM and disk of every stage, before anything starts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import tyro

from pipelines.results.report import aligned
from reid_core.errors import UsageError
from reid_core.forecast import (
    DATA_SHEET,
    GPU_MEMORY,
    MEASURED,
    Machine,
    Stage,
    Work,
    forecast,
    misfits,
    whole_run,
)
from reid_core.hardware import has_bfloat16
from reid_core.labelling.engine import shards_for

GB = 1e9


def _memory() -> float:
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB, 1)


def _gpu_memory() -> float:
    if not torch.cuda.is_available():
        return GPU_MEMORY / GB
    return round(torch.cuda.get_device_properties(0).total_memory / GB, 1)


@dataclass(frozen=True, kw_only=True)
class PlanJob:
    """Forecast what every stage needs on nodes of one kind, and name what would not fit; starts nothing."""

    images: int
    """The number of training images."""
    dim: int = 2048
    """The size of a feature."""
    query: int | None = None
    """The number of query images of an evaluation; a quarter of --images when not given."""
    gallery: int | None = None
    """The number of gallery images of an evaluation; as many as --images when not given."""
    cpus: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """The cores of a node; like all that describes a node, this machine's when not given."""
    bf16: bool = field(default_factory=has_bfloat16)
    """Whether the cores have bfloat16 units (AVX512_BF16 or AMX)."""
    memory: float = field(default_factory=_memory)
    """The RAM of a node, GB (1e9 bytes)."""
    gpus: int = field(default_factory=torch.cuda.device_count)
    """The GPUs of a node."""
    gpu_memory: float = field(default_factory=_gpu_memory)
    """The VRAM of a GPU, GB; 80 when not given and this machine has no GPU."""
    nodes: int = 1
    """The number of such nodes in the cluster."""
    shards: int = 0
    """The number of blocks of the label stage; 0 makes one for every 131,072 images."""
    workers: int | None = None
    """The number of train workers; when not given, one a GPU, or one a node without GPUs."""
    rounds: int = 50
    """The number of rounds of the run."""
    steps: int = 200
    """The number of optimiser steps a round."""
    batch_size: int = 256
    """The number of images of the global batch."""
    eval_every: int = 10
    """The number of rounds between evaluations."""
    k1: int = 30
    """The number of neighbours of the k-reciprocal sets."""


def run(job: PlanJob) -> list[Stage]:
    """Print the forecast and return its stages; the last one is the whole run.

    Raises:
        UsageError: a number is too small.
    """
    for name, value in vars(job).items():
        least = int(name not in ("bf16", "gpus", "query", "gallery", "shards"))
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}; must be at least {least}")
    machine = Machine(
        cpus=job.cpus,
        bf16=job.bf16,
        memory=job.memory * GB,
        gpus=job.gpus,
        gpu_memory=job.gpu_memory * GB,
        nodes=job.nodes,
    )
    work = _work(job)
    stages = forecast(work, machine)
    stages.append(whole_run(work, stages))
    _say([_title(work, machine), "", *_table(stages), ""])
    wrong = misfits(work, machine, stages[:-1])
    _say([f"does not fit: {line}" for line in wrong] or ["everything fits"])
    _say(["", MEASURED, *([DATA_SHEET] if machine.gpus else [])])
    return stages


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid plan``; 0 also where something does not fit."""
    run(tyro.cli(PlanJob, args=argv, prog="reid plan"))
    return 0


def _work(job: PlanJob) -> Work:
    return Work(
        images=job.images,
        dim=job.dim,
        query=job.images // 4 if job.query is None else job.query,
        gallery=job.images if job.gallery is None else job.gallery,
        k1=job.k1,
        rounds=job.rounds,
        eval_every=job.eval_every,
        steps=job.steps,
        batch_size=job.batch_size,
        workers=job.workers or job.nodes * max(1, job.gpus),
        shards=shards_for(job.images, job.shards),
    )


def _title(work: Work, machine: Machine) -> str:
    units = "with" if machine.bf16 else "without"
    gpus = f", {machine.gpus} GPUs of {_size(machine.gpu_memory)}" if machine.gpus else ", no GPU"
    nodes = f"{machine.nodes} nodes of " if machine.nodes > 1 else ""
    parts = f"train workers: {work.workers}, blocks: {work.shards}"
    return (
        f"{work.images:,} images x {work.dim}, {work.query:,} queries x {work.gallery:,} gallery images; "
        f"{nodes}{machine.cpus} cores {units} bf16, {_size(machine.memory)} RAM{gpus}; {parts}"
    )


def _table(stages: Sequence[Stage]) -> list[str]:
    """A stage a line; a stage of a round is forecast once, its disk for the whole run."""
    rows = [("stage", "time", "RAM a node", "VRAM a GPU", "disk")]
    rows += [(s.name, _time(s.seconds), *map(_size, (s.ram, s.vram, s.disk))) for s in stages]
    return aligned(rows)


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _size(size: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if size >= length:
            return f"{size / length:,.1f} {unit}"
    return f"{size / 1e6:.0f} MB" if size else "-"


def _say(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)  # noqa: T201
