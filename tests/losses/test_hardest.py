"""HDCPD Eq. 1 and 2: the numbers of methods.md 4.10, slow twins with gradients, properties, edges."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.losses.contrastive import memory_nce
from reid_core.losses.hardest import batch_nce, hardest_nce
from reid_core.memory.updates import class_means
from tests.reference import hdcpd as reference


def unit(g: torch.Generator, count: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=g, dtype=torch.float64), dim=1)


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, their classes, rows, theirs: five classes, of which two have one row."""
    g = torch.Generator().manual_seed(seed)
    class_R = torch.tensor([0, 1, 2, 0, 1, 2, 2, 3, 4])[torch.randperm(9, generator=g)]
    return unit(g, 7), torch.randint(0, 5, (7,), generator=g), unit(g, 9), class_R


def with_similarities(similarity: list[float]) -> tuple[Tensor, Tensor]:
    """A query (1, D) and unit rows of these similarities to it."""
    s = torch.tensor(similarity)
    return torch.tensor([[1.0, 0.0]]), torch.stack([s, (1 - s**2).sqrt()], dim=1)


OWN = [0.9, 0.5]
ROWS = with_similarities([*OWN, 0.7, 0.2, 0.6, 0.1, 0.3, 0.4])
CLASS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])


@pytest.mark.parametrize(("temperature", "want"), [(0.05, 4.0209), (0.6, 1.3759)])
def test_hard_mining_by_hand(temperature: float, want: float) -> None:
    loss = hardest_nce(ROWS[0], torch.tensor([0]), ROWS[1], CLASS, 4, temperature)
    assert loss.item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize(("temperature", "want"), [(0.05, 0.0206), (0.6, 1.0144)])
def test_centroids_by_hand(temperature: float, want: float) -> None:
    means = class_means(ROWS[1], CLASS, 4)
    loss = memory_nce(ROWS[0], torch.tensor([0]), means, temperature)
    assert loss.item() == pytest.approx(want, abs=1e-4)


def test_outlier_against_its_own_row_by_hand() -> None:
    x, rows = with_similarities([0.95, 0.9, 0.4, 0.7, 0.3])
    loss = hardest_nce(x, torch.tensor([0]), rows, torch.tensor([0, 1, 1, 2, 3]), 4, 0.05)
    assert loss.item() == pytest.approx(0.3182, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_global_equals_the_twin(seed: int) -> None:
    x, class_b, rows, class_R = random_case(seed)
    twin_x = x.clone().requires_grad_()
    loss = hardest_nce(x.requires_grad_(), class_b, rows, class_R, 5, 0.3)
    want = reference.hardest_nce(twin_x, class_b, rows, class_R, 0.3)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=0)
    loss.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(x.grad, twin_x.grad, atol=1e-12, rtol=0)


def test_order_of_the_rows_does_not_matter() -> None:
    x, class_b, rows, class_R = random_case(1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    one, two = (
        hardest_nce(x, class_b, rows[o], class_R[o], 5, 0.05) for o in (torch.arange(9), order)
    )
    torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_classes_of_one_row_equal_the_centroid_variant() -> None:
    x, class_b, rows, _ = random_case(2)
    loss = hardest_nce(x, class_b, rows[:5], torch.arange(5), 5, 0.05)
    torch.testing.assert_close(loss, memory_nce(x, class_b, rows[:5], 0.05))


def test_positive_is_of_the_own_class() -> None:
    """The gradient of a query is a mix of one row of its class and the best of the others."""
    x, class_b, rows, class_R = random_case(4)
    similarity = x @ rows.T
    loss = hardest_nce(x.requires_grad_(), class_b, rows, class_R, 5, 0.5)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    for b, y in enumerate(class_b.tolist()):
        own = class_R == y
        chosen = [similarity[b].masked_fill(~own, 9).argmin()]
        chosen += [similarity[b].masked_fill(class_R != k, -9).argmax() for k in range(5) if k != y]
        p = (similarity[b, torch.stack(chosen)] / 0.5).softmax(0)
        p[0] -= 1
        torch.testing.assert_close(grad[b], p @ rows[torch.stack(chosen)] / 0.5)


def local_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, classes, images: class 3 occurs once, image 4 (alone in class 9) twice."""
    g = torch.Generator().manual_seed(seed)
    return (
        unit(g, 10),
        torch.tensor([0, 0, 1, 1, 1, 9, 9, 3, 0, 1]),
        torch.tensor([0, 1, 2, 3, 3, 4, 4, 5, 6, 7]),
    )


@pytest.mark.parametrize("negatives", ["all", "hardest_per_identity"])
@pytest.mark.parametrize("seed", range(3))
def test_local_equals_the_twin(seed: int, negatives: Any) -> None:
    x, class_b, image_b = local_case(seed)
    twin_x = x.clone().requires_grad_()
    loss, paired = batch_nce(x.requires_grad_(), class_b, image_b, 0.2, negatives)
    want = reference.batch_nce(twin_x, class_b, image_b, 0.2, negatives)
    assert paired.tolist() == [w is not None for w in want]
    counted = torch.stack([w for w in want if w is not None])
    torch.testing.assert_close(loss[paired], counted, atol=1e-12, rtol=0)
    torch.where(paired, loss, 0).square().sum().backward()
    counted.square().sum().backward()
    torch.testing.assert_close(x.grad, twin_x.grad, atol=1e-12, rtol=0)


LOCAL_NUMBERS = [
    (0.05, "all", 1.3154),
    (0.05, "hardest_per_identity", 1.3151),
    (0.6, "all", 1.3288),
    (0.6, "hardest_per_identity", 1.0102),
]


@pytest.mark.parametrize(("temperature", "negatives", "want"), LOCAL_NUMBERS)
def test_local_by_hand(temperature: float, negatives: Any, want: float) -> None:
    x, others = with_similarities([0.8, 0.55, 0.6, 0.1, 0.3, 0.2])
    loss, paired = batch_nce(
        torch.cat([x, others]),
        torch.tensor([0, 0, 0, 1, 1, 2, 2]),
        torch.arange(7),
        temperature,
        negatives,
    )
    assert paired.all()
    assert loss[0].item() == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("negatives", ["all", "hardest_per_identity"])
def test_no_pair_in_the_batch_gives_no_nan(negatives: Any) -> None:
    x, _, image_b = local_case(0)
    x.requires_grad_()
    loss, paired = batch_nce(x, torch.arange(10), image_b, 0.05, negatives)
    assert not paired.any()
    torch.where(paired, loss, 0).sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("negatives", ["all", "hardest_per_identity"])
def test_order_of_the_batch_does_not_matter(negatives: Any) -> None:
    x, class_b, image_b = local_case(1)
    back = torch.arange(9, -1, -1)
    loss, paired = batch_nce(x, class_b, image_b, 0.2, negatives)
    other, other_paired = batch_nce(x[back], class_b[back], image_b[back], 0.2, negatives)
    torch.testing.assert_close(other[back], loss, atol=1e-14, rtol=0)
    assert torch.equal(other_paired[back], paired)


def test_one_class_in_the_batch_costs_nothing() -> None:
    x, _, _ = local_case(2)
    loss, _ = batch_nce(x, torch.zeros(10, dtype=torch.int64), torch.arange(10), 0.6)
    assert loss.tolist() == pytest.approx([0.0] * 10)
