"""The stages over the parts of all ranks: features to LABELS, features to an evaluation. N images, D feature size."""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.run.job import RunSpec
from pipelines.run.place import Part
from reid_core import method as contract
from reid_core.evaluation.metrics import evaluate_in_tasks
from reid_core.evaluation.ranking import CameraFilter, Images
from reid_core.labelling.given import given_labels
from reid_core.labelling.guard import guarded_labels
from reid_core.labelling.tasks import Tasks
from reid_core.labels import Features, Labels
from reid_core.method import LabelSource
from reid_core.storage import exists, join
from reid_core.tables import LABELS, features_table, read_table, write_table


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


class Source(NamedTuple):
    """How the labels of a round come about; ``method.labels_from`` names one."""

    # What a rank hands in: rows that it embeds now, or those of a memory where there is one ...
    rows: Literal["extracted", "memory"]
    group: bool  # ... and cluster numbers beside them
    made_by: Literal["method", "round before", "group"]
    back: bool  # whether the rows of all ranks come back to each, for ``begin_round``


SOURCES: dict[LabelSource, Source] = {
    "extracted": Source(rows="extracted", group=False, made_by="method", back=True),
    "memory": Source(rows="memory", group=False, made_by="method", back=False),
    "online": Source(rows="memory", group=True, made_by="group", back=False),
    "keep": Source(rows="memory", group=False, made_by="round before", back=False),
    "none": Source(rows="memory", group=True, made_by="group", back=False),
    "ids": Source(rows="extracted", group=True, made_by="group", back=True),
}


def label_stage(
    parts: list[Part], *, run: RunSpec, images: dict[str, pa.Table], number: int
) -> tuple[Labels, dict[str, np.ndarray]]:
    """Label the target images, write the LABELS table, and return what every rank needs for its round.

    Args:
        parts: of all ranks: ``target``, ``source`` and ``group`` (m, L), as ``SOURCES`` says.
        run: what the rounds have in common.
        images: IMAGES sorted by id, of ``target`` and of ``source`` where there is one.
        number: of the round.

    Returns:
        The labels, and by name the features in ``image_id`` order where they come back to the ranks.

    Raises:
        ValueError: the method or the guard refuses the labels; says what to change.
    """
    method = contract.load(run.method)
    name = contract.labels_from(method, run.config, number)
    names = set(images).intersection(*parts)
    feature = {n: merge(parts, n, images[n].column("image_id").to_numpy()) for n in names}
    labels = _labels(parts, feature.get("target"), run, images["target"], number)
    write_table(label_table(labels, images["target"]), labels_path(run.folder, number))
    return labels, feature if SOURCES[name].back else {}


def _labels(
    parts: list[Part], feature: np.ndarray | None, run: RunSpec, images: pa.Table, number: int
) -> Labels:
    """The labels of the target images, whose rows are ``feature`` (N, D) where there are any."""
    method, config, guard = contract.load(run.method), run.config, run.job.guard
    before = labels_before(run.folder, number)
    image_id = images.column("image_id").to_numpy()
    name = contract.labels_from(method, config, number)
    made_by = SOURCES[name].made_by
    if made_by == "method":
        assert feature is not None, f"{run.method}: labels_from says {name!r} and there are no rows"
        features = Features(image_id=image_id, feature=feature, engine=run.engine)
        return guarded_labels(
            lambda config: method.assign_labels(config, features, before),
            config,
            before,
            guard,
            f"round {number}",
        )
    if made_by == "round before":
        assert before is not None, f"{run.method}: nothing to keep before round {number}"
        now = given_labels(image_id, before.label, feature, config, run.engine)
        return replace(before, metrics=now.metrics)
    group = merge(parts, "group", image_id)
    labels = given_labels(image_id, group, feature, config, run.engine)
    if name != "online":
        return labels
    policy = "stop" if guard.policy == "stop" else "warn"  # nothing to cluster anew
    mild = replace(guard, policy=policy)
    return guarded_labels(lambda _: labels, config, before, mild, f"round {number}")


def labels_before(folder: str, number: int) -> Labels | None:
    """The labels of the round before; None in the first one.

    Raises:
        ValueError: their table is gone.
    """
    if not number:
        return None
    path = labels_path(folder, number - 1)
    if not exists(path):
        raise ValueError(
            f"{path}: missing, and needed to go on; restore it or start under another --name"
        )
    return Labels.from_table(read_table(path, LABELS), path)


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
