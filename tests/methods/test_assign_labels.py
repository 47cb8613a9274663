"""What the label stage of the methods refuses, and what it only warns of."""

import logging

import numpy as np
import pytest

from pipelines.stages import warn_of_bad_labels
from reid_core import method as contract
from reid_core.method import Features


def features(groups: int, members: int) -> Features:
    """Tight groups in orthogonal directions."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(groups, 16), members, axis=0) + rng.normal(
        0, 0.01, (groups * members, 16)
    )
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Features(image_id=np.arange(len(unit)), feature=unit)


def config(name: str, **changes: float) -> object:
    return contract.load(name).Config(k1=8, k2=3, **changes)


def test_cluster_contrast_labels_groups() -> None:
    method = contract.load("cluster_contrast")
    labels = method.assign_labels(config("cluster_contrast", eps=0.5), features(4, 10), None)
    assert labels.label[:, 0].tolist() == np.repeat(range(4), 10).tolist()


@pytest.mark.parametrize(("min_samples", "word"), [(3, "lower"), (50, "raise")])
def test_cluster_contrast_needs_two_clusters(min_samples: int, word: str) -> None:
    method = contract.load("cluster_contrast")
    with pytest.raises(ValueError, match=f"nothing to contrast; {word} --method.eps"):
        method.assign_labels(
            config("cluster_contrast", eps=0.5, min_samples=min_samples), features(1, 8), None
        )


def test_hybrid_memory_takes_outliers_alone() -> None:
    method = contract.load("hybrid_memory")
    labels = method.assign_labels(
        config("hybrid_memory", eps=0.5, min_samples=50), features(1, 8), None
    )
    assert (labels.label == -1).all()


@pytest.mark.parametrize(
    ("metrics", "word"),
    [
        ({"clusters": 0.0, "outliers": 1.0, "largest": 0.0}, "no clusters"),
        ({"clusters": 3.0, "outliers": 0.99, "largest": 0.0}, "nearly all"),
        ({"clusters": 3.0, "outliers": 0.1, "largest": 0.8}, "one cluster"),
        ({"clusters": 30.0, "outliers": 0.1, "largest": 0.1}, ""),
    ],
)
def test_bad_labels_are_told(
    caplog: pytest.LogCaptureFixture, metrics: dict[str, float], word: str
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_bad_labels(metrics)
    assert word in caplog.text
    assert bool(caplog.records) == bool(word)
