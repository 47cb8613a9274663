"""The worked examples of methods.md 3.10, the twins, and what holds for every graph."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_core.labelling.online.neighbourhood import NeighbourRule, best_neighbours, neighbourhood
from reid_core.labelling.online.propagation import (
    affinity,
    mutual_nearest,
    normalise,
    propagate,
    reach_first,
)
from reid_core.labelling.online.splitting import SplitRule, find_anchors, split
from tests.reference import hcd as reference


def symmetric(count: int, pairs: dict[str, float]) -> torch.Tensor:
    """(1, n, n) similarities from {"01": s}."""
    s = torch.eye(count, dtype=torch.float64)
    for (i, j), value in ((map(int, key), value) for key, value in pairs.items()):
        s[i, j] = s[j, i] = value
    return s[None]


def random_unit(count: int, dim: int, seed: int, spread: float = 0.5) -> torch.Tensor:
    """Unit rows around a few directions."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(4, dim, generator=g, dtype=torch.float64)
    noise = torch.randn(count, dim, generator=g, dtype=torch.float64)
    return F.normalize(F.normalize(centre)[torch.arange(count) % 4] + spread * F.normalize(noise))


TRIPLE = symmetric(4, {"01": 0.8, "02": 0.6, "03": 0.3, "12": 0.7, "13": 0.2, "23": 0.25})
THREE = symmetric(3, {"01": 0.9, "02": 0.6, "12": 0.7})
FIVE = symmetric(
    5,
    {
        "01": 0.9, "02": 0.85, "03": 0.5, "04": 0.45, "12": 0.8,
        "13": 0.55, "14": 0.5, "23": 0.6, "24": 0.5, "34": 0.75,
    },
)  # fmt: skip
ALL_ALPHA_M = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
ALL_ALPHA_S = (0.3, 0.5, 0.7, 0.9, 0.95, 0.99)


@pytest.mark.parametrize(
    ("s", "alpha", "want", "digits"),
    [
        (0.7, 0.99, 0.4000, 4), (0.45, 0.99, 0.2633, 4), (0.9, 0.5, 0.2371, 4),
        (0.9, 0.1, 0.045, 3), (0.9, 0.3, 0.138, 3), (0.7, 0.7, 0.264, 3), (0.5, 0.9, 0.257, 3),
    ],
)  # fmt: skip
def test_pair_by_hand(s: float, alpha: float, want: float, digits: int) -> None:
    pair = symmetric(2, {"01": s})
    score = reach_first(pair, torch.ones_like(pair, dtype=torch.bool), alpha)
    assert score[0].tolist() == pytest.approx([0, want], abs=0.51 * 10**-digits)


@pytest.mark.parametrize("s", [0.45, 0.7, 0.9])
def test_without_self_affinity_a_pair_scores_the_same_for_every_similarity(s: float) -> None:
    weight = affinity(symmetric(2, {"01": s}))
    weight.diagonal(dim1=1, dim2=2).zero_()
    p = propagate(normalise(weight), torch.eye(2, dtype=torch.float64)[None], 0.99)
    assert p[0, 0, 1].item() == pytest.approx(49.75, abs=0.01)


@pytest.mark.parametrize(
    ("alpha", "want"),
    [(0.99, (0.4766, 0.3888, 0)), (0.5, (0.1790, 0.1371, 0)), (0.9, (0.4036, 0.3258, 0))],
)
def test_three_candidates_by_hand(alpha: float, want: tuple[float, ...]) -> None:
    score = reach_first(TRIPLE, TRIPLE > 0.45, alpha)
    assert score[0, 1:].tolist() == pytest.approx(want, abs=6e-5)


def test_s_of_three_candidates_by_hand() -> None:
    s = normalise(affinity(TRIPLE) * (TRIPLE > 0.45))[0]
    assert [s[0, 1].item(), s[0, 2].item(), s[1, 2].item()] == pytest.approx(
        [0.3091, 0.2183, 0.2606], abs=6e-5
    )


