"""The Ray tasks over all ranks' parts: features to LABELS, features to an evaluation.

A part is one rank's rows: for each name (``target``, ``source``, ``test``) image ids (m,) and features (m, D).
"""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reid_core import method as contract
from reid_core.evaluation.metrics import evaluate
from reid_core.evaluation.ranking import CameraFilter, Images
from reid_core.method import Features, Labels
from reid_core.storage import exists
from reid_core.tables import LABELS, features_table, read_table, write_table

MANY_OUTLIERS = 0.95  # shares of all images; published runs start with up to 0.88 outliers
ONE_CLUSTER = 0.5
logger = logging.getLogger(__name__)

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


def label_stage(
    parts: list[Part],
    *,
    method: str,
    config: Any,
    images: dict[str, pa.Table],
    out: str,
    previous: str | None,
) -> dict[str, Any]:
    """Cluster the target rows, write the LABELS table, and return what every rank needs for its round.

    Args:
        parts: of all ranks.
        method: name of the method whose ``assign_labels`` is called.
        config: its Config.
        images: IMAGES sorted by id, of ``target`` and of ``source`` where there is one.
        out: where the LABELS table goes (path or URI).
        previous: the LABELS table of the round before, if any.

    Returns:
        ``labels`` and, for each name in the parts, its features in ``image_id`` order.
    """
    names = [name for name in images if all(name in part for part in parts)]
    feature = {n: merge(parts, n, images[n].column("image_id").to_numpy()) for n in names}
    before = None
    if previous and exists(previous):
        before = Labels.from_table(read_table(previous, LABELS), previous)
    target = Features(
        image_id=images["target"].column("image_id").to_numpy(), feature=feature["target"]
    )
    labels = contract.load(method).assign_labels(config, target, before)
    warn_of_bad_labels(labels.metrics)
    write_table(label_table(labels, images["target"]), out)
    return {"labels": labels, "feature": feature}


def warn_of_bad_labels(metrics: dict[str, float]) -> None:
    """Say what to change where hardly anything is clustered, or nearly everything together."""
    if metrics["clusters"] == 0:
        logger.warning("no clusters at all: raise --method.eps or lower --method.min-samples")
    elif metrics["outliers"] > MANY_OUTLIERS:
        logger.warning(
            "nearly all images are outliers: raise --method.eps or lower --method.min-samples"
        )
    elif metrics["largest"] > ONE_CLUSTER:
        logger.warning("one cluster holds most images: lower --method.eps")


def label_table(labels: Labels, images: pa.Table) -> pa.Table:
    """LABELS with ``path`` and ``camid`` of the images (sorted by id) beside it, for people."""
    table = labels.table()
    levels = labels.label.shape[1]
    for name in ("path", "camid"):
        column = pa.chunked_array([images.column(name).combine_chunks()] * levels)
        table = table.append_column(images.schema.field(name), column)
    return table


def evaluation_stage(
    parts: list[Part], *, images: pa.Table, camera_filter: CameraFilter
) -> dict[str, float | None]:
    """Rank the gallery for every query; ``images`` are those of query and gallery, sorted by id."""
    image_id = images.column("image_id").to_numpy()
    table = features_table(images, image_id, merge(parts, "test", image_id))
    query, gallery = (
        Images.from_table(table.filter(pc.field("split") == split))
        for split in ("query", "gallery")
    )
    return evaluate(query, gallery, camera_filter=camera_filter).accuracies()
