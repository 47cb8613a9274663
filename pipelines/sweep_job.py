"""The settings of a training sweep, and what refuses them before any work."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated, Any, Generic, Literal, TypeVar

import ray
import tyro
from ray import tune

from pipelines.runtime import HEADROOM_CPUS, Share, share_out
from pipelines.sweep_spaces import Space, choices, is_grid, points
from pipelines.train import TrainJob
from reid_core import method as contract
from reid_core.errors import UsageError

ConfigT = TypeVar("ConfigT")
TRIAL_CPUS = (
    0.1  # of the process that drives a trial; Tune's own 1 would hide a CPU from its workers
)


@dataclass(frozen=True, kw_only=True)
class TrainingSweep(Generic[ConfigT]):
    """Train for every point of a space; the same --storage and --name go on where a sweep stopped."""

    run: Annotated[TrainJob[ConfigT], tyro.conf.arg(name="")]
    search: Literal["random", "grid", "optuna"] = "random"
    """random draws every value that is no grid; grid walks through all values; optuna proposes by --metric."""
    trials: int = 16
    """Points to draw; of a space of grids all are taken."""
    scheduler: Literal["none", "asha"] = "none"
    """asha stops trials that are behind the others after the same number of rounds."""
    grace: int = 0
    """Rounds before asha may stop a trial; 0: a quarter of them."""
    metric: Literal["label_free", "mAP", "rank1"] = "label_free"
    """What is best; mAP and rank1 are of the test set, so what they choose is no fair figure."""
    seeds: tuple[int, ...] = ()
    """Train every point with each of these and print mean and standard deviation; --seed when none is given."""
    concurrent: int = 0
    """Trials at a time; 0: as many as fit. On CPUs a run takes all there are, so few do."""


def checked(method: str, space: Space, sweep: TrainingSweep[Any]) -> Space:
    """The space as Tune walks through it; refuses what cannot work before any work."""
    if sweep.trials < 1 or sweep.grace < 0 or sweep.concurrent < 0:
        raise UsageError("--trials counts from 1, --grace and --concurrent from 0, which chooses")
    if len(set(sweep.seeds)) < len(sweep.seeds):
        raise UsageError(f"--seeds {' '.join(map(str, sweep.seeds))}: one occurs twice")
    if sweep.metric == "label_free" and not _is_scored(method, sweep):
        raise UsageError(
            f"{method} makes no labels and so has no label-free score; use --metric mAP"
        )
    if sweep.search == "optuna":
        _check_optuna(space, sweep)
    if sweep.search == "grid":
        space = {key: tune.grid_search(choices(key, domain)) for key, domain in space.items()}
    for point in points(space) or []:
        replace(sweep.run.method, **dict(zip(space, point, strict=True)))
    return space


def _is_scored(method: str, sweep: TrainingSweep[Any]) -> bool:
    found = contract.load(method)
    sources = {contract.labels_from(found, sweep.run.method, number) for number in (0, 1)}
    return sources != {"none"} or hasattr(found.Objective, "features")


def _check_optuna(space: Space, sweep: TrainingSweep[Any]) -> None:
    if not find_spec("optuna"):
        raise UsageError("--search optuna: not installed (pip install optuna); or use random")
    if len(sweep.seeds) > 1 or any(is_grid(domain) for domain in space.values()):
        raise UsageError("--search optuna takes no space with grids and one seed; use random")


def trials_at_once(sweep: TrainingSweep[Any]) -> int:
    """Trials that run together: ``--concurrent``, or as many as the cluster holds.

    Raises:
        UsageError: not even one fits, or fewer than asked for; gives the numbers.
    """
    share = share_out(sweep.run.workers, gpu=sweep.run.gpu)
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    most = trials_that_fit(cpus, gpus, share, sweep.run.workers)
    if sweep.concurrent > most:
        raise UsageError(
            f"--concurrent {sweep.concurrent}: a trial takes {share.cpus * sweep.run.workers + TRIAL_CPUS:g} CPUs and "
            f"{share.gpus * sweep.run.workers:g} GPUs, and {HEADROOM_CPUS:g} CPUs stay free for decoding and labels; "
            f"of the cluster's {cpus:g} CPUs and {gpus:g} GPUs use at most --concurrent {most}"
        )
    return sweep.concurrent or most


def trials_that_fit(cpus: float, gpus: float, share: Share, workers: int) -> int:
    """Trials that a cluster holds, where one does fit; all share the room for decoding and labels."""
    by_cpu = int((cpus - HEADROOM_CPUS + 1e-9) / (share.cpus * workers + TRIAL_CPUS))
    by_gpu = int(gpus / workers) if share.gpus else by_cpu
    return max(1, min(by_cpu, by_gpu))