@pytest.mark.parametrize(
    ("alpha", "want"),
    [
        (0.5, [[1.2126, 0.3500], [0.4592, 0.3811], [0.3500, 1.1594]]),
        (0.99, [[35.33, 30.72], [36.03, 31.93], [30.72, 28.00]]),
    ],
)
def test_three_node_split_by_hand(alpha: float, want: list[list[float]]) -> None:
    weight = affinity(THREE)
    weight.diagonal(dim1=1, dim2=2).zero_()
    s = normalise(weight)
    assert [s[0, 0, 1].item(), s[0, 0, 2].item(), s[0, 1, 2].item()] == pytest.approx(
        [0.6217, 0.3994, 0.4697], abs=6e-5
    )
    given = torch.tensor([[1.0, 0], [0, 0], [0, 1]], dtype=torch.float64)[None]
    p = propagate(s, given, alpha)[0]
    tolerance = 6e-5 if alpha == 0.5 else 6e-3
    torch.testing.assert_close(p, torch.tensor(want).double(), atol=tolerance, rtol=0)


def assigned(weight: torch.Tensor, alpha: float, assign: str) -> list[int]:
    """Which of the anchors 0 and 3 the five nodes join."""
    given = torch.zeros(1, 5, 2, dtype=torch.float64)
    given[0, 0, 0] = given[0, 3, 1] = 1
    p = propagate(normalise(weight), given, alpha)[0]
    return (p / p.sum(dim=0) if assign == "column_normalised" else p).argmax(dim=1).tolist()


def five_weights(cross: float | None = None) -> torch.Tensor:
    """Affinities of the five nodes; those between {0, 1, 2} and {3, 4} replaced by ``cross``."""
    weight = affinity(FIVE)
    weight.diagonal(dim1=1, dim2=2).zero_()
    if cross is not None:
        weight[:, :3, 3:] = weight[:, 3:, :3] = cross
    return weight


@pytest.mark.parametrize("alpha", ALL_ALPHA_S)
def test_five_node_split_by_hand(alpha: float) -> None:
    raw = {0.9: [0, 0, 0, 1, 0], 0.95: [0, 0, 0, 1, 0], 0.99: [0] * 5}
    assert assigned(five_weights(), alpha, "raw") == raw.get(alpha, [0, 0, 0, 1, 1])
    assert assigned(five_weights(), alpha, "column_normalised") == [0, 0, 0, 1, 1]


def test_five_nodes_without_cross_edges_and_with_the_legacy_floor() -> None:
    assert assigned(five_weights(0.0), 0.99, "raw") == [0, 0, 0, 1, 1]
    assert assigned(five_weights(float(affinity(torch.tensor(0.0)))), 0.99, "raw") == [0] * 5


@pytest.mark.parametrize("alpha", ALL_ALPHA_M[:3])
def test_small_alpha_reaches_nothing_in_a_pair(alpha: float) -> None:
    for s in torch.linspace(-1, 0.9, 20).tolist():
        pair = symmetric(2, {"01": s})
        assert reach_first(pair, pair > -2, alpha).max() < 0.25


@pytest.mark.parametrize("seed", range(4))
def test_s_is_symmetric_with_spectral_radius_at_most_one(seed: int) -> None:
    x = random_unit(12, 6, seed)
    weight = affinity(x @ x.T)[None] * (x @ x.T > 0.2)
    s = normalise(weight)
    torch.testing.assert_close(s, s.mT, atol=1e-15, rtol=0)
    assert torch.linalg.eigvalsh(s).abs().max() <= 1 + 1e-12


