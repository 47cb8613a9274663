"""HDCPD Eq. 5 to 7 and MeanTeacher-L2: the numbers of methods.md 4.10, slow twins with gradients, properties."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.losses import distillation
from reid_core.losses.distillation import feature_distance, probability_distance
from tests.reference import hdcpd as reference

STUDENT, TEACHER = torch.tensor([[0.8, 0.5, 0.1]]), torch.tensor([[0.7, 0.6, 0.2]])
NUMBERS = [
    pytest.param((1.0, 0.5), 0.004869, id="literal"),
    pytest.param((0.05, 0.05), 0.02726, id="released"),
    pytest.param((0.05, 0.025), 0.000481, id="recommended"),
]


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x, teacher, rows = (
        F.normalize(torch.randn(n, 4, generator=g, dtype=torch.float64), dim=1) for n in (6, 6, 5)
    )
    return x, teacher, rows


@pytest.mark.parametrize(("temperatures", "want"), NUMBERS)
def test_by_hand(temperatures: tuple[float, float], want: float) -> None:
    """Prototypes are unit axes, so the similarities are the coordinates."""
    loss = probability_distance(STUDENT, TEACHER, torch.eye(3), *temperatures)
    assert loss.item() == pytest.approx(want, abs=5e-6)


def test_released_scale_by_hand() -> None:
    """One query, three classes: divided by the classes instead of the batch."""
    loss = probability_distance(STUDENT, TEACHER, torch.eye(3), 0.05, 0.05)
    assert loss.item() / 3 == pytest.approx(0.009086, abs=1e-5)


TWINS = [
    pytest.param(False, reference.probability_distance, id="classes"),
    pytest.param(True, reference.batch_axis_distance, id="batch"),
]


@pytest.mark.parametrize(("over_batch", "twin"), TWINS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_twin(over_batch: bool, twin, seed: int) -> None:
    x, teacher, rows = random_case(seed)
    twin_x = x.clone().requires_grad_()
    loss = probability_distance(x.requires_grad_(), teacher, rows, 0.3, 0.2, over_batch=over_batch)
    want = twin(twin_x, teacher, rows, 0.3, 0.2)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=0)
    loss.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(x.grad, twin_x.grad, atol=1e-12, rtol=0)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Filled with the class probabilities of the student, then of the teacher, as the loss computes them."""
    kept: list[Tensor] = []
    softmax = distillation._softmax_over_classes

    def keep(logits: Tensor) -> Tensor:
        kept.append(softmax(logits))
        return kept[-1]

    monkeypatch.setattr(distillation, "_softmax_over_classes", keep)
    return kept


PROBABILITIES = [
    pytest.param((1.0, 0.5), (0.4469, 0.3311, 0.2219), (0.4573, 0.3744, 0.1682), id="literal"),
    pytest.param((0.05, 0.05), (0.9975, 0.0025, 0), (0.8808, 0.1192, 0), id="released"),
    pytest.param((0.05, 0.025), (0.9975, 0.0025, 0), (0.9820, 0.0180, 0), id="recommended"),
]


@pytest.mark.parametrize(("temperatures", "student", "teacher"), PROBABILITIES)
def test_probabilities_by_hand(
    temperatures: tuple[float, float],
    student: tuple[float, ...],
    teacher: tuple[float, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P^s and P^t of methods.md 4.10."""
    found = recorded(monkeypatch)
    probability_distance(STUDENT, TEACHER, torch.eye(3), *temperatures)
    for p, want in zip(found, (student, teacher), strict=True):
        assert p[0].tolist() == pytest.approx(want, abs=5e-5)


def test_probabilities_sum_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(monkeypatch)
    probability_distance(*random_case(4), 0.05, 0.025)
    assert len(found) == 2
    for p in found:
        torch.testing.assert_close(p.sum(dim=1), torch.ones(6, dtype=p.dtype))


def test_half_the_temperature_squares_the_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher that is the student itself has its probabilities squared and normalised."""
    found = recorded(monkeypatch)
    x, _, rows = random_case(5)
    loss = probability_distance(x, x, rows, 0.6, 0.3)
    student, teacher = found
    square = student.square() / student.square().sum(dim=1, keepdim=True)
    torch.testing.assert_close(teacher, square)
    torch.testing.assert_close(loss, (student - square).square().sum(dim=1))
    assert (loss > 1e-3).all()


@pytest.mark.parametrize("over_batch", [False, True])
def test_equal_networks_and_temperatures_cost_nothing(over_batch: bool) -> None:
    x, _, rows = random_case(0)
    assert (probability_distance(x, x, rows, 0.05, 0.05, over_batch=over_batch) == 0).all()
    assert (feature_distance(x, x) == 0).all()


def test_gradient_reaches_the_student_only() -> None:
    x, teacher, rows = (value.requires_grad_() for value in random_case(1))
    total = probability_distance(x, teacher, rows, 0.3, 0.2) + feature_distance(x, teacher)
    total.sum().backward()
    assert x.grad is not None
    assert teacher.grad is None
    assert rows.grad is None


def test_feature_distance_is_two_minus_two_cosines() -> None:
    x, teacher, _ = random_case(2)
    torch.testing.assert_close(feature_distance(x, teacher), 2 - 2 * (x * teacher).sum(dim=1))


def test_low_temperatures_stay_finite() -> None:
    x, teacher, rows = (value.float() for value in random_case(3))
    for over_batch in (False, True):
        loss = probability_distance(x, teacher, rows, 1e-3, 1e-4, over_batch=over_batch)
        assert loss.isfinite().all()
