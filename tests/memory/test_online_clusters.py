"""ODC's memories: by hand, against the twin over many steps, and what must hold after every one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_core.memory.online_clusters import OnlineClusters, nearest, smaller_half
from tests.reference import odc as reference

IMAGES, CLUSTERS, DIM, BATCH = 60, 6, 5, 12


def unit(degrees: list[float]) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def random_rows(count: int, seed: int) -> torch.Tensor:
    """Around four directions that drift from seed to seed."""
    g = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, DIM, generator=g, dtype=torch.float64)
    fixed = torch.Generator().manual_seed(1000 + seed // 3)
    centre = torch.randn(4, DIM, generator=fixed, dtype=torch.float64)
    return F.normalize(centre[torch.randint(0, 4, (count,), generator=g)] + 0.7 * noise)


def memories(
    x: torch.Tensor, label: list[int], clusters: int, *, momentum: float = 0.5, min_size: int = 2
) -> OnlineClusters:
    filled = OnlineClusters(len(x), clusters, x.shape[1], momentum=momentum, min_size=min_size)
    filled.to(x.dtype).fill(x, torch.tensor(label))
    return filled


def check(memory: OnlineClusters) -> None:
    assert memory.sizes().sum() == len(memory.label_N)
    assert memory.sizes().min() > 0
    ones = torch.ones(len(memory.feature_ND), dtype=memory.feature_ND.dtype)
    torch.testing.assert_close(memory.feature_ND.norm(dim=1), ones)


def test_a_batch_goes_to_the_nearest_centroids_by_hand() -> None:
    """0 degrees moves half way to 60, so to 30; the mean of 0 and 10 is at 5, that of 40 and 50 at 45."""
    memory = memories(unit([0, 10, 40, 50]), [0, 0, 1, 1], 2)
    torch.testing.assert_close(
        memory.centroid_CD, torch.stack([unit([0, 10]), unit([40, 50])]).mean(1)
    )
    assert memory.move(torch.tensor([0, 3]), unit([60, 50])).item() == 0.5
    torch.testing.assert_close(memory.feature_ND, unit([30, 10, 40, 50]))
    assert memory.label_N.tolist() == [1, 0, 1, 1]
    memory.refresh()
    torch.testing.assert_close(memory.centroid_CD[0], unit([10])[0])


def test_an_image_drawn_twice_moves_twice() -> None:
    memory = memories(unit([0, 10, 80, 90]), [0, 0, 1, 1], 2)
    memory.move(torch.tensor([0, 0]), unit([60, 90]))
    torch.testing.assert_close(memory.feature_ND[0], unit([60])[0])
    assert memory.label_N.tolist() == [1, 0, 1, 1]


def test_a_small_cluster_takes_half_of_the_largest_by_hand() -> None:
    """Cluster 1 has one image, at 70 degrees, which joins the one at 90; then 0..50 are halved."""
    memory = memories(unit([0, 1, 2, 48, 50, 70, 90, 91]), [0, 0, 0, 0, 0, 1, 2, 2], 3)
    assert memory.label_N.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    torch.testing.assert_close(memory.centroid_CD[1], unit([48, 50]).mean(0))
    torch.testing.assert_close(memory.centroid_CD[0], unit([0, 1, 2]).mean(0))
    torch.testing.assert_close(memory.centroid_CD[2], unit([90, 91]).mean(0))  # until refreshed
    assert memory.balance() == 0


def test_empty_clusters_and_outliers_are_seen_to_at_the_start() -> None:
    """Two labels for four clusters; -1 goes to the nearest of the two."""
    x = unit([0, 1, 40, 41, 80, 81, 82, 120, 121, 2])
    memory = memories(x, [0, 0, 0, 0, 1, 1, 1, 1, 1, -1], 4)
    assert memory.label_N.tolist() == [0, 0, 2, 2, 1, 1, 1, 3, 3, 0]
    assert bool(memory.filled)


def test_means_are_not_normalised_and_the_distance_counts() -> None:
    """The wide cluster has the larger product with the row, the tight one is nearer."""
    centroid = torch.tensor([[1.5, 0.0], [0.6, 0.1]])
    x = torch.tensor([[0.8, 0.1]])
    assert (x @ centroid.T).argmax() == 0
    assert nearest(x, centroid).tolist() == [1]
    assert nearest(x, centroid, torch.tensor([True, False])).tolist() == [0]


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_equal_rows_are_cut_in_the_middle(count: int) -> None:
    leaves = smaller_half(unit([30.0] * count))
    assert leaves.tolist() == [False] * ((count + 1) // 2) + [True] * (count // 2)


def test_two_rows_are_parted() -> None:
    assert smaller_half(unit([0, 90])).sum() == 1


@pytest.mark.parametrize("seed", range(6))
def test_halving_equals_the_twin_and_takes_the_smaller_part(seed: int) -> None:
    x = random_rows(15 + seed, seed)
    leaves = smaller_half(x)
    assert leaves.nonzero()[:, 0].tolist() == reference.smaller_half(list(x.numpy()))
    assert 0 < leaves.sum() <= len(x) / 2


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_twin_step_by_step(seed: int, momentum: float) -> None:
    x = random_rows(IMAGES, seed)
    label = [-1 if i % 7 == 0 else min(i % 11, 4) for i in range(IMAGES)]
    memory = memories(x, label, CLUSTERS, momentum=momentum, min_size=8)
    twin = reference.Twin(x.numpy(), label, CLUSTERS, momentum=momentum, min_size=8)
    g = torch.Generator().manual_seed(seed)
    events = [0.0, 0]
    for step in range(12):
        assert memory.label_N.tolist() == twin.label
        check(memory)
        row = torch.randint(0, IMAGES, (BATCH,), generator=g)
        new = random_rows(BATCH, 3 * seed + step)
        share = memory.move(row, new).item()
        assert share == pytest.approx(twin.move(row.tolist(), new.numpy()))
        if step % 3 == 2:
            memory.refresh()
            twin.refresh()
        dissolved = int(memory.balance())
        assert dissolved == twin.balance()
        events = [events[0] + share, events[1] + dissolved]
        want = torch.from_numpy(np.stack([twin.centroids[k] for k in range(CLUSTERS)]))
        torch.testing.assert_close(memory.centroid_CD, want, atol=1e-12, rtol=0)
    assert min(events) > 0


def test_the_order_of_distinct_images_in_a_batch_changes_nothing() -> None:
    x, row = random_rows(IMAGES, 1), 5 * torch.arange(BATCH)
    new = random_rows(BATCH, 2)
    ends = []
    for order in (torch.arange(BATCH), torch.arange(BATCH - 1, -1, -1)):
        memory = memories(x, [i % CLUSTERS for i in range(IMAGES)], CLUSTERS, min_size=4)
        memory.move(row[order], new[order])
        memory.balance()
        ends.append(memory.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_large_enough_clusters_are_left_alone() -> None:
    memory = memories(random_rows(IMAGES, 4), [i % CLUSTERS for i in range(IMAGES)], CLUSTERS)
    before = {name: value.clone() for name, value in memory.state_dict().items()}
    assert memory.balance() == 0
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())


def test_the_state_is_all_there_is() -> None:
    memory = memories(random_rows(IMAGES, 5), [i % 3 for i in range(IMAGES)], CLUSTERS)
    other = OnlineClusters(IMAGES, CLUSTERS, DIM, momentum=0.5, min_size=2).double()
    other.load_state_dict(memory.state_dict())
    row, new = torch.arange(BATCH), random_rows(BATCH, 6)
    for each in (memory, other):
        each.move(row, new)
        each.refresh()
        each.balance()
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), other.buffers(), strict=True))