def test_iteration_converges_to_the_closed_form() -> None:
    x = random_unit(9, 6, 5)
    s = normalise(affinity(x @ x.T)[None])
    given = torch.eye(9, dtype=torch.float64)[None, :, :3]
    p = torch.zeros_like(given)
    for _ in range(400):
        p = 0.9 * s @ p + given
    torch.testing.assert_close(p, propagate(s, given, 0.9), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_reach_first_equals_the_twin_and_does_not_depend_on_order(seed: int) -> None:
    x = random_unit(10, 5, seed)
    s = x @ x.T
    linked = mutual_nearest(s[None], 5) & (s > 0.1)
    score = reach_first(s[None], linked, 0.99)[0]
    want = reference.reach_first(s.numpy(), linked[0].numpy(), 0.99)
    assert score.tolist() == pytest.approx(want.tolist(), abs=1e-9)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(9)])
    moved = reach_first(s[order][:, order][None], linked[:, order][:, :, order], 0.99)[0]
    torch.testing.assert_close(moved, score[order], atol=1e-9, rtol=0)


def test_padding_changes_nothing() -> None:
    x = random_unit(8, 5, 1)
    s, padded = (x @ x.T)[None], torch.zeros(1, 13, 13, dtype=torch.float64)
    padded[:, :8, :8] = s
    rule = SplitRule(alpha=0.5)
    whole = torch.ones(1, 8, dtype=torch.bool)
    there = torch.arange(13)[None] < 8
    assert split(padded, there, rule)[:, :8].tolist() == split(s, whole, rule).tolist()


@pytest.mark.parametrize("count", [3, 12, 45])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.5},
        {"assign": "column_normalised"},
        {"order": "far", "anchors": 3, "assign": "column_normalised"},
        {"legacy_index": True, "assign": "column_normalised"},
        {"legacy_floor": True, "alpha": 0.9},
        {"legacy_double_exp": True, "alpha": 0.9},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)
def test_split_equals_the_twin(count: int, seed: int, changes: dict) -> None:
    x = random_unit(count, 8, seed, spread=1.0)
    s = x @ x.T
    rule = SplitRule(**changes)
    config = SimpleNamespace(
        anchors=rule.anchors,
        alpha_s=rule.alpha,
        split_assign=rule.assign,
        anchor_order=rule.order,
        legacy_anchor_index=rule.legacy_index,
        legacy_floor=rule.legacy_floor,
        legacy_double_exp=rule.legacy_double_exp,
    )
    whole = torch.ones(1, count, dtype=torch.bool)
    place, there = find_anchors(s[None], whole, rule)
    assert place[there].tolist() == reference.find_anchors(s.numpy(), config)
    want = np.array(reference.groups_of(s.numpy(), config, below=True))
    got = split(s[None], whole, rule)[0].numpy()
    if len(set(want)) == 1:
        assert len(set(got)) == 1
    else:
        assert got.tolist() == want.tolist()


def test_anchors_by_hand() -> None:
    """The densest are 1 and 2; 0 is linked to them by .9, too near, 3 by .6, and 4 to 3 by .75."""
    place, there = find_anchors(FIVE, torch.ones(1, 5, dtype=torch.bool), SplitRule())
    densities = (FIVE.sum(dim=2) - 1)[0]
    assert densities.tolist() == pytest.approx([2.7, 2.75, 2.75, 2.4, 2.2])
    assert set(place[there].tolist()) - {1, 2} == {3, 4}


def test_neighbourhood_begins_with_the_image_even_among_doubles() -> None:
    bank = torch.eye(4)[[0, 1, 1, 1, 2, 3]]
    near = neighbourhood(bank, torch.tensor([2, 4]), 3)
    assert near.row_Bn[:, 0].tolist() == [2, 4]
    assert set(near.row_Bn[0].tolist()) == {1, 2, 3}


@pytest.mark.parametrize("rule", ["propagated", "plain"])
def test_sources_are_never_joined(rule: str) -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]]))
    near = neighbourhood(bank, torch.tensor([1]), 3)
    best, joins = best_neighbours(near, 1, NeighbourRule(rule=rule))  # type: ignore[arg-type]
    assert (best.item(), joins.item()) == ((0, False) if rule == "propagated" else (2, True))


def test_an_image_alone_in_the_bank_joins_nothing() -> None:
    near = neighbourhood(torch.eye(3)[:1], torch.tensor([0]), 64)
    assert not best_neighbours(near, 0, NeighbourRule())[1].any()
