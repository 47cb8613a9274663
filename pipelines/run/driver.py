"""A run seen from outside: its data and folder, its rounds on Ray or in this process, its result."""

import logging
from dataclasses import replace
from typing import Any

from pipelines.images.inputs import scan_inputs
from pipelines.results.report import result_table
from pipelines.results.run_folder import RunFolder, describe_environment, summarise
from pipelines.run.job import TrainJob, absolute, check, config
from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.models.embedder import build_embedder

logger = logging.getLogger(__name__)


def run(name: str, job: TrainJob[Any], *, runs: int = 1) -> dict[str, Any]:
    """Train and return what ``result.json`` holds.

    Args:
        name: of the method.
        job: as parsed.
        runs: such runs at a time, among which the cluster is divided.

    Raises:
        UsageError: settings, cluster or saved run do not fit the job.
        ValueError: the data or the labels do not allow training; the message says what to change.
    """
    job = check(job)
    if job.source and not contract.takes_source(contract.load(name)):
        raise UsageError(f"--source: {name} has no use for a labelled source set; leave it out")
    build_embedder(job.method.model, bn_group=1)  # wrong weights are refused before any work
    inputs = scan_inputs(job.data, job.source, job.layout, job.cache)
    job = replace(job, data=absolute(job.data), source=absolute(job.source))
    folder = RunFolder(job.storage, job.name)
    folder.open(
        config(name, job, inputs),
        describe_environment(workers=job.workers, data=inputs.fingerprints),
    )
    with folder:
        if job.local:
            from pipelines.run import alone

            outcome = alone.train(name, job, inputs, folder)
        else:
            from pipelines.run import trainer

            outcome = trainer.train(name, job, inputs, folder, runs)
        if "stopped" in outcome:
            raise ValueError(outcome["stopped"])
        if folder.evaluations()[-1]["round"] != job.method.rounds:
            raise OSError(f"{folder.path}: the last evaluation was not written; repeat the command")
        result = summarise(folder.evaluations())
        folder.write_json("result.json", result)
        for line in result_table(result, name):
            logger.info(line)
    return result
