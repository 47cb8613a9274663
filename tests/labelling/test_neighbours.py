import sys

import numpy as np
import pytest
import torch

from reid_core.errors import UsageError
from reid_core.labelling import screens
from reid_core.labelling.neighbours import merge_neighbours, nearest, nearest_between
from tests.reference import jaccard as reference
from tests.reference.features import normalised, people


def assert_exact(feature: np.ndarray, k: int, **options: str) -> None:
    row, similarity = nearest(feature, k, **options)
    expected_row, expected_similarity = reference.nearest(feature, k)
    np.testing.assert_array_equal(row, expected_row)
    np.testing.assert_array_equal(similarity, expected_similarity)


@pytest.mark.parametrize("backend", ["auto", *screens.BACKENDS])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (7, 7), (40, 30), (700, 30)])
def test_equals_all_products_at_once(backend: str, count: int, k: int) -> None:
    assert_exact(people(count, copies=count // 10), k, backend=backend)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_tiles_give_the_same(monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    monkeypatch.setattr(screens, "TILE", 96)
    monkeypatch.setattr(screens, "has_bfloat16", lambda: bfloat16)
    assert_exact(people(700, copies=50), 10)


@pytest.mark.parametrize("spread", [0.3, 0.05, 0.01])
def test_rows_that_are_much_alike(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, spread: float
) -> None:
    monkeypatch.setattr(screens, "TILE", 96)
    monkeypatch.setattr(screens, "has_bfloat16", lambda: True)
    rows = spread * people(700, copies=50)
    rows[:, 0] += 1
    feature = normalised(rows)
    assert (feature @ feature.T).mean() > 0.8
    with caplog.at_level("INFO"):
        assert_exact(feature, 10)
        found = nearest_between(feature[:500], feature[450:], 10)
    whole = feature[:500] @ feature[450:].T
    np.testing.assert_allclose(found[0].similarity, -np.sort(-whole)[:, :10], atol=1e-6)
    again = [int(r.getMessage().rsplit(", ", 1)[1].split()[0]) for r in caplog.records]
    assert max(again) < 100  # of 700 and 750 rows


def test_the_bound_of_centred_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rounding goes the same way here: values just below half a unit of bfloat16 in the last place."""
    monkeypatch.setattr(screens, "TILE", 32)
    monkeypatch.setattr(screens, "has_bfloat16", lambda: True)
    powers = 2.0 ** -np.array([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 7, 7])
    rest = (129 / 128 * 0.5 * powers * (1 - 0.4995 / 129)).astype(np.float32)
    feature = np.full((64, 13), 3549 / 4096, np.float32)
    feature[0::2, :12], feature[1::2, :12] = rest, -rest
    multiply, (slack, _), relative = screens._multiplier(feature, feature)
    product = np.empty((32, 32), np.float32)
    multiply(slice(0, 32), slice(0, 32), product)
    wide = feature[:32].astype(np.float64)
    error = np.abs(product - wide @ wide.T)
    assert relative == 0.0
    assert 0.002 < error.max() <= slack.min()


def test_row_blocks_of_a_device_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "BLOCK_VALUES", 20_000)

    def both(one: np.ndarray, two: np.ndarray, keep: int, device: torch.device) -> screens.Both:
        return screens._by_rows(one, two, keep, device), screens._by_rows(two, one, keep, device)

    monkeypatch.setitem(screens.BACKENDS, "torch", both)
    assert_exact(people(300, copies=30), 10, device="cpu")


@pytest.mark.gpu
def test_gpu_gives_the_same() -> None:
    assert_exact(people(5000, copies=50), 30, device="cuda")


@pytest.mark.parametrize("backend", screens.BACKENDS)
def test_more_copies_than_candidates_are_ordered_by_row(backend: str) -> None:
    feature = people(600, noise=0.01)
    feature[100:500] = feature[100]
    row = nearest(feature, 4, backend=backend).row
    np.testing.assert_array_equal(row[100:500], np.broadcast_to([100, 101, 102, 103], (400, 4)))
    assert_exact(feature, 4, backend=backend)


def test_by_hand() -> None:
    row, similarity = nearest(np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32), 2)
    assert row.tolist() == [[0, 2], [1, 2], [2, 0]]
    np.testing.assert_allclose(similarity, [[1, 0.8], [1, 0.6], [1, 0.8]], rtol=1e-6)


def test_threads_and_read_only_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "TILE", 64)
    feature = people(300)
    expected = nearest(feature, 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    feature.flags.writeable = False
    for found, want in zip(nearest(feature, 12), expected, strict=True):
        np.testing.assert_array_equal(found, want)


def test_wrong_rows_are_named() -> None:
    feature = people(20)
    feature[7, 3] = np.nan
    with pytest.raises(ValueError, match="row 7 has length nan"):
        nearest(feature, 3)
    with pytest.raises(ValueError, match="row 0 has length 2"):
        nearest(2 * people(20), 3)
    with pytest.raises(ValueError, match="float32"):
        nearest(people(20).astype(np.float64), 3)


@pytest.mark.parametrize("k", [0, 21])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=r"1\.\.20"):
        nearest(people(20), k)


def test_unknown_and_missing_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="auto, torch, faiss"):
        nearest(people(20), 3, backend="annoy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match="not installed"):
        nearest(people(20), 3, backend="faiss")


def test_negative_products() -> None:
    assert_exact(normalised(np.array([[1, 0.1], [-1, 0.2], [-0.9, -0.5], [0.2, -1]])), 4)


@pytest.mark.parametrize("backend", screens.BACKENDS)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_blocks_merge_to_the_whole(
    monkeypatch: pytest.MonkeyPatch, backend: str, bfloat16: bool
) -> None:
    monkeypatch.setattr(screens, "TILE", 64)
    monkeypatch.setattr(screens, "has_bfloat16", lambda: bfloat16)
    feature = people(300, copies=40)
    starts, k = [0, 120, 293], 10  # the last block has fewer rows than neighbours
    blocks = np.split(feature, starts[1:])
    parts: list[list] = [[], [], []]
    for i in range(3):
        for j in range(i, 3):
            first, second = nearest_between(blocks[i], blocks[j], k, backend=backend)
            parts[i].append((starts[j], first))
            if i != j:
                parts[j].append((starts[i], second))
    merged = [merge_neighbours(part, k) for part in parts]
    for name, whole in nearest(feature, k)._asdict().items():
        np.testing.assert_array_equal(np.concatenate([getattr(m, name) for m in merged]), whole)
