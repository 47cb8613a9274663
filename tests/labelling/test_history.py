import itertools

import numpy as np
import pytest

from reid_core.errors import UsageError
from reid_core.labelling.history import compare
from reid_core.labels import Labels


def labels(*levels: list[int] | np.ndarray, image_id: list[int] | None = None) -> Labels:
    label = np.array(levels, np.int64).T
    return Labels(
        image_id=np.arange(len(label)) if image_id is None else np.array(image_id),
        label=label,
        is_core=label >= 0,
        confidence=np.ones(label.shape, np.float32),
    )


def random_labels(count: int, clusters: int, rng: np.random.Generator) -> Labels:
    image_id = np.sort(rng.choice(2 * count, size=count, replace=False)).tolist()
    return labels(rng.integers(-1, clusters, size=count), image_id=image_id)


def test_the_same_table() -> None:
    label = [0, 0, 1, 1, -1, 2, 2]
    changes = compare(labels(label), labels(label))
    assert changes.label.tolist() == label
    assert changes.kept.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert len(changes.births) == len(changes.deaths) == 0
    assert changes.merges == changes.splits == {}


def test_births_deaths_merges_and_splits_by_hand() -> None:
    """0 and 1 merge into 0; 2 splits into 1 and 3; 3 dies; former outliers make 2."""
    before = labels([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3, -1, -1])
    after = labels([0, 0, 0, 0, 0, 1, 1, 1, 3, 3, -1, -1, 2, 2])
    changes = compare(before, after)
    assert changes.merges == {0: [0, 1]}
    assert changes.splits == {2: [1, 3]}
    assert changes.births.tolist() == [2]
    assert changes.deaths.tolist() == [3]
    assert changes.kept.tolist() == [[0, 0], [2, 1]]
    assert changes.label.tolist() == [0] * 5 + [2] * 3 + [5] * 2 + [-1] * 2 + [4] * 2


def test_only_common_images_count() -> None:
    """Image 9 of A and images 4, 5 of B are alone; cluster 1 of B has no common image."""
    before = labels([0, 0, 1, 1], image_id=[1, 2, 3, 9])
    after = labels([0, 0, 0, 1, 1], image_id=[1, 2, 3, 4, 5])
    changes = compare(before, after)
    assert (changes.common, changes.only_before, changes.only_after) == (3, 1, 2)
    assert changes.births.tolist() == [1]
    assert changes.deaths.tolist() == []
    assert changes.merges == {0: [0, 1]}
    assert changes.label.tolist() == [0, 0, 0, 2, 2]


def test_exactly_half_is_no_majority() -> None:
    changes = compare(labels([0, 0, 0, 0, 1, 1]), labels([0, 0, 1, 1, 1, 1]))
    assert changes.merges == {}
    assert changes.kept.tolist() == [[0, 0], [1, 1]]


def test_greedy_matching_would_lose_images() -> None:
    """The largest overlap, 0 with 0 (5), would leave 1 with nothing: 4 + 4 is more."""
    before = labels([0] * 9 + [1] * 4)
    after = labels([0] * 5 + [1] * 4 + [0] * 4)
    assert compare(before, after).kept.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("seed", range(30))
def test_no_other_matching_keeps_more_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = (random_labels(30, int(rng.integers(1, 6)), rng) for _ in range(2))
    overlap = np.zeros((6, 6), int)
    of_a = dict(zip(before.image_id.tolist(), before.label[:, 0].tolist(), strict=True))
    for image, b in zip(after.image_id.tolist(), after.label[:, 0].tolist(), strict=True):
        if b >= 0 and of_a.get(image, -1) >= 0:
            overlap[of_a[image], b] += 1
    best = max(
        sum(overlap[a, b] for a, b in enumerate(order))
        for order in itertools.permutations(range(6))
    )
    kept = compare(before, after).kept
    assert overlap[kept[:, 0], kept[:, 1]].sum() == best
    assert (overlap[kept[:, 0], kept[:, 1]] > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_invariants(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = random_labels(400, 40, rng), random_labels(400, 30, rng)
    there, back = compare(before, after), compare(after, before)
    pairs = set(zip(after.label[:, 0].tolist(), there.label.tolist(), strict=True))
    assert len(pairs) == len({b for b, _ in pairs}) == len({number for _, number in pairs})
    assert (-1, -1) in pairs
    assert set(map(tuple, there.kept[:, ::-1].tolist())) <= pairs
    assert there.births.tolist() == back.deaths.tolist()
    assert there.merges == back.splits
    assert there.splits == back.merges


def test_thousands_of_clusters() -> None:
    rng = np.random.default_rng(0)
    old = np.arange(30_000) // 10
    moved = rng.random(30_000) < 0.1
    new = np.where(moved, rng.integers(3000, size=30_000), rng.permutation(3000)[old])
    changes = compare(labels(old), labels(new))
    assert (changes.label == old).mean() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("label", [[-1, -1, -1], [0, 0, -1]])
def test_without_clusters_on_one_side(label: list[int]) -> None:
    none = labels([-1, -1, -1])
    assert compare(none, labels(label)).label.tolist() == label
    assert compare(labels(label), none).label.tolist() == [-1, -1, -1]
    assert len(compare(labels(label), none).deaths) == max(label) + 1


def test_tables_without_a_common_image() -> None:
    changes = compare(labels([4, 4]), labels([0, 0], image_id=[7, 8]))
    assert changes.label.tolist() == [5, 5]
    assert changes.births.tolist() == [0]
    assert changes.deaths.tolist() == [4]


def test_levels() -> None:
    before, after = labels([0, 0, 1, 1], [3, 3, 3, 3]), labels([0, 0, 1, 1], [0, 0, 0, 0])
    assert compare(before, after, level=1).label.tolist() == [3, 3, 3, 3]
    for level in (-1, 2):
        with pytest.raises(UsageError, match="0 to 1"):
            compare(before, after, level=level)
