"""The stage ``labelling`` of a sweep: eps, min_samples, k1 and k2 on stored features, without training.

The k-NN is made once, for the largest k1. Each (k1, k2) is one Ray task: a Jaccard graph that reaches beyond
the largest eps, and on it every eps and min_samples. The label-free score compares clusterings on one graph
only, so all of them are judged on the same one, of the usual k1 and k2 (``given.GRAPH``).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.nodes.runtime import ray_session
from pipelines.nodes.tasks import RayTasks
from pipelines.sweeps.spaces import Space, choices
from reid_core.errors import UsageError
from reid_core.labelling.clusters import without_singles
from reid_core.labelling.dbscan import dbscan
from reid_core.labelling.given import GRAPH
from reid_core.labelling.jaccard import Graph, jaccard_graph
from reid_core.labelling.neighbours import Neighbours, nearest
from reid_core.labelling.quality import label_free_score
from reid_core.labelling.scan import STEP, scan_eps
from reid_core.labelling.tasks import Tasks
from reid_core.settings import check_clustering
from reid_core.storage import exists
from reid_core.tables import feature_images, feature_rows, write_table

SETTINGS = ("eps", "min_samples", "k1", "k2")
SHOWN = (*SETTINGS, "label_free", "silhouette", "stability", "clusters", "outliers", "largest")
IDS = "ids_"  # begins what was measured with the true ids
LINES = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabellingSweep:
    """Cluster stored features with every combination of the label settings; nothing is trained."""

    features: str = ""
    """FEATURES table of `reid extract`: a path or a URI."""
    out: str = "sweep.parquet"
    """Table to write, a row a combination: a path or a URI."""
    eps: tuple[float, ...] = ()
    """DBSCAN radii on the Jaccard distance; those of the method's space when none is given, as below."""
    min_samples: tuple[int, ...] = ()
    """Neighbours within eps, itself included, that make an image a core point."""
    k1: tuple[int, ...] = ()
    """Neighbours of the k-reciprocal sets."""
    k2: tuple[int, ...] = ()
    """Neighbours averaged in the local query expansion; combinations with k2 > k1 are left out."""


def default(method: str, space: Space) -> LabellingSweep:
    """The sweep over the whole space of a method.

    Raises:
        UsageError: its labels do not come from DBSCAN on the Jaccard graph.
    """
    if set(space) != set(SETTINGS):
        raise UsageError(
            f"--space labelling sweeps {', '.join(SETTINGS)}; {method} has {', '.join(space)}: sweep them in training"
        )
    values: dict[str, Any] = {key: tuple(choices(key, domain)) for key, domain in space.items()}
    return LabellingSweep(**values)


def run(sweep: LabellingSweep) -> list[dict[str, float]]:
    """Judge every combination, print the best, write the table; the rows, best label-free score first.

    Raises:
        UsageError: a setting is out of range or no table is named.
        ValueError: the table is not a FEATURES table or has bad rows.
    """
    _check(sweep)
    images = feature_images(sweep.features)
    if not len(images):
        raise ValueError(f"{sweep.features}: no image to cluster; the FEATURES table is empty")
    image_id = images.column("image_id").to_numpy()
    pid = _pid(images)
    with ray_session():
        feature = RayTasks.of_cluster(1).submit(
            feature_rows, sweep.features, int(image_id[0]), int(image_id[-1])
        )
        rows = judge(
            feature,
            len(image_id),
            pid,
            sweep,
            RayTasks.of_cluster(1),
            RayTasks.of_cluster(len(_pairs(sweep))),
        )
    write_table(pa.Table.from_pylist(rows), sweep.out)
    for line in table(rows):
        print(line)  # noqa: T201
    logger.info("%d combinations in %s", len(rows), sweep.out)
    return rows


