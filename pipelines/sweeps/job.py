"""The settings of a training sweep, and what refuses them before any work."""

from dataclasses import dataclass, replace
from itertools import count
from typing import Annotated, Any, Generic, Literal, TypeVar

import pyarrow as pa
import tyro
from ray import tune

from pipelines.images.inputs import is_evaluated
from pipelines.nodes.preflight import wait_for_nodes
from pipelines.nodes.share import Share, share_out
from pipelines.run.job import TrainJob
from pipelines.sweeps.spaces import Space, choices, is_grid, points
from reid_core import method as contract
from reid_core.errors import UsageError

ConfigT = TypeVar("ConfigT")


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
    """Trials at a time; 0: as many as leave each what it has alone: all that have GPUs, one on a machine without."""


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
    if sweep.run.local:
        _check_local(space, sweep)
    for point in points(space) or []:
        replace(sweep.run.method, **dict(zip(space, point, strict=True)))
    return space


def check_metric(sweep: TrainingSweep[Any], images: pa.Table) -> None:
    """Refuse to choose by an accuracy that these IMAGES cannot give."""
    if sweep.metric != "label_free" and not is_evaluated(images):
        raise UsageError(
            f"--metric {sweep.metric}: {sweep.run.data} has no query with an id, or no gallery, so nothing would be "
            "evaluated; use --metric label_free, or data that has both"
        )


def _is_scored(method: str, sweep: TrainingSweep[Any]) -> bool:
    found = contract.load(method)
    sources = {contract.labels_from(found, sweep.run.method, number) for number in (0, 1)}
    return sources != {"none"} or contract.is_judged(found)


def _check_optuna(space: Space, sweep: TrainingSweep[Any]) -> None:
    if len(sweep.seeds) > 1 or any(is_grid(domain) for domain in space.values()):
        raise UsageError(
            "--search optuna takes one seed and a space without grids; use --search random"
        )


def _check_local(space: Space, sweep: TrainingSweep[Any]) -> None:
    """Refuse what needs Ray Tune."""
    asked = {
        "--search optuna": sweep.search == "optuna",
        "--scheduler asha": sweep.scheduler == "asha",
        f"--concurrent {sweep.concurrent}": sweep.concurrent > 0,
    }
    if wrong := [flag for flag, given in asked.items() if given]:
        raise UsageError(
            f"--local trains one point after the other, without Ray Tune; leave out {' and '.join(wrong)}"
        )
    if points(space) is None:
        raise UsageError(
            "--local walks through grids, and this space has values to draw; use --search grid, another --space, "
            "or leave out --local"
        )


def trials_at_once(sweep: TrainingSweep[Any], began: int = 0) -> int:
    """Trials that run together: ``--concurrent``, or as many as leave each of them what it would have alone.

    Waits ``--start-s`` for nodes that have room for ``--concurrent`` trials, or for one.

    Args:
        sweep: as parsed.
        began: what a saved sweep began with and goes on with, as Tune's saved searcher does; 0: none is saved.

    Raises:
        UsageError: not even one fits, fewer than asked for, or others than it began with; gives the numbers.
    """
    if began and sweep.concurrent not in (0, began):
        raise UsageError(
            f"--concurrent {sweep.concurrent}: the saved sweep goes on with {began} trials at a time; leave the "
            "flag out, or begin another --name"
        )
    if asked := began or sweep.concurrent:
        _share(sweep, asked, began)
        return asked
    alone = _share(sweep, 1, began)
    for trials in count(2):
        try:
            if share_out(sweep.run.workers * trials, gpu=sweep.run.gpu).cpus < alone.cpus:
                return trials - 1
        except UsageError:
            return trials - 1
    raise AssertionError  # count has no end


def _share(sweep: TrainingSweep[Any], trials: int, began: int) -> Share:
    workers = sweep.run.workers
    try:
        return wait_for_nodes(workers * trials, gpu=sweep.run.gpu, start_s=sweep.run.start_s)
    except UsageError as error:
        if began:
            raise UsageError(
                f"the saved sweep began with {began} trials of --workers {workers} at a time, for which the cluster "
                f"has no room now; give it its nodes back, or begin another --name: {error}"
            ) from error
        if trials == 1:
            raise
        raise UsageError(
            f"--concurrent {trials}: {trials} trials of --workers {workers} share the cluster as a run of "
            f"--workers {workers * trials} does; {error}"
        ) from error
