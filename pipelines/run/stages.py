"""The Ray tasks over all ranks' parts: features to LABELS, features to an evaluation.

A part is one rank's rows: for each name (``target``, ``source``, ``test``) image ids (m,) and features (m, D).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reid_core import method as contract
from reid_core.evaluation.metrics import evaluate_in_tasks
from reid_core.evaluation.ranking import CameraFilter, Images
from reid_core.labelling.engine import Engine
from reid_core.labelling.given import given_labels
from reid_core.labelling.guard import Guard, guarded_labels
from reid_core.labelling.tasks import Tasks
from reid_core.labels import Features, Labels
from reid_core.storage import exists, join
from reid_core.tables import LABELS, features_table, read_table, write_table

Part = dict[str, tuple[np.ndarray, np.ndarray]]


def merge(parts: list[Part], name: str, image_id: np.ndarray) -> np.ndarray:
    """The rows of all parts in the order of ``image_id`` (N,), which must be exactly theirs: (N, D) float32.

    Raises:
        RuntimeError: rows were lost or doubled on the way.
    """
    found = np.concatenate([part[name][0] for part in parts])
    order = np.argsort(found, kind="stable")
    if not np.array_equal(found[order], image_id):
        raise RuntimeError(
            f"{name}: {len(found)} feature rows ({len(np.unique(found))} different) for {len(image_id)} images; "
            "Ray lost or doubled rows, please report it"
        )
    feature = np.concatenate([part[name][1] for part in parts])
    return feature if (order == np.arange(len(order))).all() else feature[order]


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """What the label stages of a run have in common."""

    method: str  # its name; says where the labels of a round come from
    config: Any  # its Config
    folder: str  # of the run (path or URI); see ``labels_path``
    guard: Guard  # what labels found by clustering or kept by a method may look like, and what else happens
    engine: Engine  # what computes the labels, and where


def label_stage(
    parts: list[Part], *, run: Labelling, images: dict[str, pa.Table], number: int
) -> dict[str, Any]:
    """Cluster the target rows, write the LABELS table, and return what every rank needs for its round.

    Args:
        parts: of all ranks; with ``group`` (m, L), any cluster numbers, where the labels are given.
        run: what the rounds have in common.
        images: IMAGES sorted by id, of ``target`` and of ``source`` where there is one.
        number: of the round.

    Returns:
        ``labels`` and, for each name in the parts, its features in ``image_id`` order.

    Raises:
        ValueError: the method or the guard refuses the labels; says what to change.
    """
    names = [name for name in images if all(name in part for part in parts)]
    feature = {n: merge(parts, n, images[n].column("image_id").to_numpy()) for n in names}
    before = None
    if number:
        previous = labels_path(run.folder, number - 1)
        if not exists(previous):
            raise ValueError(
                f"{previous}: missing, and needed to go on; restore it or start under another --name"
            )
        before = Labels.from_table(read_table(previous, LABELS), previous)
    method, config = contract.load(run.method), run.config
    image_id = images["target"].column("image_id").to_numpy()
    source = contract.labels_from(method, config, number)
    if source in ("extracted", "memory"):
        features = Features(image_id=image_id, feature=feature["target"], engine=run.engine)
        labels = guarded_labels(
            lambda config: method.assign_labels(config, features, before),
            config,
            before,
            run.guard,
            f"round {number}",
        )
    elif source == "keep" and before:
        now = given_labels(image_id, before.label, feature.get("target"), config, run.engine)
        labels = replace(before, metrics=now.metrics)
    else:
        group = merge(parts, "group", image_id)
        labels = given_labels(image_id, group, feature.get("target"), config, run.engine)
        if source == "online":
            policy = "stop" if run.guard.policy == "stop" else "warn"  # nothing to cluster anew
            mild = replace(run.guard, policy=policy)
            labels = guarded_labels(lambda _: labels, config, before, mild, f"round {number}")
    write_table(label_table(labels, images["target"]), labels_path(run.folder, number))
    return {"labels": labels, "feature": feature}


def labels_path(folder: str, number: int) -> str:
    """Where the LABELS table of a round lies."""
    return join(folder, "labels", f"round-{number:04d}.parquet")


def label_table(labels: Labels, images: pa.Table) -> pa.Table:
    """LABELS and beside it, for people: ``path``, ``camid``, ``kind`` and ``distance``.

    ``kind`` is core, border or outlier; ``distance`` 1 - cosine to the cluster mean, null for outliers.
    The first two are those of ``images``, sorted by id, as far as it has them.
    """
    table = labels.table()
    levels = labels.label.shape[1]
    for name in ("path", "camid"):
        if name in images.column_names:
            column = pa.chunked_array([images.column(name).combine_chunks()] * levels)
            table = table.append_column(images.schema.field(name), column)
    label, is_core, sure = (
        a.T.reshape(-1) for a in (labels.label, labels.is_core, labels.confidence)
    )
    kind = pa.array(np.select([label < 0, is_core], ["outlier", "core"], "border"))
    distance = pa.array(2 - 2 * sure, mask=label < 0)
    return table.append_column("kind", [kind]).append_column("distance", [distance])


def evaluation_stage(
    parts: list[Part], *, images: pa.Table, camera_filter: CameraFilter, tasks: Tasks
) -> dict[str, float | None]:
    """Rank the gallery for every query; ``images`` are those of query and gallery, sorted by id."""
    image_id = images.column("image_id").to_numpy()
    table = features_table(images, image_id, merge(parts, "test", image_id))
    query, gallery = (
        Images.from_table(table.filter(pc.field("split") == split))
        for split in ("query", "gallery")
    )
    return evaluate_in_tasks(query, gallery, tasks, camera_filter=camera_filter).accuracies()
