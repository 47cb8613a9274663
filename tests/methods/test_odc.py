"""ODC as a method: its loss, its head, its labels; equal numbers on any number of workers and after a resume."""

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_core import distributed
from reid_core import method as contract
from reid_core.batch import TARGET, Batch, Domain, Round, Sizes
from reid_core.errors import UsageError
from reid_core.labels import Features
from reid_core.methods import odc
from reid_core.methods.odc import Config, Head, Objective
from reid_core.models.embedder import build_embedder
from reid_core.seeding import derive
from reid_core.settings import ModelConfig, group_size
from reid_core.training import Learner, train_round
from tests.ranks import run_ranks
from tests.reference import odc as reference

METHOD = contract.load("odc")
IMAGES, BATCH, STEPS = 36, 16, 4


def settings(precision: str = "fp64", **changes: Any) -> Config:
    config = Config(
        clusters=5,
        min_size=4,
        refresh_every=3,
        hidden=12,
        code=16,
        rounds=2,
        steps=STEPS,
        batch_size=BATCH,
        instances=2,
        bn_group=8,
        model=ModelConfig(trunk="tiny", pooling="gem", weights="random", precision=precision),  # type: ignore[arg-type]
    )
    return replace(config, **changes)


def domain(dim: int, dtype: torch.dtype, label: torch.Tensor) -> Domain:
    row, g = torch.arange(IMAGES), torch.Generator().manual_seed(2)
    feature = F.normalize(torch.randn(IMAGES, dim, generator=g).to(dtype), dim=1)
    return Domain(image_id=3 * row, camid=row % 3, label=label, feature=feature)


def share_of(config: Config, start: Round) -> Iterator[Batch]:
    """This rank's share of the batches of a round; an image is noise around one of six patterns."""
    g = torch.Generator().manual_seed(0)
    pattern = torch.randn(6, 3, 24, 16, generator=g)
    image = 2 * pattern[torch.arange(IMAGES) % 6] + torch.randn(IMAGES, 3, 24, 16, generator=g)
    share = config.batch_size // distributed.world_size()
    position = distributed.rank() * share + torch.arange(share)
    stream = contract.batches(METHOD, config, start.target, derive(5, start.number))
    for step, rows in enumerate(stream):
        row = torch.from_numpy(rows)[position]
        yield Batch(
            image=(image[row],),
            image_id=3 * row,
            row=row,
            camid=row % 3,
            label=start.target.label[row],
            domain=torch.full_like(row, TARGET),
            position=position,
            seed=derive(6, start.number, step),
        )


