"""The stage ``training`` of a sweep: Ray Tune trials, each of which is the run that ``reid train`` makes.

STORAGE/NAME holds ``result.json``, ``table.txt``, ``table.png``, Tune's state (``tune``, which is unpickled when a
sweep goes on: keep it where only you can write), and one run folder a trial, named by its id.
"""

import logging
import sys
from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from pipelines.images.inputs import Inputs, scan_inputs
from pipelines.nodes.runtime import ray_session
from pipelines.results.run_folder import RunFolder, describe_environment, settings
from pipelines.results.saved_run import read_config
from pipelines.run.driver import run as train
from pipelines.run.job import TrainJob, absolute, check
from pipelines.run.job import identity as run_identity
from pipelines.run.meeting import ON_HEAD
from pipelines.sweeps.job import TrainingSweep, check_metric, checked, trials_at_once
from pipelines.sweeps.report import MEASURES, entries, picture, table
from pipelines.sweeps.spaces import Space, choices, paper_columns, points, swept
from pipelines.sweeps.trial import Progress, rounds, trainable
from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.storage import exists, join, write_bytes

Row = dict[str, Any]
"""A trial: its settings, ``seed``, ``trial`` and, where it told anything, ``round`` and ``MEASURES``."""

logger = logging.getLogger(__name__)
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # its errors come with the results


def run(method: str, name: str, space: Space, sweep: TrainingSweep[Any]) -> list[Row]:
    """Run all trials, or those that are left; print the table and draw it.

    Args:
        method: its name.
        name: of the space.
        space: to be swept.
        sweep: as parsed.

    Returns:
        A row a trial, those of a grid in its order: its settings, ``seed``, ``trial``, ``round`` and the last of
        each of ``MEASURES``.

    Raises:
        UsageError: settings, data, cluster or saved sweep do not fit.
        ValueError: a trial failed, and the others are done and kept; or none told the metric.
    """
    sweep = replace(sweep, run=_located(check(sweep.run)), seeds=sweep.seeds or (sweep.run.seed,))
    space = checked(method, space, sweep)
    inputs = scan_inputs(sweep.run.data, sweep.run.source, sweep.run.layout, sweep.run.cache)
    check_metric(sweep, inputs.found["data"].images)
    folder = RunFolder(sweep.run.storage, sweep.run.name)
    began = _began_with(folder.path, local=sweep.run.local)
    with nullcontext() if sweep.run.local else ray_session(dashboard=True):
        concurrent = 0 if sweep.run.local else trials_at_once(sweep, began)
        config = {
            "command": sys.argv,
            "trials_at_once": concurrent,
            "identity": identity(method, space, sweep, inputs),
        }
        folder.open(config, describe_environment())
        with folder:
            logger.info("%s over %s, %s; %s", method, name, _pace(concurrent), folder.path)
            walk = one_by_one if sweep.run.local else by_tune
            rows, errors = walk(method, space, sweep, folder.path, concurrent)
            rows = in_order(rows, space, sweep)
            _write(method, space, sweep, folder, [row for row in rows if "round" in row])
            _check_told(rows, errors, sweep.metric, folder.path)
    return rows


def _pace(concurrent: int) -> str:
    return f"{concurrent} trials at a time" if concurrent else "one trial after the other"


def _check_told(rows: list[Row], errors: list[str], metric: str, folder: str) -> None:
    if errors:
        raise ValueError(
            f"{len(errors)} of {len(rows)} trials failed, the first with: {errors[0]}; the same command repeats "
            f"them and keeps the others, logs are in {folder}"
        )
    if not any("round" in row for row in rows):
        raise ValueError(
            f"none of {len(rows)} trials told {metric} after any round, so there is nothing to compare; "
            f"logs are in {folder}"
        )


def one_by_one(
    method: str, space: Space, sweep: TrainingSweep[Any], folder: str, _: int
) -> tuple[list[Row], list[str]]:
    """Train every point with every seed in this process, or what is left of it; a row a trial, and the errors."""
    trials = list(product(points(space) or [], sweep.seeds))
    rows, errors = [], []
    for number, (point, seed) in enumerate(trials):
        values = dict(zip(space, point, strict=True))
        name = f"trial-{number:04d}"
        job = replace(sweep.run, method=replace(sweep.run.method, **values), seed=seed)
        logger.info("%s of %d: %s, seed %d", name, len(trials), values, seed)
        try:
            if not exists(join(folder, name, "result.json")):  # else it has ended
                train(method, replace(job, storage=folder, name=name))
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            logger.error("%s failed: %s", name, error)
            errors.append(str(error))
        told = rounds(join(folder, name), sweep.metric)
        rows.append({**values, "seed": seed, "trial": name, **(told[-1] if told else {})})
    return rows, errors


def by_tune(
    method: str, space: Space, sweep: TrainingSweep[Any], folder: str, concurrent: int
) -> tuple[list[Row], list[str]]:
    """Let Ray Tune run all trials, or those that are left; a row a trial, and the errors."""
    results = tuner(method, space, sweep, folder, concurrent).fit()
    errors = [str(error).strip().splitlines()[-1] for error in results.errors]
    return [_row(result) for result in results], errors


def identity(
    method: str, space: Space, sweep: TrainingSweep[Any], inputs: Inputs
) -> dict[str, Any]:
    """All that changes which trials there are, or a number of theirs, as plain JSON values."""
    run = run_identity(method, sweep.run, inputs)
    return {
        **{key: value for key, value in run.items() if key != "seed"},  # the sweep has seeds
        "eval_every": sweep.run.eval_every,
        "space": {key: _described(key, domain) for key, domain in space.items()},
        "sweep": {k: v for k, v in settings(sweep).items() if k not in ("run", "concurrent")},
    }


