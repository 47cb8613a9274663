"""``reid cluster``: a FEATURES table to a LABELS table, as Ray tasks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import tyro

from pipelines.run.stages import label_table
from reid_core.errors import UsageError
from reid_core.labelling.blocks import Blocks
from reid_core.labelling.clusters import density_labels, eps_graph, labels_of
from reid_core.labelling.direct import feature_dbscan, kmeans
from reid_core.labelling.engine import KNN, Backend, Engine, block_edges, shards_for
from reid_core.labelling.jaccard import Graph
from reid_core.labelling.scan import STEP, recommend, scan_eps
from reid_core.labels import Labels
from reid_core.settings import check_clustering
from reid_core.storage import exists
from reid_core.tables import feature_images, feature_rows, write_table
from reid_core.visualisation.eps import plot_scan

MOST_RADII = 1000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """Give every image of a feature table a pseudo label: DBSCAN on the k-reciprocal Jaccard distance."""

    features: str = ""
    """The FEATURES table: a path or a URI."""
    out: str = "labels.parquet"
    """The LABELS table to write: a path or a URI."""
    eps: float = 0.6
    """The radius of DBSCAN on the distance; for Jaccard it lies in (0, 1), else in (0, 2]."""
    min_samples: int = 4
    """The number of images within eps, itself included, that makes an image a core point."""
    k1: int = 30
    """The number of neighbours of the k-reciprocal sets."""
    k2: int = 6
    """The number of neighbours averaged in the local query expansion."""
    metric: Literal["jaccard", "euclidean", "cosine"] = "jaccard"
    """The distance of DBSCAN: k-reciprocal Jaccard, or between the features themselves."""
    kmeans: int = 0
    """Cluster into this many by spherical k-means in place of DBSCAN; 0 keeps DBSCAN."""
    seed: int = 0
    """The seed of the first centres of k-means."""
    scan_eps: str = ""
    """Compare the radii FIRST:LAST:STEP, such as 0.3:0.8:0.05, on one graph, plot them beside --out, use the best."""
    knn: KNN = "auto"
    """The neighbour search; auto is torch. All find the same neighbours."""
    backend: Backend = "auto"
    """What makes graph and DBSCAN: CPUs, exactly, or cuML on a GPU; auto takes cuML where it and a GPU are there."""
    shards: int = 0
    """The number of blocks of images, each pair of which is one Ray task; 0 makes one for every 131,072 images."""


def run(job: ClusterJob) -> Labels:
    """Cluster, write the table and return the labels.

    Raises:
        UsageError: a setting is out of range or no table is named.
        ValueError: the table is not a FEATURES table or has bad rows.
    """
    radii = check(job)
    images = feature_images(job.features)
    image_id = images.column("image_id").to_numpy()
    if not len(image_id):
        raise ValueError(f"{job.features}: no image to cluster; the FEATURES table is empty")
    direct = job.metric != "jaccard" or job.kmeans > 0
    shards = 1 if direct else shards_for(len(image_id), job.shards)
    from pipelines.nodes.runtime import ray_session
    from pipelines.nodes.tasks import RayTasks

    with ray_session():
        tasks = RayTasks.of_cluster(shards)
        engine = Engine(knn=job.knn, backend=job.backend, tasks=tasks)
        edges = block_edges(len(image_id), shards)
        ends = [(image_id[a], image_id[b - 1]) for a, b in pairwise(edges)]
        rows = [tasks.submit(feature_rows, job.features, *pair) for pair in ends]
        sizes = [tasks.submit(len, part) for part in rows]
        tasks.wait(sizes, "read the features")
        tasks.get(sizes)  # a bad row ends it here
        blocks = Blocks(rows, edges)
        if direct:
            labels = direct_labels(job, image_id, blocks, engine)
        else:
            labels = graph_labels(job, radii, images, blocks, engine)
    write_table(label_table(labels, images), job.out)
    shown = {name: round(value, 4) for name, value in labels.metrics.items()}
    logger.info("%s: %d images, %s", job.out, len(image_id), shown)
    return labels


def check(job: ClusterJob) -> list[float]:
    """Refuse settings that cannot work; the radii of ``--scan-eps``, or none."""
    if not job.features or not exists(job.features):
        raise UsageError(
            f"--features {job.features or 'is missing'}: no such file; give a FEATURES table of `reid extract`"
        )
    if job.metric == "jaccard" or job.kmeans:
        check_clustering(job.eps, job.min_samples, job.k1, job.k2)
    elif not 0 < job.eps <= 2 or job.min_samples < 1:
        raise UsageError(
            f"--eps {job.eps:g} --min-samples {job.min_samples}: with --metric {job.metric} eps must lie in "
            "(0, 2] and min-samples be at least 1"
        )
    if job.kmeans < 0 or job.shards < 0:
        raise UsageError("--kmeans and --shards count from 0, which leaves them out")
    if (job.metric != "jaccard") + (job.kmeans > 0) + (job.shards > 1) > 1:
        raise UsageError(
            "--metric, --kmeans and --shards exclude each other; shards are of the graph"
        )
    if not job.scan_eps:
        return []
    if job.metric != "jaccard" or job.kmeans:
        raise UsageError(
            "--scan-eps compares radii of the Jaccard graph; leave --metric and --kmeans out"
        )
    return parse_radii(job.scan_eps)


def parse_radii(text: str) -> list[float]:
    """``0.3:0.8:0.05`` as the radii from the first to the last, which is one of them if a step falls on it.

    Raises:
        UsageError: it is not of this form, or leaves (0, 1).
    """
    try:
        first, last, step = (float(word) for word in text.split(":"))
        count = int((last - first) / step + 1 + 1e-6)
        radii = [round(first + i * step, 6) for i in range(min(count, MOST_RADII))]
    except (ValueError, ZeroDivisionError, OverflowError):
        radii = []
    if not radii or not 0 < radii[0] <= radii[-1] < 1 - STEP:
        raise UsageError(
            f"--scan-eps {text}: want FIRST:LAST:STEP with radii above 0 and below {1 - STEP:g}, "
            "such as 0.3:0.8:0.05"
        )
    return radii


def graph_labels(
    job: ClusterJob, radii: list[float], images: pa.Table, blocks: Blocks, engine: Engine
) -> Labels:
    """Labels by DBSCAN on the Jaccard graph; at the recommended radius, if there are several."""
    most = max(radii) + STEP if radii else job.eps
    graph, seconds = eps_graph(blocks, eps=most, k1=job.k1, k2=job.k2, engine=engine)
    eps = report_scan(job, radii, graph, images) if radii else job.eps
    image_id = images.column("image_id").to_numpy()
    labels = density_labels(
        graph, image_id, blocks, eps=eps, min_samples=job.min_samples, engine=engine
    )
    labels.metrics.update(seconds, eps=eps)
    return labels


def report_scan(job: ClusterJob, radii: list[float], graph: Graph, images: pa.Table) -> float:
    """Log the table of all radii, plot it beside ``--out``, and return the recommended one."""
    pid = (
        images.column("pid") if "pid" in images.column_names else pa.nulls(len(images), pa.int64())
    )
    known = pid.null_count < len(pid)
    rows = scan_eps(graph, radii, job.min_samples, pid.fill_null(-1).to_numpy() if known else None)
    best = recommend(rows)
    for name in rows[0]:
        logger.info("%-22s%s", name, "".join(f"{row[name]:10.4g}" for row in rows))
    table, mark, query = job.out.partition("?")  # of a URI
    plot = f"{table.removesuffix('.parquet')}.png{mark}{query}"
    plot_scan(rows, best, plot)
    logger.info(
        "recommended by the label-free score: --eps %g; plot in %s", rows[best]["eps"], plot
    )
    return rows[best]["eps"]


def direct_labels(job: ClusterJob, image_id: np.ndarray, blocks: Blocks, engine: Engine) -> Labels:
    """Labels by k-means, or by DBSCAN on a distance between features."""
    gpu = engine.on_gpu
    feature = blocks.feature[0]
    if job.kmeans:
        found = engine.tasks.submit(kmeans, feature, job.kmeans, job.seed, gpu, gpu=gpu)
    else:
        settings = (job.metric, job.eps, job.min_samples, gpu)
        found = engine.tasks.submit(feature_dbscan, feature, *settings, gpu=gpu)
    label, is_core = engine.tasks.get([found])[0]
    return labels_of(image_id, blocks, label, is_core, engine.tasks)


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid cluster``."""
    run(tyro.cli(ClusterJob, args=argv, prog="reid cluster"))
    return 0
