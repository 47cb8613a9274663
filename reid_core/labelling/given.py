"""LABELS of a grouping that is given: an objective's own bank, the true ids, the round before. N images."""

from typing import Any

import numpy as np

from reid_core.labelling.clusters import confidence, eps_graph, share_metrics, without_singles
from reid_core.labelling.engine import Engine
from reid_core.labelling.quality import label_free_score
from reid_core.labels import Labels

GRAPH: dict[str, Any] = {"eps": 0.6, "k1": 30, "k2": 6}  # that the label-free score is taken on


def given_labels(
    image_id: np.ndarray,
    group: np.ndarray,
    feature: np.ndarray | None,
    config: Any = None,
    engine: Engine | None = None,
) -> Labels:
    """Labels from any numbers: images with the same one belong together.

    Args:
        image_id: (N,) int64, increasing.
        group: (N, L) int, finest level first; negative for outliers.
        feature: (N, D) float32 unit rows, for confidence and score; without them both are absent:
            confidence 1 in clusters, 0 for outliers.
        config: its ``eps``, ``k1`` and ``k2``, where it has them, make the graph of the score.
        engine: what computes it, and where; in this process if not given.

    Returns:
        Clusters are numbered by their smallest image id, those of one image are outliers, all
        members are core. The metrics are those of the coarsest level.
    """
    label = np.stack([numbered(level) for level in group.T], axis=1)
    sure, metrics = (label >= 0).astype(np.float32), share_metrics(label[:, -1])
    if feature is not None:
        engine = engine or Engine()
        blocks = engine.blocks(feature)
        sure = np.stack([confidence(blocks, level, engine.tasks) for level in label.T], axis=1)
        chosen = {name: getattr(config, name, usual) for name, usual in GRAPH.items()}
        graph, _ = eps_graph(blocks, **chosen, engine=engine)
        metrics["label_free"] = label_free_score(graph, label[:, -1])
    return Labels(
        image_id=image_id, label=label, is_core=label >= 0, confidence=sure, metrics=metrics
    )


def numbered(group: np.ndarray) -> np.ndarray:
    """Contiguous cluster numbers (N,) by first member; -1 for groups of one and negative ones."""
    kept = np.flatnonzero(group >= 0)
    label = np.full(len(group), -1)
    _, first, which = np.unique(group[kept], return_index=True, return_inverse=True)
    label[kept] = np.argsort(np.argsort(first))[which]
    return without_singles(label, label >= 0)[0]
