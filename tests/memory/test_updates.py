import pytest
import torch
import torch.nn.functional as F

from reid_core.memory.updates import class_means, update_hardest, update_in_order
from tests.reference import memory as reference

ROWS, BATCH, DIM = 7, 24, 5
TWINS = [
    pytest.param(update_in_order, reference.update_in_order, id="all"),
    pytest.param(update_hardest, reference.update_hardest, id="hard"),
]


def random_case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(ROWS, DIM, generator=g, dtype=torch.float64), dim=1)
    x = F.normalize(torch.randn(BATCH, DIM, generator=g, dtype=torch.float64), dim=1)
    return rows, torch.randint(0, ROWS - 1, (BATCH,), generator=g), x


def two_features_of_one_row() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([0, 0]),
        torch.tensor([[0.8, 0.6], [0.6585, 0.7526]]),
    )


def test_all_by_hand() -> None:
    rows, row, x = two_features_of_one_row()
    update_in_order(rows, row, x, 0.2)
    torch.testing.assert_close(rows, torch.tensor([[0.7067, 0.7075]]), atol=1e-4, rtol=0)


def test_hard_by_hand() -> None:
    rows, row, x = two_features_of_one_row()
    update_hardest(rows, row, x, 0.2)
    torch.testing.assert_close(rows, torch.tensor([[0.7701, 0.6379]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("momentum", "want"), [(0.3, [0.7894, 0.6139]), (0.2, [0.7282, 0.6854])])
def test_instance_row_by_hand(momentum: float, want: list[float]) -> None:
    rows = torch.tensor([[1.0, 0.0]])
    update_in_order(rows, torch.tensor([0]), torch.tensor([[0.6, 0.8]]), momentum)
    torch.testing.assert_close(rows, torch.tensor([want]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("update", "twin"), TWINS)
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_twin(update, twin, seed: int) -> None:
    rows, row, x = random_case(seed)
    want = twin(rows, row, x, 0.2)
    update(rows, row, x, 0.2)
    torch.testing.assert_close(rows, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("update", "twin"), TWINS)
def test_rows_stay_unit_and_others_stay_put(update, twin) -> None:
    rows, row, x = random_case(9)
    before = rows.clone()
    update(rows, row, x, 0.1)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(ROWS, dtype=rows.dtype))
    assert torch.equal(rows[ROWS - 1], before[ROWS - 1])


def test_order_matters_for_all_and_not_for_hard() -> None:
    rows, row, x = random_case(3)
    back = torch.arange(BATCH - 1, -1, -1)
    moved = [rows.clone() for _ in range(4)]
    update_in_order(moved[0], row, x, 0.2)
    update_in_order(moved[1], row[back], x[back], 0.2)
    update_hardest(moved[2], row, x, 0.2)
    update_hardest(moved[3], row[back], x[back], 0.2)
    assert not torch.allclose(moved[0], moved[1])
    assert torch.equal(moved[2], moved[3])


@pytest.mark.parametrize(("update", "twin"), TWINS)
def test_empty_batch_changes_nothing(update, twin) -> None:
    rows, row, x = random_case(4)
    before = rows.clone()
    update(rows, row[:0], x[:0], 0.2)
    assert torch.equal(rows, before)


def test_class_means_leave_outliers_out_and_are_not_normalised() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    means = class_means(x, torch.tensor([0, 0, -1]), 2)
    assert means.tolist() == [[0.5, 0.5], [0.0, 0.0]]
