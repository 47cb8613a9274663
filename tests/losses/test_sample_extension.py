"""Support samples and the label-preserving loss: methods.md 6.5, slow twins, properties."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.losses.contrastive import memory_nce
from reid_core.losses.sample_extension import (
    DEGREES,
    best_other_classes,
    extension_degree,
    label_preserving,
    support_samples,
)
from tests.reference import ise as reference

MEMORY = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]])
IMAGE, OWN = torch.tensor([[0.8, 0.6]]), torch.tensor([0])

BATCH, CLASSES, DIM = 8, 6, 5


def random_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, memory = (
        F.normalize(torch.randn(rows, DIM, generator=g, dtype=torch.float64), dim=1)
        for rows in (BATCH, CLASSES)
    )
    return x, torch.randint(0, CLASSES, (BATCH,), generator=g), memory


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("log", [0, 0.07928, 0.17869, 0.31006, 0.41399, 0.5]),
        ("linear", [0, 0.05, 0.125, 0.25, 0.375, 0.5]),
        ("square", [0, 0.005, 0.03125, 0.125, 0.28125, 0.5]),
        ("constant", [0.5] * 6),
    ],
)
def test_degrees_by_hand(kind: str, want: list[float]) -> None:
    progress = (0, 0.1, 0.25, 0.5, 0.75, 1)
    got = [extension_degree(kind, 1.0, u) for u in progress]
    assert got == pytest.approx(want, abs=1e-5)
    assert got == pytest.approx([reference.degree(kind, 1.0, u) for u in progress])


@pytest.mark.parametrize("kind", DEGREES)
def test_degree_is_proportional_to_lam0(kind: str) -> None:
    assert extension_degree(kind, 2.0, 0.3) == pytest.approx(2 * extension_degree(kind, 1.0, 0.3))


def test_directions_by_hand() -> None:
    similarity = IMAGE @ MEMORY.T
    torch.testing.assert_close(similarity, torch.tensor([[0.8, 0.96, 0.0]]))
    assert best_other_classes(similarity, OWN, 1).tolist() == [[1]]
    assert best_other_classes(-similarity, OWN, 1).tolist() == [[2]]


@pytest.mark.parametrize(("degree", "want"), [(0.5, [0.6585, 0.7526]), (0.25, [0.7311, 0.6823])])
def test_support_by_hand(degree: float, want: list[float]) -> None:
    support = support_samples(IMAGE, OWN, torch.tensor([[1]]), MEMORY, degree)
    torch.testing.assert_close(support[0], torch.tensor([want]), atol=1e-4, rtol=0)


def test_extension_loss_by_hand() -> None:
    support = support_samples(IMAGE, OWN, torch.tensor([[1]]), MEMORY, 0.5)
    loss = memory_nce(torch.cat([IMAGE, support[0]]), torch.tensor([0, 0]), MEMORY, 0.05)
    assert loss.tolist() == pytest.approx([3.2400, 6.7743], abs=1e-3)
    assert loss.mean().item() == pytest.approx(5.0071, abs=1e-3)


def lp_example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One image; its similarities to six candidates are those of methods.md 6.5."""
    similarity = torch.tensor([0.9, 0.6, 0.5, 0.3, 0.2, 0.4])
    candidates = torch.stack([similarity, (1 - similarity**2).sqrt()], dim=1)
    return (
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([7]),
        candidates,
        torch.tensor([7, 7, 3, 3, 9, 9]),
    )


def test_label_preserving_by_hand() -> None:
    assert label_preserving(*lp_example(), 0.6).item() == pytest.approx(0.9412, abs=1e-4)


def test_positive_is_in_the_denominator() -> None:
    """The paper's literal denominator would give .4466, and could be negative."""
    positive, negatives = math.exp(0.6 / 0.6), math.exp(0.5 / 0.6) + math.exp(0.4 / 0.6)
    assert -math.log(positive / negatives) == pytest.approx(0.4466, abs=1e-4)
    want = -math.log(positive / (positive + negatives))
    assert label_preserving(*lp_example(), 0.6).item() == pytest.approx(want)


