"""``reid evaluate``: mAP and CMC of a run, of an embedder file with data, or of two feature tables."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from pipelines import extract
from pipelines.images.inputs import default_cache
from pipelines.results.report import result_table
from pipelines.results.run_folder import EVALUATION
from pipelines.results.saved_run import SavedRun
from reid_core.errors import UsageError
from reid_core.evaluation.metrics import evaluate
from reid_core.evaluation.ranking import CameraFilter, Images
from reid_core.storage import exists, write_bytes
from reid_core.tables import read_features

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Give one of: --run DIR; --checkpoint FILE --data ROOT; --query FEATURES --gallery FEATURES."""

    run: str = ""
    """The folder of a run: its last weights are evaluated on its own data, or on --data."""
    checkpoint: str = ""
    """An embedder file (.safetensors) of a run."""
    data: str = ""
    """The root of a data set with query and gallery."""
    query: str = ""
    """The FEATURES table of the queries."""
    gallery: str = ""
    """The FEATURES table of the gallery."""
    out: str = ""
    """The JSON file to write; '' only prints."""
    layout: str = "auto"
    """The layout of the data; `reid scan` tells which are known."""
    camera_filter: CameraFilter = "same_camera"
    """The gallery images of the query's identity that do not count: those of its camera, of its tracklet, or none."""
    workers: int = 1
    """The number of replicas of the network, each in a process of its own."""
    gpu: bool = False
    """Give every replica a GPU."""
    cache: str = default_cache()
    """The folder on each node's local disk that keeps encoded images; '' keeps none."""


def run(job: EvaluateJob) -> dict[str, Any]:
    """Evaluate and return mAP, mINP, rank1, rank5 and rank10 (None without ids) and the round where it is known.

    Raises:
        UsageError: not exactly one of the three forms was given, or a file is not there.
        ValueError: the features or weights do not fit.
    """
    forms = [bool(job.run), bool(job.checkpoint), bool(job.query or job.gallery)]
    if sum(forms) != 1 or (job.checkpoint and not job.data) or bool(job.query) != bool(job.gallery):
        raise UsageError(
            "give exactly one of: --run DIR; --checkpoint FILE --data ROOT; --query FEATURES --gallery FEATURES"
        )
    for path in (job.query, job.gallery, job.checkpoint):
        if path and not exists(path):
            raise UsageError(
                f"{path}: no such file; give one that `reid extract` or `reid train` wrote"
            )
    number = None
    if job.run:
        job, number = _of_run(job)
    tables = (
        _extracted(job)
        if job.checkpoint
        else (read_features(job.query), read_features(job.gallery))
    )
    query, gallery = (Images.from_table(table) for table in tables)
    result = evaluate(query, gallery, camera_filter=job.camera_filter)
    if result.dropped:
        logger.warning(
            "%d of %d queries have no valid match in the gallery and do not count",
            result.dropped,
            len(query.pid),
        )
    row = dict.fromkeys(EVALUATION) | {"round": number} | result.accuracies()
    if job.out:
        write_bytes(job.out, (json.dumps(row, indent=2) + "\n").encode())
    for line in result_table({"last": row}, "evaluation"):
        logger.info(line)
    return row


def _of_run(job: EvaluateJob) -> tuple[EvaluateJob, int | None]:
    """The job with weights, data, layout and filter of its run, and the finished rounds."""
    trained = SavedRun.open(job.run)
    if not job.data:
        own = {name: trained.job[name] for name in ("data", "layout", "camera_filter")}
        job = replace(job, **own)
    return replace(job, checkpoint=trained.weights()), trained.evaluated


def _extracted(job: EvaluateJob) -> tuple[pa.Table, pa.Table]:
    with tempfile.TemporaryDirectory(prefix="reid-features-") as folder:
        out = str(Path(folder) / "features.parquet")
        extract.run(
            extract.ExtractJob(
                data=job.data,
                out=out,
                weights=job.checkpoint,
                split="test",
                layout=job.layout,
                workers=job.workers,
                gpu=job.gpu,
                cache=job.cache,
            )
        )
        table = read_features(out)
    split = pc.field("split")
    return table.filter(split == "query"), table.filter(split == "gallery")


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid evaluate``."""
    run(tyro.cli(EvaluateJob, args=argv, prog="reid evaluate"))
    return 0
