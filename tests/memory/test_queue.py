import pytest
import torch

from reid_core.memory.queue import KeyQueue


def keys(first: int, count: int) -> torch.Tensor:
    """Keys that tell their number, in a plane."""
    angle = 0.1 * torch.arange(first, first + count)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def numbers(queue: KeyQueue) -> list[int]:
    return (torch.atan2(queue.row_QP[:, 1], queue.row_QP[:, 0]) / 0.1).round().int().tolist()


def test_starts_with_unit_rows() -> None:
    torch.testing.assert_close(KeyQueue(50, 8).row_QP.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize(
    ("batches", "want"),
    [([3], [0, 1, 2]), ([3, 3], [5, 1, 2, 3, 4]), ([5], [0, 1, 2, 3, 4]), ([4, 4], [5, 6, 7, 3, 4])],
)  # fmt: skip
def test_first_in_first_out(batches: list[int], want: list[int]) -> None:
    queue = KeyQueue(5, 2)
    for number, count in enumerate(batches):
        queue.push(keys(sum(batches[:number]), count))
    assert numbers(queue)[: len(want)] == want
    assert queue.oldest == sum(batches) % 5


def test_state_goes_on_where_it_was() -> None:
    one, other = KeyQueue(5, 2), KeyQueue(5, 2)
    one.push(keys(0, 4))
    other.load_state_dict(one.state_dict())
    for queue in (one, other):
        queue.push(keys(4, 3))
    assert torch.equal(one.row_QP, other.row_QP)
