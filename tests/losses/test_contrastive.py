import math

import pytest
import torch
import torch.nn.functional as F

from reid_core.losses.contrastive import memory_nce
from reid_core.losses.terms import by_domain
from tests.reference import memory as reference


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(6, 4, generator=g, dtype=torch.float64), dim=1)
    rows = F.normalize(torch.randn(5, 4, generator=g, dtype=torch.float64), dim=1)
    return x, torch.randint(0, 5, (6,), generator=g), rows


def test_two_orthogonal_clusters_by_hand() -> None:
    x = torch.eye(2)
    loss = memory_nce(x, torch.tensor([0, 1]), x, temperature=1.0)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-1))] * 2)


def test_ise_example_by_hand() -> None:
    """methods.md 6.5: f = (.8, .6) against three rows at temperature 0.05."""
    rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]])
    loss = memory_nce(torch.tensor([[0.8, 0.6]]), torch.tensor([0]), rows, temperature=0.05)
    assert loss.item() == pytest.approx(3.2400, abs=1e-4)


def test_equals_the_twin() -> None:
    x, label, rows = random_case()
    assert memory_nce(x, label, rows, 0.3).tolist() == pytest.approx(
        reference.memory_nce(x, label, rows, 0.3)
    )


def test_gradient_reaches_queries_only() -> None:
    x, label, rows = random_case()
    x.requires_grad_()
    rows.requires_grad_()
    memory_nce(x, label, rows, 0.05).sum().backward()
    assert x.grad is not None
    assert rows.grad is None


def test_single_class_costs_nothing() -> None:
    x, label, rows = random_case()
    assert memory_nce(x, 0 * label, rows[:1], 0.05).tolist() == pytest.approx([0.0] * 6)


def test_domains_are_weighed_one_to_one() -> None:
    terms = by_domain(torch.tensor([1.0, 3.0, 10.0]), torch.tensor([1, 1, 0]), classes=2)
    assert terms["source"].item() == pytest.approx(2.0)
    assert terms["target"].item() == pytest.approx(10.0)