def _began_with(folder: str, *, local: bool) -> int:
    """Trials at a time of the sweep that lies in the folder; 0 where there is none, or one without Ray.

    Raises:
        UsageError: it was begun the other way.
    """
    saved = read_config(folder)
    if saved is None or "space" not in saved["identity"]:
        return 0  # that of a run is refused when it is opened
    began = saved.get("trials_at_once", 1)
    if (began == 0) != local:
        how = "on Ray; leave --local out" if began else "with --local; give it"
        raise UsageError(f"{folder}: this sweep was begun {how}, or begin another --name")
    return began


def tuner(
    method: str, space: Space, sweep: TrainingSweep[Any], folder: str, concurrent: int
) -> tune.Tuner:
    """A new sweep, or the one that lies in the folder."""
    function = trainable(method, sweep.run, folder, sweep.metric, concurrent)
    nothing = {"CPU": 0, **ON_HEAD["resources"]}  # Tune's own CPU would block the train workers
    trial = tune.with_resources(function, nothing)
    saved = join(folder, "tune")
    if tune.Tuner.can_restore(saved):
        try:
            return tune.Tuner.restore(
                saved, trainable=trial, resume_unfinished=True, restart_errored=True
            )
        except (ImportError, AttributeError) as error:  # of unpickling
            raise UsageError(
                f"{folder}: this sweep was begun by another version of the code and cannot go on ({error}); its runs "
                "stay as they are, begin another --name"
            ) from error
    count = len(points(space) or range(sweep.trials)) * len(sweep.seeds)
    config: dict[str, Any] = {"method": dict(space), "seed": tune.grid_search(list(sweep.seeds))}
    if sweep.search == "optuna":
        config["seed"] = sweep.seeds[0]
    return tune.Tuner(
        trial,
        param_space=config,
        tune_config=tune.TuneConfig(
            search_alg=search(sweep, concurrent),
            scheduler=_asha(sweep) if sweep.scheduler == "asha" else None,
            num_samples=1 if points(space) else sweep.trials,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=folder,
            verbose=0,
            callbacks=[Progress(sweep.metric, count)],
            failure_config=tune.FailureConfig(max_failures=1),  # its run folder goes on
        ),
    )


def search(sweep: TrainingSweep[Any], concurrent: int) -> Any:
    """What proposes points to Tune, so many trials at a time."""
    if sweep.search != "optuna":
        return BasicVariantGenerator(
            constant_grid_search=True,  # the seeds of a point share what was drawn for it
            max_concurrent=concurrent,
            random_state=sweep.seeds[0],
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    proposes = OptunaSearch(metric=sweep.metric, mode="max", seed=sweep.seeds[0])
    return ConcurrencyLimiter(proposes, max_concurrent=concurrent)


def _asha(sweep: TrainingSweep[Any]) -> ASHAScheduler:
    rounds = sweep.run.method.rounds
    return ASHAScheduler(
        time_attr="round",
        metric=sweep.metric,
        mode="max",
        max_t=rounds,
        grace_period=min(rounds, sweep.grace or max(1, rounds // 4)),
    )


def _located(job: TrainJob[Any]) -> TrainJob[Any]:
    """Paths as seen from here: a trial runs in a folder of its own."""
    roots = ("data", "source", "storage")
    return replace(job, **{name: absolute(getattr(job, name)) for name in roots})


def _described(key: str, domain: Any) -> Any:
    """A domain of a space as plain JSON values: what tells whether a saved sweep is the same."""
    try:
        return choices(key, domain)
    except UsageError:
        return [type(domain.get_sampler()).__name__, domain.lower, domain.upper]


def _row(result: Any) -> dict[str, Any]:
    """What is kept of a trial; without ``round`` where it failed before it told anything."""
    last = result.metrics or {}
    kept = {name: last[name] for name in ("round", *MEASURES) if name in last}
    trial = Path(result.path).name if "trial_id" not in last else last["trial_id"]
    return {**result.config["method"], "seed": result.config["seed"], "trial": trial, **kept}


def in_order(rows: list[Row], space: Space, sweep: TrainingSweep[Any]) -> list[Row]:
    """The rows of a grid as its points and the seeds follow; Tune gives others after a restore."""
    asked = points(space)
    if asked is None:
        return rows

    def place(row: Row) -> tuple[int, int]:
        return asked.index(tuple(row[key] for key in space)), sweep.seeds.index(row["seed"])

    return sorted(rows, key=place)


def _write(
    method: str,
    space: Space,
    sweep: TrainingSweep[Any],
    folder: RunFolder,
    rows: list[Row],
) -> None:
    folder.write_json("result.json", rows)
    keys = swept(space)
    if not rows or not keys:
        return
    found = entries(rows, list(space))
    if not points(space):  # drawn in no order of their own
        found.sort(key=lambda entry: -entry.measured.get(sweep.metric, (-1.0, 0.0))[0])
    papers = paper_columns(
        contract.load(method).PRESETS, list(space), [entry.point for entry in found]
    )
    lines = table(found, list(space), sweep.metric, papers)
    write_bytes(join(folder.path, "table.txt"), ("\n".join(lines) + "\n").encode())
    for line in lines:
        print(line)  # noqa: T201
    if points(space):
        write_bytes(join(folder.path, "table.png"), picture(found, list(space), papers))
