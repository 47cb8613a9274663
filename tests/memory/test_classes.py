import pytest
import torch

from reid_core.memory.classes import own_class_for_outliers


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        ([1, -1, 0, -1], 2, [0, 1, 3, 4, 2, 5]),
        ([1, -1, 0, -1], 0, [1, 2, 0, 3]),
        ([-1, -1], 1, [0, 1, 2]),
        ([0, 0], 0, [0, 0]),
    ],
    ids=["source", "target alone", "outliers alone", "no outlier"],
)
def test_outliers_become_classes_of_their_own(
    label: list[int], classes: int, expected: list[int]
) -> None:
    assert own_class_for_outliers(torch.tensor(label), classes).tolist() == expected
