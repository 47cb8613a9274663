import pytest
import torch

from reid_core.losses.multilabel import mmcl, plain_pm1
from tests.reference import snnet as reference

SETTINGS = {"positive_weight": 5.0, "hard_share": 0.01}
Z = torch.tensor([[1.0, 0.8, 0.3, -0.1, 0.5]])
FIRST_TWO = torch.tensor([[True, True, False, False, False]])


def random_case(seed: int, count: int = 230) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    z = (2 * torch.rand(6, count, generator=g, dtype=torch.float64) - 1).requires_grad_()
    share = torch.rand(6, 1, generator=g)  # rows of few and of many positives
    positive = torch.rand(6, count, generator=g) < share
    positive[:, 0] = True
    return z, positive


@pytest.mark.parametrize(("share", "want"), [(0.01, 2.35), (1.0, 1.6833)])
def test_mmcl_by_hand(share: float, want: float) -> None:
    """methods.md 5.7: one hard negative, and all three."""
    loss = mmcl(Z, FIRST_TWO, positive_weight=5.0, hard_share=share)
    assert loss.tolist() == pytest.approx([want], abs=1e-4)


def test_plain_targets_by_hand() -> None:
    """methods.md 5.7: the literal equation with 1 and -1."""
    assert plain_pm1(Z, FIRST_TWO).tolist() == pytest.approx([4.79])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_mmcl_equals_the_twin(seed: int, share: float) -> None:
    z, positive = random_case(seed)
    loss = mmcl(z, positive, positive_weight=5.0, hard_share=share)
    want = torch.stack(
        [reference.mmcl(z[b], positive[b].nonzero()[:, 0].tolist(), 5.0, share) for b in range(6)]
    )
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=0)
    gradient, wanted = (torch.autograd.grad(x.sum(), z)[0] for x in (loss, want))
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)


def test_plain_equals_the_twin() -> None:
    z, positive = random_case(0, 20)
    want = [reference.plain_pm1(z[b], positive[b].nonzero()[:, 0].tolist()) for b in range(6)]
    torch.testing.assert_close(plain_pm1(z, positive), torch.stack(want))


@pytest.mark.parametrize(("count", "hard"), [(12936, 129), (16522, 165), (32621, 326)])
def test_hard_negatives_of_the_published_sets(count: int, hard: int) -> None:
    z = torch.zeros(1, count, requires_grad=True)
    mmcl(z, torch.arange(count)[None] == 0, **SETTINGS).sum().backward()
    assert z.grad is not None
    assert int((z.grad > 0).sum()) == hard


def test_all_positives_leave_no_negative() -> None:
    z = torch.full((2, 3), 0.5, requires_grad=True)
    loss = mmcl(z, torch.ones(2, 3, dtype=torch.bool), **SETTINGS)
    assert loss.tolist() == pytest.approx([1.25, 1.25])
    loss.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_images_may_be_renumbered() -> None:
    z, positive = random_case(1)
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(0))
    moved = mmcl(z[:, order], positive[:, order], **SETTINGS)
    torch.testing.assert_close(moved, mmcl(z, positive, **SETTINGS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype: torch.dtype) -> None:
    assert mmcl(Z.to(dtype), FIRST_TWO, **SETTINGS).dtype == dtype
    assert plain_pm1(Z.to(dtype), FIRST_TWO).dtype == dtype
