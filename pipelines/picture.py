"""``reid picture RUN --what hierarchy|tsne|quality|matches``: pictures of what a run learnt.

N training images, M images drawn, D feature size.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from pipelines import extract
from pipelines.results.saved_run import SavedRun
from pipelines.run.stages import labels_path
from reid_core.data.datasets import scan
from reid_core.data.decode import ImageStore, load
from reid_core.errors import UsageError
from reid_core.evaluation.ranking import Images, top_k
from reid_core.labels import Labels
from reid_core.memory.classes import centroids
from reid_core.methods import ise
from reid_core.seeding import generator
from reid_core.storage import exists, join, write_bytes
from reid_core.tables import IMAGES, LABELS, feature_matrix, read_features, read_table
from reid_core.visualisation.hierarchy import hierarchy_figure, members, most_divided
from reid_core.visualisation.matches import matches_figure
from reid_core.visualisation.png import png
from reid_core.visualisation.quality import quality_figure
from reid_core.visualisation.tsne import tsne_figure, tsne_map

HIERARCHY_CLUSTERS, TSNE_CLUSTERS, QUERIES = 3, 10, 6  # drawn where none are asked for
MOST = {"hierarchy": 32, "tsne": 32, "matches": 10}
MATCH_HEIGHT = 128  # of the images of matches, pixels
MEANT_FOR = {
    "clusters": ("hierarchy", "tsne"),
    "most": ("hierarchy", "tsne", "matches"),
    "queries": ("matches",),
    "images": ("hierarchy",),
    "ids": ("tsne",),
    "features": ("tsne",),
    "seed": ("tsne", "matches"),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """Draw a run as of its last evaluation, or the quality of the labels of several runs side by side."""

    runs: Positional[tuple[str, ...]]
    """The folder of a run, STORAGE/NAME: a path or a URI; --what quality takes several."""
    what: Literal["hierarchy", "tsne", "quality", "matches"]
    """The picture. hierarchy: the images of coarse clusters, level by level (hcd). tsne: a map of features, with
    the support samples of ise. quality: mAP, and the agreement of labels and true ids, by round. matches: some
    queries of the test set, each beside its nearest gallery images."""
    out: str = ""
    """The PNG to write; RUN/WHAT.png of the first run when empty."""
    clusters: tuple[int, ...] = ()
    """The numbers of the clusters to draw, of the coarsest level; when not given, the most divided for hierarchy
    and the largest for tsne."""
    ids: tuple[int, ...] = ()
    """The true ids whose images tsne draws and colours in place of clusters."""
    most: int | None = None
    """How many images of a cluster are drawn, evenly chosen from more (32 when not given), or for matches how many
    gallery images stand beside a query (10)."""
    queries: int = QUERIES
    """How many queries matches draws, of different identities where these are known."""
    images: bool = False
    """Show the images themselves in hierarchy, in place of coloured tiles with image ids."""
    data: str = ""
    """The root of the run's images where they have moved."""
    features: str = ""
    """A FEATURES table of the run's training images by its last weights, for tsne; extracted when empty."""
    seed: int = 0
    """The seed of the map of tsne, and of the choice of queries of matches."""


def run(job: PictureJob) -> str:
    """Write the picture and return its path.

    Raises:
        UsageError: a folder, table, cluster or id is not there, or the run has nothing of what was asked for.
        ValueError: the features are not those of the run, or an image cannot be read.
    """
    check(job)
    runs = [SavedRun.open(folder) for folder in job.runs]
    if job.what == "quality":
        picture = _quality(runs)
    else:
        drawn = {"hierarchy": _hierarchy, "tsne": _tsne, "matches": _matches}
        picture = drawn[job.what](job, runs[0])
    out = job.out or join(runs[0].folder, f"{job.what}.png")
    write_bytes(out, picture)
    logger.info("%s", out)
    return out


def check(job: PictureJob) -> None:
    """Refuse flags that do not go together."""
    if not job.runs:
        raise UsageError("RUN is missing: give STORAGE/NAME of `reid train`")
    _check_numbers(job)
    if len(job.runs) > 1 and job.what != "quality":
        raise UsageError(f"--what {job.what} draws one run; {len(job.runs)} were given")
    for name, pictures in MEANT_FOR.items():
        if job.what not in pictures and getattr(job, name) != getattr(PictureJob, name):
            raise UsageError(f"--{name} is for --what {' and '.join(pictures)}; leave it out")
    if job.clusters and job.ids:
        raise UsageError("--clusters and --ids exclude each other")
    extracts = job.what == "matches" or (job.what == "tsne" and not job.features)
    if job.data and not (job.images or extracts):
        raise UsageError(
            "--data has no use here: it is read for --images, for matches, and for tsne without --features"
        )


def _check_numbers(job: PictureJob) -> None:
    for name, least, usual in (("most", 2, MOST.get(job.what)), ("queries", 1, QUERIES)):
        if (value := getattr(job, name)) is not None and value < least:
            raise UsageError(f"--{name} {value}; must be at least {least}, {usual} is usual")


