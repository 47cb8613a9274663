"""``reid cluster``: a FEATURES table to a LABELS table, as a Ray task."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
import tyro

from pipelines.runtime import STAGE_CPUS, STAGE_GPUS, ray_session
from pipelines.stages import label_table
from reid_core.errors import UsageError
from reid_core.labelling.clusters import cluster
from reid_core.method import Features, Labels
from reid_core.settings import check_clustering
from reid_core.storage import exists
from reid_core.tables import feature_matrix, read_features, write_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """Give every image of a feature table a pseudo label: DBSCAN on the k-reciprocal Jaccard distance."""

    features: str = ""
    """FEATURES table: a path or a URI."""
    out: str = "labels.parquet"
    """LABELS table to write: a path or a URI."""
    eps: float = 0.6
    """DBSCAN radius on the Jaccard distance, in (0, 1)."""
    min_samples: int = 4
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: int = 30
    """Neighbours of the k-reciprocal sets."""
    k2: int = 6
    """Neighbours averaged in the local query expansion."""


def run(job: ClusterJob) -> Labels:
    """Cluster, write the table and return the labels.

    Raises:
        UsageError: a setting is out of range or no table is named.
        ValueError: the table is not a FEATURES table or has bad rows.
    """
    check_clustering(job.eps, job.min_samples, job.k1, job.k2)
    if not job.features or not exists(job.features):
        raise UsageError(
            f"--features {job.features or 'is missing'}: no such file; give a FEATURES table of `reid extract`"
        )
    with ray_session():
        gpus = STAGE_GPUS if ray.cluster_resources().get("GPU", 0) else 0.0
        task = ray.remote(num_cpus=STAGE_CPUS, num_gpus=gpus)(cluster_table)
        try:
            labels = ray.get(task.remote(job))
        except (ValueError, OSError) as error:  # RayTaskError takes the class of its cause
            raise ValueError(str(getattr(error, "cause", error))) from error
    shown = {name: round(value, 4) for name, value in labels.metrics.items()}
    logger.info("%s: %d images, %s", job.out, len(labels.image_id), shown)
    return labels


def cluster_table(job: ClusterJob) -> Labels:
    """The Ray task: read, cluster, write."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    table = read_features(job.features)
    features = Features(image_id=table.column("image_id").to_numpy(), feature=feature_matrix(table))
    labels = cluster(features, eps=job.eps, min_samples=job.min_samples, k1=job.k1, k2=job.k2)
    write_table(label_table(labels, table), job.out)
    return labels


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid cluster``."""
    run(tyro.cli(ClusterJob, args=argv, prog="reid cluster"))
    return 0
