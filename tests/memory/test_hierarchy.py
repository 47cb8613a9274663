"""The label bank against its twin over many random steps, and what must hold after every one."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from reid_core.batch import Sizes
from reid_core.labelling.online.splitting import SplitRule
from reid_core.memory.hierarchy import LabelHierarchy, Nodes, occurs_before, smallest_member
from reid_core.methods.hcd import Config, Objective
from tests.reference.hcd import Twin

SOURCES, IMAGES, DIM = 4, 70, 12
CONFIG = Config(neighbours=20, connect=10, nearest=8, temperature=0.05)
CASES = {
    "default": {},
    "one level": {"levels": 1},
    "four levels": {"levels": 4, "split_assign": "column_normalised"},
    "small alpha_s": {"alpha_s": 0.5},
    "plain": {"nn_rule": "plain", "split_assign": "column_normalised"},
    "fresh means": {"fresh_means": True, "split_assign": "column_normalised", "levels": 3},
    "legacy": {
        "legacy_anchor_index": True,
        "legacy_floor": True,
        "legacy_double_exp": True,
        "alpha_s": 0.9,
    },
    "far anchors": {"anchor_order": "far", "anchors": 3, "split_assign": "column_normalised"},
    "targets only": {"neighbours_target_only": True, "sigma": 0.1},
    "no split": {"split": False},
    "no merge": {"merge": False, "alpha_s": 0.5},
    "split limit": {"split_limit": 5, "alpha_s": 0.5},
}


def bank_at(step: int) -> torch.Tensor:
    """Rows around nine directions that drift from step to step."""
    g = torch.Generator().manual_seed(100)
    centre = F.normalize(torch.randn(9, DIM, generator=g, dtype=torch.float64))
    g = torch.Generator().manual_seed(step)
    noise = F.normalize(torch.randn(SOURCES + IMAGES, DIM, generator=g, dtype=torch.float64))
    near = centre[torch.arange(SOURCES + IMAGES) % 9]
    return F.normalize(near + (0.6 + 0.1 * (step % 4)) * noise)


def batch_at(step: int) -> torch.Tensor:
    """Rows with repetitions."""
    g = torch.Generator().manual_seed(step)
    return SOURCES + torch.randint(0, IMAGES, (16,), generator=g)


def objective_of(config: Config) -> Objective:
    """With DBSCAN-like labels: clusters of several sizes and lone images."""
    objective = Objective(config, torch.nn.Identity(), Sizes(IMAGES, SOURCES, DIM)).double()
    label = torch.arange(IMAGES) % 3
    label[50:] = -1
    objective.hierarchy.fill(label)
    return objective


def check_invariants(label_HR: torch.Tensor) -> None:
    for label in label_HR:
        assert label[:SOURCES].tolist() == list(range(SOURCES))
        assert label[SOURCES:].min() >= SOURCES
        assert torch.equal(label, smallest_member(label, len(label)))
    for fine, coarse in pairwise(label_HR):
        assert torch.equal(coarse, coarse[fine])


@pytest.mark.parametrize("case", CASES)
def test_labels_equal_the_twin_step_by_step(case: str) -> None:
    config = replace(CONFIG, **CASES[case])
    objective = objective_of(config)
    twin = Twin(objective.hierarchy.label_HR.numpy(), SOURCES, config)
    totals: dict[str, int] = {}
    for step in range(4):
        objective.memory_RD.copy_(bank_at(step))
        counts = objective._change_labels(batch_at(step))
        want = twin.step(bank_at(step).numpy(), batch_at(step).tolist())
        assert {name: int(count) for name, count in counts.items()} == want
        assert objective.hierarchy.label_HR.tolist() == twin.labels().tolist()
        check_invariants(objective.hierarchy.label_HR)
        totals = {name: totals.get(name, 0) + want[name] for name in want}
    effects = {name for name, total in totals.items() if total}
    levels = range(1, config.levels + 1)
    expected = {"joined"}
    expected |= {f"splits_{h}" for h in levels[:1]} if config.split else set()
    expected |= {f"merges_{h}" for h in levels[-1:]} if config.merge else set()
    assert effects >= expected, totals


def test_fill_names_clusters_by_their_smallest_row() -> None:
    labels = LabelHierarchy(2, 5, 2)
    labels.fill(torch.tensor([1, -1, 0, 1, 0]))
    assert labels.label_HR.tolist() == [[0, 1, 2, 3, 4, 2, 4]] * 2


def test_isolate_renames_the_cluster_an_image_named() -> None:
    labels = LabelHierarchy(2, 4, 0)
    labels.fill(torch.tensor([0, 0, 0, -1]))
    labels.isolate(torch.tensor([0, 3, 0]))
    assert labels.label_HR.tolist() == [[0, 1, 1, 3]] * 2


@pytest.mark.parametrize(
    ("row", "other", "want"),
    [
        ([0, 1], [1, 3], [0, 0, 2, 0]),
        ([0, 1], [1, 0], [0, 0, 2, 3]),
        ([], [], [0, 1, 2, 3]),
        ([0, 0], [2, 2], [0, 1, 0, 3]),
    ],
    ids=["chain", "circle", "none", "doubled"],
)
def test_join_follows_chains_within_the_batch(
    row: list[int], other: list[int], want: list[int]
) -> None:
    labels = LabelHierarchy(2, 4, 0)
    labels.join(torch.tensor(row, dtype=torch.int64), torch.tensor(other, dtype=torch.int64))
    assert labels.label_HR.tolist() == [want] * 2


@pytest.mark.parametrize("images", [4, 5])
def test_small_clusters_stay_whole(images: int) -> None:
    """Two orthogonal groups linked weakly; four images are too few to split."""
    bank = F.normalize(
        torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.5, 1.0], [0.5, 1.01], [1.0, 0.02]]).double()
    )[:images]
    labels = LabelHierarchy(1, images, 0)
    labels.fill(torch.zeros(images, dtype=torch.int64))
    row = torch.arange(images)
    effective = labels.split(0, Nodes(bank, row, row), row[:1], SplitRule(alpha=0.3))
    assert effective == (images > 4)
    if images > 4:
        assert labels.label_HR.tolist() == [[0, 0, 2, 2, 0]]


def test_occurs_before() -> None:
    x = torch.tensor([[3, 3, 1, 3], [1, 2, 1, 2]])
    assert occurs_before(x).tolist() == [[False, True, False, True], [False, False, True, True]]


def test_merge_does_not_depend_on_the_order_of_the_batch() -> None:
    config = replace(CONFIG, split=False)
    ends = []
    for order in (slice(None), torch.arange(15, -1, -1)):
        objective = objective_of(config)
        objective.memory_RD.copy_(bank_at(1))
        objective._change_labels(batch_at(1)[order])
        ends.append(objective.hierarchy.label_HR)
    assert torch.equal(*ends)