class Run:
    """All that training consists of, without images on a disk and without Ray."""

    def __init__(self, config: Config, state: bytes = b"") -> None:
        self.config = config
        embedder = build_embedder(config.model, bn_group=group_size(config), seed=1)
        self.dtype, self.dim = next(embedder.parameters()).dtype, embedder.dim
        with torch.random.fork_rng():
            torch.manual_seed(4)
            objective = Objective(config, embedder, Sizes(IMAGES, 0, self.dim)).to(self.dtype)
        self.learner, self.objective = Learner(embedder, objective), objective
        self.optimizer = contract.optimizer(METHOD, config, embedder, objective)
        if config.model.precision == "fp32":  # Adam's first step is a sign: rounding may turn it
            self.optimizer = torch.optim.SGD(self.optimizer.param_groups[0]["params"], lr=0.1)
        self.scheduler = contract.scheduler(METHOD, config, self.optimizer)
        self.history: list[dict[str, float]] = []
        if state:
            saved = torch.load(io.BytesIO(state), weights_only=True)
            for name, part in self.parts().items():
                part.load_state_dict(saved[name])

    def parts(self) -> dict[str, Any]:
        return {
            "embedder": self.learner.embedder,
            "objective": self.objective,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
        }

    def state(self) -> bytes:
        saved = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, saved)
        return saved.getvalue()

    def round(self, number: int, steps: int = STEPS) -> "Run":
        row = torch.arange(IMAGES)
        label = torch.where(row < 30, row % 4, -1)[:, None]  # five clusters are asked for
        if number:
            label = self.objective.labels()
        target = domain(self.dim, self.dtype, label)
        if number:
            target = replace(target, feature=None)
        start = Round(
            number=number,
            rounds=self.config.rounds,
            step=steps * number,
            target=target,
            source=None,
        )
        self.objective.begin_round(start)
        for terms, scalars in train_round(
            self.learner,
            share_of(self.config, start),
            self.optimizer,
            progress=(0, 1),
            num_steps=steps,
        ):
            reduced = {k: distributed.mean_over_ranks(v) for k, v in terms.items()} | scalars
            self.history.append({name: float(value) for name, value in reduced.items()})
        self.scheduler.step()
        distributed.check_equal_on_ranks(list(self.objective.buffers()), "the memory")
        return self

    def result(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "labels": self.objective.labels(),
            "objective": self.objective.state_dict(),
            "embedder": self.learner.embedder.state_dict(),
        }


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for a, b in zip(one["history"], other["history"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    assert torch.equal(one["labels"], other["labels"])
    for name in ("objective", "embedder"):
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


# --- any number of workers, and resuming

CASES = {"fp64": (10, 1e-8), "fp32": (1, 1e-5)}


def all_cases() -> list[dict[str, Any]]:
    return [Run(settings(name)).round(0, steps).result() for name, (steps, _) in CASES.items()]


@pytest.mark.ddp
def test_one_worker_equals_two(tmp_path: Path) -> None:
    (one,), (two, other) = (run_ranks(all_cases, w, tmp_path / str(w)) for w in (1, 2))
    for number, (_, tolerance) in enumerate(CASES.values()):
        compare(one[number], two[number], tolerance)
        compare(two[number], other[number], 0.0)


def test_clusters_change_while_training() -> None:
    history = Run(settings()).round(0, 10).history
    assert set(history[0]) == {"target", "reassigned", "dissolved"}
    assert sum(step["reassigned"] for step in history) > 0
    assert sum(step["dissolved"] for step in history) > 0


def test_resuming_changes_no_bit() -> None:
    config = settings("fp32")
    whole = Run(config).round(0).round(1)
    first = Run(config).round(0)
    second = Run(config, first.state()).round(1)
    compare(whole.result() | {"history": whole.history[STEPS:]}, second.result(), 0.0)


# --- the loss and the head


def filled(config: Config, dim: int = 6) -> Objective:
    row = torch.arange(IMAGES)
    objective = Objective(config, nn.Identity(), Sizes(IMAGES, 0, dim)).double()
    nn.init.normal_(objective.classifier.weight)
    target = domain(dim, torch.float64, torch.where(row < 20, row % 2, 2 + row % 3)[:, None])
    objective.begin_round(Round(number=0, rounds=1, step=0, target=target, source=None))
    return objective


def batch_of(x: torch.Tensor, row: list[int]) -> Batch:
    place = torch.arange(len(x))
    zero = torch.zeros_like(place)
    return Batch(
        image=(x,), image_id=place, row=torch.tensor(row), camid=zero, label=zero[:, None],
        domain=zero, position=place, seed=7,
    )  # fmt: skip


def plain(config: Config, objective: Objective, x: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """The logits by numpy: linear, BatchNorm over groups, ReLU, dropout, linear, ReLU, linear."""
    weight = {k: v.numpy() for k, v in objective.state_dict().items()}
    inner = x.numpy() @ weight["head.inner.weight"].T + weight["head.inner.bias"]
    groups = inner.reshape(-1, config.bn_group, config.hidden)
    normal = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-5)
    inner = np.maximum(normal.reshape(inner.shape), 0) * scale.numpy()
    code = np.maximum(inner @ weight["head.outer.weight"].T + weight["head.outer.bias"], 0)
    return code @ weight["classifier.weight"].T + weight["classifier.bias"]


@pytest.mark.parametrize("reweight", [0.0, 0.5, 1.0])
def test_loss_and_gradient_equal_the_twin(reweight: float) -> None:
    config = settings(reweight=reweight)
    objective = filled(config).train()
    g = torch.Generator().manual_seed(1)
    x = F.normalize(torch.randn(BATCH, 6, generator=g, dtype=torch.float64))
    row = torch.randint(0, IMAGES, (BATCH,), generator=g).tolist()
    batch = batch_of(x, row)
    scale = objective._dropout(batch, x)
    label, size = objective.clusters.label_N, objective.clusters.sizes().tolist()
    assert len(set(size)) > 1

    def twin(x: torch.Tensor) -> float:
        logits = plain(config, objective, x, scale)
        return reference.loss(logits, label[row].tolist(), size, reweight)

    x.requires_grad_()
    step = objective(nn.Identity(), batch, 0.0)
    assert set(step.terms) == {"target"}
    assert step.total.item() == pytest.approx(twin(x.detach()))
    step.total.backward()
    assert x.grad is not None
    for place in [(0, 0), (7, 3), (15, 5)]:
        moved = x.detach().repeat(2, 1, 1)
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        slope = (twin(moved[0]) - twin(moved[1])) / 2e-6
        assert x.grad[place].item() == pytest.approx(slope, abs=1e-6)


def test_weights_by_hand() -> None:
    """Clusters of 4 and 16 images weigh 1/2 and 1/4: (2 a + b) / 3 for one image of each."""
    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    a, b = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert reference.loss(logits, [0, 1], [4, 16], 0.5) == pytest.approx((2 * a + b) / 3)


def test_dropout_is_one_draw_for_the_global_batch() -> None:
    objective = filled(settings(dropout=0.25))
    x = torch.zeros(BATCH, 6, dtype=torch.float64)
    whole = objective._dropout(batch_of(x, [0] * BATCH), x)
    assert set(whole.unique().tolist()) == {0.0, 4 / 3}
    half = replace(batch_of(x[:8], [0] * 8), position=torch.arange(8, 16))
    assert torch.equal(objective._dropout(half, x), whole[8:])
    later = replace(half, seed=8)
    assert not torch.equal(objective._dropout(later, x), whole[8:])
    assert filled(settings(dropout=0.0))._dropout(half, x).unique().tolist() == [1.0]


def test_the_memory_starts_with_codes_under_the_statistics_of_all_images() -> None:
    objective = filled(settings())
    x = domain(6, torch.float64, torch.zeros(IMAGES, 1, dtype=torch.int64)).extracted
    twin = Head(6, 12, 16, group=IMAGES).double()
    twin.load_state_dict(objective.head.state_dict())
    torch.testing.assert_close(
        objective.features(), F.normalize(twin.train()(x)), atol=0.02, rtol=0
    )  # biased against unbiased variance
    assert torch.equal(objective.features(), F.normalize(objective.head.eval()(x)))


def test_the_memory_moves_by_the_codes_and_the_means_are_refreshed_in_time() -> None:
    objective = filled(settings(min_size=2, refresh_every=2))
    twin = reference.Twin(
        objective.features().numpy(), objective.labels()[:, 0].tolist(), 5, momentum=0.5, min_size=2
    )
    objective.train()
    g = torch.Generator().manual_seed(3)
    for number in range(6):
        x = F.normalize(torch.randn(BATCH, 6, generator=g, dtype=torch.float64))
        row = torch.randint(0, IMAGES, (BATCH,), generator=g).tolist()
        batch = batch_of(x, row)
        step = objective(nn.Identity(), batch, 0.0)
        counts = objective.update(nn.Identity(), batch, step)
        code = step.extra["code_bE"].detach()
        share = twin.move(row, code.numpy())
        if number % 2:
            twin.refresh()
        assert float(counts["reassigned"]) == pytest.approx(share)
        assert int(counts["dissolved"]) == twin.balance()
        assert objective.labels()[:, 0].tolist() == twin.label


def test_a_second_round_keeps_the_memories() -> None:
    objective = filled(settings())
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    label = torch.zeros(IMAGES, 1, dtype=torch.int64)
    later = replace(domain(6, torch.float64, label), feature=None)
    objective.begin_round(Round(number=1, rounds=2, step=9, target=later, source=None))
    assert objective.steps == 9
    after = objective.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- labels and batches


def groups(members: int, count: int) -> Features:
    """Tight groups in orthogonal directions."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(count, 16), members, axis=0)
    rows += rng.normal(0, 0.01, rows.shape)
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return Features(image_id=5 * np.arange(len(unit)), feature=unit)


def test_images_are_clustered_once_by_kmeans() -> None:
    config = settings(clusters=2)
    labels = odc.assign_labels(config, groups(8, 2), None)
    assert labels.label[:, 0].tolist() == [0] * 8 + [1] * 8
    assert 0 <= labels.metrics["label_free"] <= 1
    assert [contract.labels_from(METHOD, config, n) for n in (0, 1, 5)] == [
        "extracted", "online", "online",
    ]  # fmt: skip


@pytest.mark.parametrize(("images", "want"), [(12936, 500), (10000, 500), (9999, 499), (40, 2)])
def test_small_sets_have_fewer_clusters(images: int, want: int) -> None:
    assert odc.cluster_count(Config(), images) == want


def test_too_few_images_are_refused_and_fewer_clusters_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ValueError, match=r"39 images.*--method\.min-size"):
        odc.cluster_count(Config(), 39)
    with caplog.at_level(logging.WARNING):
        objective = Objective(Config(), nn.Identity(), Sizes(100, 0, 6))
    assert "5 clusters, not 500" in caplog.text
    assert objective.classifier.out_features == 5


def test_batches_hold_every_cluster_and_lone_images() -> None:
    label = torch.tensor([0] * 20 + [1] * 15 + [-1])
    stream = contract.batches(METHOD, settings(), domain(6, torch.float64, label[:, None]), seed=0)
    drawn = np.concatenate([next(stream) for _ in range(5)])[:75]  # 15 passes of 2 + 2 + 1
    assert [(label[drawn] == k).sum().item() for k in (0, 1, -1)] == [30, 30, 15]


# --- bad input and presets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clusters", 1), ("min_size", 1), ("momentum", 1.0), ("refresh_every", 0), ("reweight", -1),
        ("hidden", 0), ("code", 0), ("dropout", 1.0), ("rounds", 0), ("steps", 0), ("instances", 0),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} = .*usual"):
        Config(**{name: value})


def test_a_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="bn_group = 7"):
        Config(bn_group=7)


def test_presets_are_the_rows_of_the_table() -> None:
    assert set(odc.PRESETS) == {"demo", "omniglot", "market1501", "dukemtmc"}
    assert odc.PRESETS["market1501"].published == {"mAP": 20.0, "rank1": 38.8, "rank5": 54.9}
    assert odc.PRESETS["dukemtmc"].published == {"mAP": 15.7, "rank1": 24.7, "rank5": 39.1}
