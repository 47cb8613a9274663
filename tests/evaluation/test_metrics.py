import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from reid_core.evaluation.metrics import evaluate, evaluate_in_tasks, score
from reid_core.evaluation.ranking import Images, MatchRanks
from reid_core.labelling.tasks import InProcess
from tests.reference import ranking as reference
from tests.reference.features import people


def random_images(feature: np.ndarray, seed: int) -> Images:
    rng, count = np.random.default_rng(seed), len(feature)
    return Images(
        image_id=np.arange(count),
        feature=feature,
        pid=rng.integers(-1, 20, count),
        camid=rng.integers(-1, 4, count),
        tracklet=np.full(count, -1),
    )


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference(seed: int) -> None:
    feature = people(600, seed=seed, copies=60)
    query, gallery = random_images(feature[:150], seed), random_images(feature[150:], seed + 9)
    found = evaluate(query, gallery)
    expected = reference.match_ranks(query, gallery, "same_camera")
    assert found.accuracies() == pytest.approx(reference.accuracies(expected), abs=1e-6)
    assert found.queries == sum(len(ranks) > 0 for ranks in expected)
    assert found.queries + found.dropped == 150


@pytest.mark.parametrize("queries", [1, 40, 149, 150, 1000])
def test_tasks_of_a_few_queries_change_nothing(
    queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = people(400, copies=60)
    query, gallery = random_images(feature[:150], 0), random_images(feature[150:], 9)
    monkeypatch.setattr("reid_core.evaluation.metrics.QUERIES", queries)
    found, expected = evaluate_in_tasks(query, gallery, InProcess()), evaluate(query, gallery)
    assert found.accuracies() == expected.accuracies()
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)


def test_average_precision_is_that_of_scikit_learn() -> None:
    """Without equal products, which scikit-learn ranks as one."""
    feature = people(400)
    query, gallery = random_images(feature[:50], 0), random_images(feature[50:], 1)
    found = evaluate(query, gallery, camera_filter="none").average_precision
    valid = gallery.pid != -1
    for q in range(50):
        match = gallery.pid[valid] == query.pid[q]
        if query.pid[q] < 1:
            assert np.isnan(found[q])
        else:
            similarity = gallery.feature[valid] @ query.feature[q]
            assert found[q] == pytest.approx(average_precision_score(match, similarity))


def test_by_hand() -> None:
    """Matches at ranks 1, 3 and 6; at 7; none."""
    found = score(MatchRanks(begin=np.array([0, 3, 4, 4]), rank=np.array([1, 3, 6, 7])))
    assert found.mAP == pytest.approx(((1 + 2 / 3 + 3 / 6) / 3 + 1 / 7) / 2)
    assert found.mINP == pytest.approx((3 / 6 + 1 / 7) / 2)
    assert (found.rank1, found.rank5, found.rank10) == (0.5, 0.5, 1.0)
    assert (found.queries, found.dropped) == (2, 1)
    np.testing.assert_allclose(found.average_precision, [(1 + 2 / 3 + 0.5) / 3, 1 / 7, np.nan])


def test_no_ids_no_accuracies() -> None:
    feature = people(30)
    unknown = {"pid": np.zeros(15, np.int64), "camid": np.arange(15), "tracklet": np.arange(15)}
    query, gallery = (
        Images(image_id=np.arange(15), feature=part, **unknown)
        for part in (feature[:15], feature[15:])
    )
    found = evaluate(query, gallery)
    assert found.accuracies() == dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10"))
    assert (found.queries, found.dropped) == (0, 15)


def test_perfect_ranking_scores_1() -> None:
    feature = np.repeat(np.eye(4, dtype=np.float32), 3, axis=0)
    pid = np.repeat([5, 6, 7, 8], 3)
    sides = [
        Images(image_id=np.arange(12), feature=feature, pid=pid, camid=cam, tracklet=cam)
        for cam in (np.zeros(12), np.ones(12))
    ]
    assert set(evaluate(*sides).accuracies().values()) == {1.0}
