"""MoCo: a slow twin of whole steps, the shuffle, any number of workers, resuming, what its settings refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.methods import moco
from reid_core.models.ema import teacher_of
from reid_core.seeding import generator
from tests.methods import small_run, two_views
from tests.ranks import run_ranks
from tests.reference import moco as reference


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


def settings(precision: str = "fp64", **changes: Any) -> moco.Config:
    """A queue that is full after two and a half steps, a key encoder that is not far behind."""
    return two_views.settings("moco", precision, **({"queue": 40, "ema": 0.8} | changes))


def run(folder: Path, **changes: Any) -> two_views.Run:
    return two_views.Run(folder, "moco", settings(**changes))


# --- against the equations


def slow_run(folder: Path, steps: int) -> dict[str, Any]:
    """One process, whole batches; the key encoder's groups are those of the shuffled batch."""
    begun, start = run(folder), two_views.start_round()
    config, embedder, head = begun.config, begun.embedder.train(), begun.objective.head
    key_embedder, key_weight = teacher_of(embedder).train(), head.weight.detach().clone()
    queue = list(begun.objective.queue.row_QP.clone())
    losses = []
    for batch in begun.batches(start, steps):
        order = torch.randperm(16, generator=generator(batch.seed, "shuffle")).tolist()
        with torch.no_grad():
            shuffled = reference.project(key_embedder(batch.image[1][order]), key_weight)
        keys = [shuffled[order.index(place)] for place in range(16)]
        queries = reference.project(embedder(batch.image[0]), head.weight)
        loss = reference.mean_loss(queries, keys, queue, config.temperature)
        begun.optimizer.zero_grad()
        loss.backward()
        begun.optimizer.step()
        moved = reference.follow(key_embedder.state_dict(), embedder.state_dict(), config.ema)
        key_embedder.load_state_dict(moved)
        key_weight = config.ema * key_weight + (1 - config.ema) * head.weight.detach()
        queue = (queue + keys)[-config.queue :]
        losses.append({"contrast": loss.item()})
    return {
        "losses": losses,
        "embedder": embedder.state_dict(),
        "key_embedder": key_embedder.state_dict(),
        "key_weight": key_weight,
        "queue": queue,
    }


def test_equals_the_slow_twin(folder: Path) -> None:
    fast, steps = run(folder), 4
    result, want = fast.round(steps), slow_run(folder, steps)
    for one, other in zip(result["losses"], want["losses"], strict=True):
        assert one == pytest.approx(other, abs=1e-8, rel=0)
    objective = fast.objective
    oldest = int(objective.queue.oldest)
    queue = objective.queue.row_QP.roll(-oldest, dims=0)
    for got, expected in (
        (result["embedder"], want["embedder"]),
        (objective.key_embedder.state_dict(), want["key_embedder"]),
        (objective.key_head.weight, want["key_weight"]),
        (queue, torch.stack(want["queue"])),
    ):
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=0, check_device=False)


# --- its parts


def test_keys_stand_in_the_order_of_the_batch(folder: Path) -> None:
    """In one BatchNorm group of the whole batch a shuffle changes nothing."""
    begun = run(folder)
    batch = next(begun.batches(two_views.start_round(), 1))
    objective = begun.objective
    for layer in objective.key_embedder.modules():
        if hasattr(layer, "group"):
            layer.group = 16
    key = nn.functional.normalize(objective.key_head(objective.key_embedder(batch.image[1])), dim=1)
    torch.testing.assert_close(objective._keys(batch), key, atol=1e-12, rtol=0)


def test_keys_are_not_normalised_with_their_queries(folder: Path) -> None:
    begun = run(folder)
    batch = next(begun.batches(two_views.start_round(), 1))
    objective = begun.objective
    together = nn.functional.normalize(
        objective.key_head(objective.key_embedder(batch.image[1])), dim=1
    )
    assert not torch.allclose(objective._keys(batch), together, atol=1e-3)
    other = objective._keys(replace(batch, seed=batch.seed + 1))
    assert not torch.allclose(objective._keys(batch), other, atol=1e-3)


def test_key_encoder_is_not_trained(folder: Path) -> None:
    begun = run(folder)
    trained = {n for n, p in begun.objective.named_parameters() if p.requires_grad}
    assert trained == {"head.weight"}
    taught = sum(len(group["params"]) for group in begun.optimizer.param_groups)
    assert taught == 1 + sum(p.requires_grad for p in begun.embedder.parameters())


def test_length_of_a_row_does_not_matter(folder: Path) -> None:
    head = run(folder).objective.head
    x = torch.randn(3, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (nn.functional.normalize(head(scale * x), dim=1) for scale in (1, 16))
    torch.testing.assert_close(one, other)


def test_two_views_of_shuffled_images() -> None:
    method, config = contract.load("moco"), settings()
    assert contract.views(method, config) == (config.images, config.images)
    assert (
        contract.labels_from(method, config, 0) == contract.labels_from(method, config, 9) == "none"
    )
    stream = contract.batches(method, config, two_views.start_round().target, seed=0)
    rows = np.concatenate([next(stream) for _ in range(9)]).reshape(4, 36)  # 144 = 9 x 16 = 4 x 36
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(36), (4, 1)))
    assert len({tuple(of_pass) for of_pass in rows.tolist()}) == 4


# --- any number of workers, and resuming


@pytest.mark.ddp
def test_one_worker_equals_two(folder: Path, tmp_path: Path) -> None:
    (one,), (two, other) = (
        run_ranks(two_views.results, world, tmp_path / str(world), folder, "moco")
        for world in (1, 2)
    )
    for number, tolerance in enumerate(two_views.TOLERANCE.values()):
        two_views.compare(one[number], two[number], tolerance)
        two_views.compare(two[number], other[number], 0.0)


def test_resuming_changes_no_bit(folder: Path) -> None:
    two_views.check_resuming(folder, "moco")


# --- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"temperature = 0\.0.*0\.07 is usual"),
        ({"queue": 63}, "queue = 63; must be at least batch_size, 8192 is usual"),
        ({"ema": 1.5}, r"ema = 1\.5.*0\.999 is usual"),
        ({"projection": 0}, "projection = 0.*128 is usual"),
        ({"rounds": 0}, "rounds = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"bn_group": 7}, "bn_group = 7 does not divide batch_size = 64"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        moco.Config(**changes)


def test_presets_are_the_rows_of_the_table() -> None:
    assert set(moco.PRESETS) == {"demo", "omniglot", "market1501", "dukemtmc"}
    assert moco.PRESETS["market1501"].published == {"mAP": 6.1, "rank1": 12.8, "rank5": 27.1}
    assert moco.PRESETS["dukemtmc"].published == {"mAP": 5.6, "rank1": 10.7, "rank5": 22.0}
    published = moco.PRESETS["market1501"].config
    assert published.rounds * published.steps == 24000
