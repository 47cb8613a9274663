"""What labels the methods give, and what they cannot train on."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN
from torch import nn

from reid_core import method as contract
from reid_core.batch import Domain, Round, Sizes
from reid_core.labels import Features
from tests.reference.features import people


def features(groups: int, members: int) -> Features:
    """Tight groups in orthogonal directions."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(groups, 16), members, axis=0) + rng.normal(
        0, 0.01, (groups * members, 16)
    )
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Features(image_id=np.arange(len(unit)), feature=unit)


def config(name: str, **changes: float | str) -> object:
    return contract.load(name).Config(k1=8, k2=3, **changes)


def test_cluster_contrast_labels_groups() -> None:
    method = contract.load("cluster_contrast")
    labels = method.assign_labels(config("cluster_contrast", eps=0.5), features(4, 10), None)
    assert labels.label[:, 0].tolist() == np.repeat(range(4), 10).tolist()


@pytest.mark.parametrize(("distance", "eps"), [("euclidean", 0.9), ("cosine", 0.405)])
def test_cluster_contrast_takes_other_distances(distance: str, eps: float) -> None:
    given = Features(image_id=np.arange(200), feature=people(200))
    changes = {"distance": distance, "eps": eps, "min_samples": 3}
    method = contract.load("cluster_contrast")
    labels = method.assign_labels(config("cluster_contrast", **changes), given, None)
    want = DBSCAN(eps=eps, min_samples=3, metric=distance, algorithm="brute").fit(given.feature)
    assert labels.label[:, 0].tolist() == want.labels_.tolist()
    assert np.flatnonzero(labels.is_core).tolist() == want.core_sample_indices_.tolist()
    assert labels.label.max() > 2
    assert (labels.label < 0).any()
    assert "label_free" not in labels.metrics


@pytest.mark.parametrize("clusters", [0, 1])
def test_cluster_contrast_needs_two_clusters(clusters: int) -> None:
    method = contract.load("cluster_contrast")
    objective = method.Objective(config("cluster_contrast"), nn.Identity(), Sizes(8, 0, 16))
    target = Domain(
        image_id=torch.arange(8),
        camid=torch.zeros(8, dtype=torch.int64),
        label=torch.full((8, 1), clusters - 1),
        feature=torch.from_numpy(features(1, 8).feature),
    )
    start = Round(number=0, rounds=1, step=0, target=target, source=None)
    with pytest.raises(ValueError, match=f"{clusters} clusters: nothing to contrast"):
        objective.begin_round(start)  # type: ignore[operator]


def test_hybrid_memory_takes_outliers_alone() -> None:
    method = contract.load("hybrid_memory")
    labels = method.assign_labels(
        config("hybrid_memory", eps=0.5, min_samples=50), features(1, 8), None
    )
    assert (labels.label == -1).all()
