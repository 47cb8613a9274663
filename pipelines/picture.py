"""``reid picture RUN --what hierarchy|tsne|quality``: pictures of what a run learnt.

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
from reid_core.labels import Labels
from reid_core.memory.classes import centroids
from reid_core.methods import ise
from reid_core.seeding import generator
from reid_core.storage import exists, join, write_bytes
from reid_core.tables import IMAGES, LABELS, feature_matrix, read_features, read_table
from reid_core.visualisation.hierarchy import hierarchy_figure, members, most_divided
from reid_core.visualisation.png import png
from reid_core.visualisation.quality import quality_figure
from reid_core.visualisation.tsne import tsne_figure, tsne_map

HIERARCHY_CLUSTERS, TSNE_CLUSTERS = 3, 10  # drawn where none are asked for
MEANT_FOR = {
    "clusters": ("hierarchy", "tsne"),
    "most": ("hierarchy", "tsne"),
    "images": ("hierarchy",),
    "ids": ("tsne",),
    "features": ("tsne",),
    "seed": ("tsne",),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PictureJob:
    """Draw a run as of its last evaluation, or the quality of labels of several runs side by side."""

    runs: Positional[tuple[str, ...]]
    """Folder of a run, STORAGE/NAME: a path or a URI; several for quality."""
    what: Literal["hierarchy", "tsne", "quality"]
    """hierarchy: images of coarse clusters by level (hcd); tsne: a map of features, with the support samples of
    ise; quality: mAP and agreement of labels and true ids by round."""
    out: str = ""
    """PNG to write; RUN/WHAT.png of the first run when empty."""
    clusters: tuple[int, ...] = ()
    """Numbers of the clusters to draw, of the coarsest level; the most divided for hierarchy and the largest
    for tsne when not given."""
    ids: tuple[int, ...] = ()
    """Draw and colour the images of these true ids instead, for tsne."""
    most: int = 32
    """Images of a cluster that are drawn, evenly chosen from more."""
    images: bool = False
    """Show the images themselves, for hierarchy; coloured tiles with image ids otherwise."""
    data: str = ""
    """Root of the run's images where they have moved."""
    features: str = ""
    """FEATURES table of the run's training images and last weights, for tsne; extracted when empty."""
    seed: int = 0
    """Of the map."""


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
        picture = (_hierarchy if job.what == "hierarchy" else _tsne)(job, runs[0])
    out = job.out or join(runs[0].folder, f"{job.what}.png")
    write_bytes(out, picture)
    logger.info("%s", out)
    return out


def check(job: PictureJob) -> None:
    """Refuse flags that do not go together."""
    if not job.runs:
        raise UsageError("RUN is missing: give STORAGE/NAME of `reid train`")
    if len(job.runs) > 1 and job.what != "quality":
        raise UsageError(f"--what {job.what} draws one run; {len(job.runs)} were given")
    for name, pictures in MEANT_FOR.items():
        if job.what not in pictures and getattr(job, name) != getattr(PictureJob, name):
            raise UsageError(f"--{name} is for --what {' and '.join(pictures)}; leave it out")
    if job.clusters and job.ids:
        raise UsageError("--clusters and --ids exclude each other")
    if job.data and not (job.images or (job.what == "tsne" and not job.features)):
        raise UsageError(
            "--data has no use here: it is read for --images, and for tsne without --features"
        )
    if job.most < 2:
        raise UsageError(f"--most {job.most}; must be at least 2, 32 is usual")


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
    drawn = {cluster: _thinned(members(labels.label, cluster), job.most) for cluster in chosen}
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
    parts = [_thinned(np.flatnonzero(group_N == group), job.most) for group in chosen]
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
    job: PictureJob, of: SavedRun, row_M: np.ndarray, path_N: pa.ChunkedArray
) -> dict[int, np.ndarray]:
    """The images (height, width, 3) uint8 by row, as large as the network sees them."""
    size = of.job["method"]["images"]
    store = ImageStore(scan(*_data(job, of)).root)
    return {
        row: load(store, path_N[row].as_py(), size["height"], size["width"])
        .permute(1, 2, 0)
        .numpy()
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


def _extracted(job: PictureJob, of: SavedRun) -> pa.Table:
    with tempfile.TemporaryDirectory(prefix="reid-features-") as folder:
        out = str(Path(folder) / "features.parquet")
        data, layout = _data(job, of)
        extract.run(extract.ExtractJob(data=data, layout=layout, out=out, weights=of.weights()))
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