def _quality(runs: list[SavedRun]) -> bytes:
    for one in runs:
        if not one.of_kind("quality"):
            raise UsageError(
                f"{one.folder}: metrics.jsonl has no quality of labels: the training images have no ids, or "
                "no round is done yet"
            )
    names = names_of([one.folder for one in runs])
    return png(quality_figure({name: one.lines for name, one in zip(names, runs, strict=True)}))


def names_of(folders: Sequence[str]) -> list[str]:
    """The last part of every folder, or the folders where these are not all different."""
    names = [folder.rstrip("/").rpartition("/")[2] for folder in folders]
    return names if len(set(names)) == len(names) else list(folders)


def _hierarchy(job: PictureJob, of: SavedRun) -> bytes:
    labels, path_N = _labels(of)
    if labels.label.shape[1] < 2:
        raise UsageError(
            f"{of.folder}: {of.method} has labels of one level here; --what hierarchy draws runs of hcd with "
            "--method.levels 2 or more"
        )
    coarse_N = labels.label[:, -1]
    chosen = _known(job.clusters, coarse_N, "cluster")
    chosen = chosen or most_divided(labels.label, HIERARCHY_CLUSTERS)
    drawn = {cluster: _thinned(members(labels.label, cluster), most(job)) for cluster in chosen}
    images = _images(job, of, np.concatenate([*drawn.values()]), path_N) if job.images else None
    return png(hierarchy_figure(labels.label, labels.image_id, drawn, images))


def _tsne(job: PictureJob, of: SavedRun) -> bytes:
    labels, path_N = _labels(of)
    label_N = labels.label[:, -1]
    _known(job.clusters, label_N, "cluster")
    table = _features(job, of, path_N)
    pid_N = table.column("pid").fill_null(-1).to_numpy()
    kind, group_N = ("id", pid_N) if job.ids else ("cluster", label_N)
    chosen = _known(job.clusters or job.ids, group_N, kind) or _largest(group_N, TSNE_CLUSTERS)
    parts = [_thinned(np.flatnonzero(group_N == group), most(job)) for group in chosen]
    row_M = np.concatenate(parts)
    if len(row_M) < 2:
        raise UsageError("one image to draw: a map needs two; give more --ids")
    x_ND = torch.from_numpy(feature_matrix(table).copy())
    clustered_M = row_M[label_N[row_M] >= 0]
    support_MKD = _supports(of, x_ND, torch.from_numpy(label_N.copy()), clustered_M)
    place = tsne_map(torch.cat([x_ND[row_M], support_MKD.flatten(0, 1)]).numpy(), job.seed)
    group_S = group_N[clustered_M].repeat(support_MKD.shape[1])
    count = len(row_M)
    return png(tsne_figure(place[:count], group_N[row_M], place[count:], group_S, kind=kind))


def _matches(job: PictureJob, of: SavedRun) -> bytes:
    """Q queries, k gallery images beside each: those that evaluation ranks first."""
    title = f"nearest in the gallery, by {of.method} after {of.evaluated} rounds"
    table = _extracted(job, of, "test")
    query, gallery = (table.filter(pc.field("split") == split) for split in ("query", "gallery"))
    if not len(query) or not len(gallery):
        raise UsageError(
            f"{_data(job, of)[0]}: {len(query)} query and {len(gallery)} gallery images could be read; matches "
            "needs both"
        )
    query = query.take(_chosen(query, job.queries, job.seed))
    ranks = top_k(
        Images.from_table(query), Images.from_table(gallery), most(job),
        camera_filter=of.job["camera_filter"],
    ).to_pydict()  # fmt: skip
    image_id = table.column("image_id").to_numpy()
    row_Q = np.searchsorted(image_id, query.column("image_id").to_numpy())
    row_M = np.searchsorted(image_id, np.array(ranks["gallery_id"], np.int64))
    images = _images(job, of, np.concatenate([row_Q, row_M]), table.column("path"), MATCH_HEIGHT)
    pid = table.column("pid").to_pylist()
    found, same = [], []
    for row in row_Q.tolist():
        beside = row_M[np.array(ranks["query_id"]) == image_id[row]].tolist()
        found.append([images[one] for one in beside])
        same.append([_same(pid[row], pid[one]) for one in beside])
    return png(matches_figure([images[row] for row in row_Q.tolist()], found, same, title))


def _chosen(query: pa.Table, count: int, seed: int) -> np.ndarray:
    """At most ``count`` rows of the queries, rising: drawn at random, of different identities where known."""
    drawn = np.random.default_rng(seed).permutation(len(query))
    pid = query.column("pid").fill_null(0).to_numpy()[drawn]
    identity = np.where(pid > 0, pid, -1 - np.arange(len(pid)))
    first = np.sort(np.unique(identity, return_index=True)[1])[:count]
    return np.sort(drawn[first])


