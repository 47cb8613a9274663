"""BYOL: a slow twin of whole steps, the target's schedule, any number of workers, resuming, refused settings."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.methods import byol
from reid_core.models.ema import teacher_of
from tests.methods import small_run, two_views
from tests.ranks import run_ranks
from tests.reference import byol as reference
from tests.reference.moco import follow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


def settings(precision: str = "fp64", **changes: Any) -> byol.Config:
    """A target that is not far behind."""
    return two_views.settings("byol", precision, **({"ema": 0.8, "hidden": 24} | changes))


def run(folder: Path, **changes: Any) -> two_views.Run:
    return two_views.Run(folder, "byol", settings(**changes))


# --- against the equations


def weights_of(head: nn.Module) -> dict[str, Tensor]:
    return dict(head.named_parameters())


def slow_run(folder: Path, steps: int) -> dict[str, Any]:
    """One process, whole batches, one view after the other."""
    begun, start = run(folder), two_views.start_round()
    objective, embedder, group = begun.objective, begun.embedder.train(), begun.config.bn_group
    target, length = teacher_of(embedder).train(), 256**0.5
    projector = {n: x.detach().clone() for n, x in weights_of(objective.projector).items()}
    losses = []
    weights = reference.target_weights(2 * steps, begun.config.ema)[:steps]  # half of the run
    for weight, batch in zip(weights, begun.batches(start, steps), strict=True):
        prediction, projection = [], []
        for view in batch.image:
            x = reference.head(length * embedder(view), weights_of(objective.projector), group)
            prediction.append(reference.head(x, weights_of(objective.predictor), group))
            with torch.no_grad():
                projection.append(reference.head(length * target(view), projector, group))
        loss = sum(reference.distance(prediction[v], projection[1 - v]) for v in (0, 1))
        begun.optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        begun.optimizer.step()
        moved = follow(dict(target.named_parameters()), dict(embedder.named_parameters()), weight)
        target.load_state_dict(moved, strict=False)
        projector = follow(projector, weights_of(objective.projector), weight)
        losses.append({"distance": loss.item()})  # type: ignore[union-attr]
    return {
        "losses": losses,
        "embedder": dict(embedder.named_parameters()),
        "target": dict(target.named_parameters()),
        "projector": projector,
    }


def test_equals_the_slow_twin(folder: Path) -> None:
    fast, steps = run(folder), 4
    result, want = fast.round(steps), slow_run(folder, steps)
    for one, other in zip(result["losses"], want["losses"], strict=True):
        assert one == pytest.approx(other, abs=1e-8, rel=0)
    for part, network in (
        ("embedder", fast.embedder),
        ("target", fast.objective.target),
        ("projector", fast.objective.target_projector),
    ):
        got = dict(network.named_parameters())
        torch.testing.assert_close(got, want[part], atol=1e-8, rtol=0)


# --- its parts


@pytest.mark.parametrize(
    ("progress", "want"), [(0.0, 0.996), (1 / 3, 0.997), (0.5, 0.998), (2 / 3, 0.999), (1.0, 1.0)]
)
def test_target_weight_by_hand(progress: float, want: float) -> None:
    assert byol.target_weight(0.996, progress) == pytest.approx(want, abs=1e-15)


def test_loss_by_hand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cos .6 and 0 in the two directions: .8 + 2."""
    begun = run(folder)
    batch = next(begun.batches(two_views.start_round(), 1))
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).double().repeat_interleave(16, dim=0)
    target = torch.tensor([[0.6, 0.8], [1.0, 0.0]]).double().repeat_interleave(16, dim=0)
    monkeypatch.setattr(begun.objective.predictor, "forward", lambda _: rows)
    monkeypatch.setattr(begun.objective, "_project", lambda _: target)
    step = begun.objective(begun.embedder.train(), batch, 0.0)
    assert step.total.item() == pytest.approx(2.8)


def test_predictions_are_matched_with_the_other_view(folder: Path) -> None:
    begun = run(folder)
    batch = next(begun.batches(two_views.start_round(), 1))
    seen = []
    begun.objective.target.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    step = begun.objective(begun.embedder.train(), batch, 0.0)
    assert torch.equal(seen[0], torch.cat([batch.image[1], batch.image[0]]))
    assert step.embedding.shape == (16, 256)


def test_running_statistics_move_once_a_step(folder: Path) -> None:
    begun = run(folder)
    begun.round(3)
    assert begun.embedder.state_dict()["neck.num_batches_tracked"] == 3


def test_target_is_not_trained_and_stays_where_the_weight_is_one(folder: Path) -> None:
    begun = run(folder, ema=1.0)
    before = [x.clone() for x in begun.objective.target.parameters()]
    assert {n.split(".")[0] for n, p in begun.objective.named_parameters() if p.requires_grad} == {
        "projector",
        "predictor",
    }
    begun.round(2)
    assert all(map(torch.equal, begun.objective.target.parameters(), before))


def test_two_views_of_shuffled_images() -> None:
    method, config = contract.load("byol"), settings()
    assert contract.views(method, config) == (config.images, config.images)
    assert (
        contract.labels_from(method, config, 0) == contract.labels_from(method, config, 9) == "none"
    )
    stream = contract.batches(method, config, two_views.start_round().target, seed=0)
    rows = np.concatenate([next(stream) for _ in range(9)]).reshape(4, 36)  # 144 = 9 x 16 = 4 x 36
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(36), (4, 1)))


# --- any number of workers, and resuming


@pytest.mark.ddp
def test_one_worker_equals_two(folder: Path, tmp_path: Path) -> None:
    (one,), (two, other) = (
        run_ranks(two_views.results, world, tmp_path / str(world), folder, "byol")
        for world in (1, 2)
    )
    for number, tolerance in enumerate(two_views.TOLERANCE.values()):
        two_views.compare(one[number], two[number], tolerance)
        two_views.compare(two[number], other[number], 0.0)


def test_resuming_changes_no_bit(folder: Path) -> None:
    two_views.check_resuming(folder, "byol")


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": -0.1}, r"ema = -0\.1.*0\.996 is usual"),
        ({"hidden": 0}, "hidden = 0.*4096 is usual"),
        ({"projection": 0}, "projection = 0.*256 is usual"),
        ({"rounds": 0}, "rounds = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"bn_group": 7}, "bn_group = 7 does not divide batch_size = 64"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        byol.Config(**changes)


def test_presets_are_the_rows_of_the_table() -> None:
    assert set(byol.PRESETS) == {"demo", "omniglot", "market1501", "dukemtmc"}
    assert byol.PRESETS["market1501"].published == {"mAP": 4.9, "rank1": 11.8, "rank5": 21.8}
    assert byol.PRESETS["dukemtmc"].published == {"mAP": 2.7, "rank1": 5.3, "rank5": 10.3}
    published = byol.PRESETS["market1501"].config
    assert published.rounds * published.steps == 24000
