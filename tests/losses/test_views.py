import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reid_core.losses.views import queue_nce
from tests.reference import moco as reference


def random_case() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return tuple(
        F.normalize(torch.randn(n, 4, generator=g, dtype=torch.float64), dim=1) for n in (5, 5, 7)
    )  # type: ignore[return-value]


def test_by_hand() -> None:
    """Own key .8, queue .6 and 0 at temperature .5."""
    query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6]])
    queue = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    want = math.log(1 + math.exp(-0.4) + math.exp(-1.6))
    assert queue_nce(query, key, queue, 0.5).item() == pytest.approx(want)


def test_values_and_gradients_equal_the_twin() -> None:
    x, key, queue = random_case()
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = queue_nce(one, key, queue, 0.07).mean()
    want = reference.mean_loss(list(other), list(key), list(queue), 0.07)
    torch.testing.assert_close(loss, want, atol=1e-12, rtol=0)
    loss.backward()
    want.backward()
    torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=0)


def test_order_of_the_queue_does_not_matter() -> None:
    x, key, queue = random_case()
    torch.testing.assert_close(
        queue_nce(x, key, queue, 0.07), queue_nce(x, key, queue.flip(0), 0.07)
    )


def test_no_gradient_reaches_the_key() -> None:
    x, key, queue = (part.requires_grad_() for part in random_case())
    queue_nce(x, key, queue.detach(), 0.07).sum().backward()
    assert x.grad is not None
    assert key.grad is None