def _same(pid: int | None, other: int | None) -> bool | None:
    """Whether two images show one identity; None where it is not known."""
    return None if pid is None or pid < 1 or other is None else pid == other


def most(job: PictureJob) -> int:
    """Images of a cluster, or beside a query."""
    return job.most or MOST[job.what]


def _labels(of: SavedRun) -> tuple[Labels, pa.ChunkedArray]:
    """The labels at the last evaluation and the paths of their images, both in image id order.

    The objective's own label bank at that moment is among them, where it has one: every round's table
    is written from it.
    """
    where = labels_path(of.folder, of.evaluated)
    table = read_table(where, LABELS.append(IMAGES.field("path")))
    labels = Labels.from_table(table, where)
    if labels.label[:, -1].max(initial=-1) < 0:
        raise UsageError(f"{where}: no clusters, all images are outliers; nothing to draw")
    return labels, table.filter(pc.field("level") == 0).sort_by("image_id").column("path")


def _known(asked: Sequence[int], group_N: np.ndarray, kind: str) -> list[int]:
    """The groups that were asked for, if all of them exist; -1 is none."""
    there = set(group_N[group_N >= 0].tolist())
    if unknown := [group for group in asked if group not in there]:
        span = f"there are {len(there)}, {min(there)} to {max(there)}" if there else "none is known"
        raise UsageError(f"no {kind} {unknown[0]} among the training images; {span}")
    return list(dict.fromkeys(asked))


def _largest(group_N: np.ndarray, count: int) -> list[int]:
    return np.argsort(-np.bincount(group_N[group_N >= 0]), kind="stable")[:count].tolist()


def _thinned(row_M: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows, evenly chosen, the first and the last among them."""
    return row_M[np.linspace(0, len(row_M) - 1, min(len(row_M), most)).round().astype(int)]


def _data(job: PictureJob, of: SavedRun) -> tuple[str, str]:
    """Root and layout of the images."""
    return (job.data, "auto") if job.data else (of.job["data"], of.job["layout"])


def _images(
    job: PictureJob, of: SavedRun, row_M: np.ndarray, path_N: pa.ChunkedArray, height: int = 0
) -> dict[int, np.ndarray]:
    """The images (height, width, 3) uint8 by row, in the shape that the network sees; as large too unless told."""
    size = of.job["method"]["images"]
    height = height or size["height"]
    width = round(height * size["width"] / size["height"])
    store = ImageStore(scan(*_data(job, of)).root)
    return {
        row: load(store, path_N[row].as_py(), height, width).permute(1, 2, 0).numpy()
        for row in row_M.tolist()
    }


def _features(job: PictureJob, of: SavedRun, path_N: pa.ChunkedArray) -> pa.Table:
    """FEATURES of the run's training images, in image id order: those given, or by its last weights."""
    if job.features and not exists(job.features):
        raise UsageError(f"{job.features}: no such file; give a FEATURES table of `reid extract`")
    table = read_features(job.features) if job.features else _extracted(job, of)
    table = table.filter(pc.field("path").isin(path_N.combine_chunks()))
    if not table.column("path").equals(path_N):
        raise ValueError(
            f"{job.features or 'the data'}: not the {len(path_N)} training images of {of.folder}; extract them by "
            "`reid extract --split train` with the --data of the run"
        )
    return table


def _extracted(
    job: PictureJob, of: SavedRun, split: Literal["train", "test"] = "train"
) -> pa.Table:
    with tempfile.TemporaryDirectory(prefix="reid-features-") as folder:
        out = str(Path(folder) / "features.parquet")
        data, layout = _data(job, of)
        weights = of.weights()
        extract.run(
            extract.ExtractJob(data=data, layout=layout, out=out, weights=weights, split=split)
        )
        return read_features(out)


def _supports(of: SavedRun, x_ND: Tensor, label_N: Tensor, row_M: np.ndarray) -> Tensor:
    """Support samples (M, K, D) of clustered images, as ise draws them when the next round starts; else K = 0.

    Those of other runs are none. ``random`` directions are drawn anew, they lie in no file.
    """
    if of.method != "ise":
        return x_ND.new_empty(len(row_M), 0, x_ND.shape[1])
    saved = of.job["method"]
    names = ("supports", "direction", "degree", "lam0")
    config = ise.Config(**{name: saved[name] for name in names})
    memory_CD = centroids(x_ND, label_N, int(label_N.max()) + 1)
    g = generator(of.job["seed"], "direction")
    draw = partial(torch.rand, len(row_M), len(memory_CD), generator=g)
    progress = of.evaluated / saved["rounds"]
    return ise.supports(config, x_ND[row_M], label_N[row_M], memory_CD, progress, draw)


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid picture``."""
    run(tyro.cli(PictureJob, args=argv, prog="reid picture"))
    return 0
