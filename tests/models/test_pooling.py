import pytest
import torch

from reid_core.models.pooling import POOLINGS, Average, GeneralisedMean


def test_average_by_hand() -> None:
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert Average()(x).tolist() == [[1.5, 5.5]]


def test_generalised_mean_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    assert GeneralisedMean()(x).item() == pytest.approx((100 / 4) ** (1 / 3))
    assert GeneralisedMean(p=1.0)(x).item() == pytest.approx(2.5)


def test_generalised_mean_lies_between_mean_and_maximum() -> None:
    x = torch.rand(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
    low, high = x.mean((2, 3)), x.amax((2, 3))
    for p in (2.0, 3.0, 8.0):
        pooled = GeneralisedMean(p=p)(x)
        assert (low <= pooled).all()
        assert (pooled <= high).all()
        low = pooled  # it grows with p


def test_the_power_is_learnt_and_zeros_have_a_finite_gradient() -> None:
    pool = GeneralisedMean()
    x = torch.zeros(2, 3, 4, 2, requires_grad=True)
    (pool(x).sum() + pool(torch.rand(2, 3, 4, 2)).sum()).backward()
    assert [name for name, _ in pool.named_parameters()] == ["p"]
    assert pool.p.grad.isfinite().all()
    assert pool.p.grad.abs() > 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(pooling: str, dtype: torch.dtype) -> None:
    assert POOLINGS[pooling]().to(dtype)(torch.ones(2, 3, 4, 2, dtype=dtype)).dtype == dtype


def test_powers_of_a_half_precision_map_do_not_overflow() -> None:
    x = torch.full((1, 1, 2, 2), 60000.0, dtype=torch.float16)
    assert GeneralisedMean()(x).item() == pytest.approx(60000, rel=1e-3)