@pytest.mark.parametrize("sign", [1, -1], ids=["nearest", "farthest"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_supports_equal_the_twin(sign: int, count: int) -> None:
    x, label, memory = random_case()
    score = sign * (x @ memory.T)
    toward = best_other_classes(score, label, count)
    got = support_samples(x, label, toward, memory, 0.4)
    assert got.shape == (BATCH, min(count, CLASSES - 1), DIM)
    for b in range(BATCH):
        chosen = reference.other_classes(score[b], int(label[b]), count)
        want = reference.supports(x[b], int(label[b]), chosen, memory, 0.4)
        torch.testing.assert_close(got[b], torch.stack(want), atol=1e-12, rtol=0)


def test_own_class_is_never_chosen() -> None:
    _, label, _ = random_case()
    toward = best_other_classes(torch.ones(BATCH, CLASSES), label, CLASSES)
    for own, others in zip(label.tolist(), toward.tolist(), strict=True):
        assert sorted([own, *others]) == list(range(CLASSES))


def test_no_supports_and_no_degree() -> None:
    x, label, memory = random_case()
    none = best_other_classes(x @ memory.T, label, 0)
    assert support_samples(x, label, none, memory, 0.5).shape == (BATCH, 0, DIM)
    one = best_other_classes(x @ memory.T, label, 1)
    torch.testing.assert_close(support_samples(x, label, one, memory, 0.0)[:, 0], x)


def test_supports_are_unit_and_give_no_gradient_to_the_memory() -> None:
    x, label, memory = random_case()
    x.requires_grad_()
    memory.requires_grad_()
    toward = best_other_classes((x @ memory.T).detach(), label, 2)
    support = support_samples(x, label, toward, memory, 0.5)
    torch.testing.assert_close(support.norm(dim=2), torch.ones(BATCH, 2, dtype=x.dtype))
    (support**3).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert memory.grad is None


def lp_of_supports(x: Tensor, label: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the module and of the twin with two support samples an image."""
    toward = best_other_classes(x.detach() @ memory.T, label, 2)
    support = support_samples(x, label, toward, memory, 0.5)
    own = label.repeat_interleave(2)
    fast = label_preserving(x, label, support.flatten(0, 1), own, 0.6).mean()
    candidates = list(zip(support.flatten(0, 1), own.tolist(), strict=True))
    return fast, reference.label_preserving(list(x), label.tolist(), candidates, 0.6)


@pytest.mark.parametrize("seed", range(5))
def test_label_preserving_equals_the_twin_with_gradient(seed: int) -> None:
    x, label, memory = random_case(seed)
    x.requires_grad_()
    fast, slow = lp_of_supports(x, label, memory)
    torch.testing.assert_close(fast, slow)
    got, want = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (fast, slow))
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


def test_label_preserving_reaches_candidates_and_queries() -> None:
    x, label, candidates, own = lp_example()
    x.requires_grad_()
    candidates.requires_grad_()
    label_preserving(x, label, candidates, own, 0.6).sum().backward()
    assert x.grad is not None
    assert candidates.grad is not None
    used = candidates.grad.abs().sum(dim=1) > 0
    assert used.tolist() == [False, True, True, False, False, True]


def test_order_of_candidates_does_not_matter() -> None:
    x, label, memory = random_case(3)
    candidates = torch.cat([x, memory])
    own = torch.cat([label, torch.arange(CLASSES)])
    shuffled = torch.randperm(len(own), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        label_preserving(x, label, candidates, own, 0.6),
        label_preserving(x, label, candidates[shuffled], own[shuffled], 0.6),
    )


def test_images_as_candidates_leave_the_image_itself_out_unless_alone() -> None:
    x = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    loss = label_preserving(x, torch.tensor([0, 0, 1]), x, torch.tensor([0, 0, 1]), 0.6)
    half = 0.5**0.5 / 0.6
    alone = math.log(1 + math.exp(half - 1 / 0.6))
    pair = [math.log(1 + math.exp(0 - half)), math.log(1 + math.exp(half - half))]
    assert loss.tolist() == pytest.approx([*pair, alone])


def test_one_class_costs_nothing() -> None:
    x, label, _ = random_case()
    loss = label_preserving(x, 0 * label, x, 0 * label, 0.6)
    assert loss.tolist() == pytest.approx([0.0] * BATCH)
