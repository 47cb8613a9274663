"""One trial of a training sweep: the run that ``reid train`` makes, and what it tells Ray Tune on the way.

It tells what its run folder holds, under the key ``round``: rounds are absolute, so a trial that goes on after a
crash counts on, which Tune's own ``training_iteration`` does not. Ray's TuneReportCallback would see neither the
evaluations nor the labels after the last round.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from pipelines.results.saved_run import read_lines
from pipelines.run.driver import run
from pipelines.run.job import TrainJob
from pipelines.run.meeting import ON_HEAD
from pipelines.sweeps.report import MEASURES
from reid_core.storage import join

POLL_S = 1.0
logger = logging.getLogger(__name__)


def trainable(
    method: str, job: TrainJob[Any], folder: str, metric: str, runs: int
) -> Callable[[dict[str, Any]], None]:
    """The function that Tune calls with the ``method`` settings and the ``seed`` of a trial.

    Args:
        method: its name.
        job: all else of the run.
        folder: that gets the run, named by the id of the trial.
        metric: without it a round is not told.
        runs: trials at a time, among which the cluster is divided.
    """

    def trial(config: dict[str, Any]) -> None:
        name = tune.get_context().get_trial_id()
        changed = replace(job.method, **config["method"])
        own = replace(job, method=changed, seed=config["seed"], storage=folder, name=name)
        ended = _run.remote(method, own, runs)
        told: set[int] = set()
        try:
            done: list[Any] = []
            while not done:
                done, _ = ray.wait([ended], timeout=POLL_S)
                for line in rounds(join(folder, name), metric):
                    last = line["round"] == changed.rounds  # told when the run folder is whole
                    if line["round"] not in told and (done or not last):
                        told.add(line["round"])
                        tune.report(line)  # a trial that Tune stops leaves from here
            ray.get(ended)
        finally:
            ray.cancel(ended, force=True)

    return trial


@ray.remote(max_retries=0, scheduling_strategy="DEFAULT", **ON_HEAD)
def _run(method: str, job: TrainJob[Any], runs: int) -> None:
    """The run as a task outside of the trial's placement group, which would capture all that it starts.

    It is on the head, so that the loss of another node is only a crashed worker to it.
    """
    run(method, job, runs=runs)


def rounds(run: str, metric: str) -> list[dict[str, Any]]:
    """``round`` and the ``MEASURES`` after so many rounds, rising; of the rounds that have the metric.

    Args:
        run: a run folder (path or URI), which may not be there yet.
        metric: one of ``MEASURES``.
    """
    found: dict[int, dict[str, Any]] = {}
    for line in read_lines(run):
        if line["kind"] in ("round", "evaluation"):
            values = {name: line[name] for name in MEASURES if line.get(name) is not None}
            found.setdefault(line["round"], {"round": line["round"]}).update(values)
    return [found[number] for number in sorted(found) if metric in found[number]]


class Progress(tune.Callback):
    """Logs what trials tell, in the driver."""

    def __init__(self, metric: str, count: int) -> None:
        self.metric, self.count = metric, count  # of all trials; Tune makes them one after another

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        ended = sum(other.is_finished() for other in trials)
        logger.info(
            "trial %s, round %d: %s %.4f; %d of %d trials have ended",
            trial.trial_id, result["round"], self.metric, result[self.metric], ended, self.count,
        )  # fmt: skip