def judge(
    feature: Any,
    count: int,
    pid: np.ndarray | None,
    sweep: LabellingSweep,
    whole: Tasks,
    part: Tasks,
) -> list[dict[str, float]]:
    """The rows of all combinations, best label-free score first.

    Args:
        feature: reference to (N, D) float32 unit rows.
        count: N.
        pid: (N,) int true ids, negative unknown; only for the columns that begin with ``ids_``.
        sweep: its settings; k1 and k2 beyond N are N.
        whole: runs the k-NN and the graph that judges.
        part: runs the pairs (k1, k2).
    """
    reach = min(max(sweep.eps) + STEP, 1 - 1e-6)
    most = min(count, max(*sweep.k1, GRAPH["k1"]))
    neighbours = whole.submit(nearest, feature, most, gpu=True)
    usual = GRAPH["k1"], GRAPH["k2"]
    judge_graph = whole.submit(_graph, feature, neighbours, *usual, reach)
    whole.wait([judge_graph], "k-NN and the graph that judges")
    found = [
        part.submit(_pair_rows, feature, neighbours, judge_graph, pair, reach, pid, sweep)
        for pair in _pairs(sweep)
    ]
    part.wait(found, "pairs of k1 and k2")
    rows = [row for rows in part.get(found) for row in rows]
    return sorted(rows, key=lambda row: -row["label_free"])


def _pair_rows(
    feature: np.ndarray,
    neighbours: Neighbours,
    judge_graph: Graph,
    pair: tuple[int, int],
    reach: float,
    pid: np.ndarray | None,
    sweep: LabellingSweep,
) -> list[dict[str, float]]:
    """Every eps and min_samples on the graph of one (k1, k2)."""
    graph = _graph(feature, neighbours, *pair, reach)
    return [
        _row(graph, judge_graph, eps, min_samples, pid) | dict(zip(("k1", "k2"), pair, strict=True))
        for eps, min_samples in product(sweep.eps, sweep.min_samples)
    ]


def _row(
    graph: Graph, judge_graph: Graph, eps: float, min_samples: int, pid: np.ndarray | None
) -> dict[str, float]:
    label, _ = without_singles(*dbscan(graph, eps, min_samples))
    row = scan_eps(graph, [eps], min_samples, pid)[0]
    own = (*SHOWN, "eps")
    marked = {name if name in own else IDS + name: value for name, value in row.items()}
    return marked | {"min_samples": min_samples, "label_free": label_free_score(judge_graph, label)}


def _graph(feature: np.ndarray, neighbours: Neighbours, k1: int, k2: int, reach: float) -> Graph:
    """The Jaccard graph of the first k1 of the neighbours."""
    nearest_k1 = Neighbours(*(np.ascontiguousarray(array[:, :k1]) for array in neighbours))
    return jaccard_graph(feature, nearest_k1, k2=min(k2, len(feature)), eps=reach)


def table(rows: Sequence[dict[str, float]]) -> list[str]:
    """The first rows as text."""
    shown = [*SHOWN, *(name for name in rows[0] if name == f"{IDS}ari_singletons")]
    lines = ["".join(f"{name.removesuffix('_singletons'):>12}" for name in shown)]
    lines += ["".join(f"{row[name]:>12.4g}" for name in shown) for row in rows[:LINES]]
    best = " ".join(f"--method.{key.replace('_', '-')} {rows[0][key]:g}" for key in SETTINGS)
    lines.append(f"best by the label-free score: {best}")
    if len(shown) > len(SHOWN):
        lines.append(f"{IDS}*: with ids, for comparison only; nothing is chosen by them")
    return lines


def _pairs(sweep: LabellingSweep) -> list[tuple[int, int]]:
    return [(k1, k2) for k1, k2 in product(sweep.k1, sweep.k2) if k2 <= k1]


def _pid(images: pa.Table) -> np.ndarray | None:
    """True ids (N,), -1 where unknown; None where all are."""
    if "pid" not in images.column_names:
        return None
    pid = pc.fill_null(images.column("pid"), -1).to_numpy()
    return pid if (pid >= 0).any() else None


def _check(sweep: LabellingSweep) -> None:
    if not sweep.features or not exists(sweep.features):
        raise UsageError(
            f"--features {sweep.features or 'is missing'}: no such file; give a FEATURES table of `reid extract`"
        )
    if empty := [key for key in SETTINGS if not getattr(sweep, key)]:
        raise UsageError(f"--{empty[0].replace('_', '-')} without a value")
    for pair in _pairs(sweep) or [(sweep.k1[0], sweep.k2[0])]:
        for eps, min_samples in product(sweep.eps, sweep.min_samples):
            check_clustering(eps, min_samples, *pair)
    if max(sweep.eps) >= 1 - STEP:
        raise UsageError(
            f"--eps {max(sweep.eps):g}; must lie below {1 - STEP:g}, 0.4 to 0.7 is usual"
        )
