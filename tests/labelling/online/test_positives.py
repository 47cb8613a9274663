import math

import pytest
import torch
import torch.nn.functional as F

from reid_core.labelling.online import positives
from reid_core.labelling.online.positives import predict_positives
from tests.reference import snnet as reference

ANGLES = (0, 12, 40, 50, 55, 61, 120)


def circle() -> torch.Tensor:
    """methods.md 5.7: unit vectors at seven angles."""
    radians = [math.radians(a) for a in ANGLES]
    return torch.tensor([[math.cos(a), math.sin(a)] for a in radians], dtype=torch.float64)


def predict(memory: torch.Tensor, row: list[int], **settings: float) -> list[list[int]]:
    chosen = {"threshold": 0.6, "min_window": 10} | settings
    row_b = torch.tensor(row)
    mask = predict_positives(memory[row_b] @ memory.T, row_b, memory, **chosen)  # type: ignore[arg-type]
    return [found.nonzero()[:, 0].tolist() for found in mask]


@pytest.mark.parametrize(("window", "want"), [(1, [0, 1]), (10, [0, 1, 2, 3])])
def test_first_image_by_hand(window: int, want: list[int]) -> None:
    assert predict(circle(), [0], min_window=window) == [want]


@pytest.mark.parametrize("window", [1, 10])
def test_second_image_by_hand(window: int) -> None:
    assert predict(circle(), [1], min_window=window) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [1, 3, 10])
@pytest.mark.parametrize("chunk", [2, 64])
def test_equals_the_walk(
    seed: int, window: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positives, "CHUNK", chunk)
    memory = reference.unit_rows(40, 3, seed)
    row = list(range(0, 40, 3))
    found = predict(memory, row, min_window=window)
    assert found == [reference.positives(memory, i, 0.6, window) for i in row]
    assert any(len(labels) > 3 for labels in found)


@pytest.mark.parametrize("held", [1, 100, 2**25])
def test_blocks_do_not_change_the_result(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, row = reference.unit_rows(40, 3, 0), list(range(40))
    want = predict(memory, row)
    monkeypatch.setattr(positives, "HELD", held)
    assert predict(memory, row) == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_products_in_bfloat16_do_not_change_a_rank(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = reference.unit_rows(60, 5, seed).to(dtype)
    memory[7] = memory[8]  # equal rows rank equally
    memory[9] = 0  # never seen
    candidate, row = torch.arange(60).repeat_interleave(60), torch.arange(60).repeat(60)
    monkeypatch.setattr(positives, "FEW", 0)
    found = positives._screened_ranks(candidate, row, memory, memory.bfloat16())
    assert found is not None
    similarity = memory.double() @ memory.double().T
    more = similarity[:, None, :] - similarity[:, :, None]
    margin = 1e-6 if dtype == torch.float32 else 1e-12
    least, most = (more > margin).sum(dim=2).flatten(), (more > -margin).sum(dim=2).flatten()
    assert ((least <= found) & (found <= most)).all()
    if dtype == torch.float64:
        assert (found.view(60, 60)[:, 7] == found.view(60, 60)[:, 8]).all()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("few", [0, 64])
@pytest.mark.parametrize("units", [False, True])
def test_screened_or_not_is_the_same(
    seed: int, few: int, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, row = reference.unit_rows(300, 16, seed), list(range(0, 300, 7))
    monkeypatch.setattr(positives, "has_bfloat16", lambda _: units)
    monkeypatch.setattr(positives, "FEW", few)
    found = predict(memory, row, threshold=0.4, min_window=3)
    assert found == [reference.positives(memory, i, 0.4, 3) for i in row]


def test_a_product_in_bfloat16_is_off_by_less_than_is_allowed_for() -> None:
    memory = reference.unit_rows(500, 2048, 0).float()
    memory[250:] = F.normalize(memory[:250] + 0.01 * memory[250:], dim=1)
    coarse = memory.bfloat16()
    assert (memory @ memory.T - (coarse @ coarse.T).float()).abs().max() < positives.ERROR


def test_images_may_be_renumbered() -> None:
    memory = reference.unit_rows(30, 3, 7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    there = predict(memory[order], list(range(30)))
    back = {int(order[i]): sorted(order[labels].tolist()) for i, labels in enumerate(there)}
    assert [back[i] for i in range(30)] == predict(memory, list(range(30)))


@pytest.mark.parametrize("seed", range(3))
def test_positives_exceed_the_threshold_except_the_image_itself(seed: int) -> None:
    memory = reference.unit_rows(40, 4, seed)
    for image, labels in enumerate(predict(memory, list(range(40)), threshold=0.7)):
        assert image in labels
        assert all(memory[image] @ memory[j] > 0.7 for j in labels if j != image)


def test_an_image_never_seen_has_itself_alone() -> None:
    memory = reference.unit_rows(12, 3, 0)
    memory[4] = 0
    assert predict(memory, [4]) == [[4]]
    assert all(4 not in labels for labels in predict(memory, [0, 1, 2]))


def test_no_image_was_ever_seen() -> None:
    assert predict(torch.zeros(5, 3), [0, 3]) == [[0], [3]]


@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_a_limit_keeps_the_most_similar(limit: int) -> None:
    memory = reference.unit_rows(60, 8, 0, spread=0.3)
    found = predict(memory, list(range(60)), max_positives=limit)
    assert found == [reference.positives(memory, i, 0.6, 10, limit) for i in range(60)]
    assert max(map(len, found)) == limit


def test_of_equal_images_the_smaller_is_first() -> None:
    memory = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(4, dim=0)
    assert predict(memory, [3], max_positives=2) == [[0, 1, 3]]
