"""ISE as a method: slow twin, workers, resume, its variants and its presets."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid_core import method as contract
from reid_core.batch import Batch, Domain, Round, Sizes
from reid_core.distributed import check_equal_on_ranks, rank, world_size
from reid_core.errors import UsageError
from reid_core.labels import Features
from reid_core.methods import ise
from reid_core.models.embedder import build_embedder
from reid_core.seeding import derive, generator
from reid_core.settings import ModelConfig
from reid_core.training import Learner, reduce_terms, train_round
from tests.ranks import run_ranks
from tests.reference import ise as reference
from tests.reference import memory as reference_memory

IMAGES, CLUSTERS, BATCH, GROUP, STEPS = 36, 5, 16, 4, 10
MIXUP = {"supports": 0, "beta": 0.0, "mixup": 0.8}
VARIANTS: dict[str, dict[str, Any]] = {
    "market": {},
    "msmt17": {"momentum": 0.1, "update": "all"},
    "farthest": {"direction": "farthest", "degree": "square"},
    "random": {"direction": "random", "supports": 3, "degree": "constant"},
    "every": {"supports": 10, "degree": "linear", "lam0": 2.0, "update": "all"},
    "pli": {"beta": 0.0},
    "lp_real": {"supports": 0},
    "baseline": {"supports": 0, "beta": 0.0},
    "mixup": MIXUP,
    "mixup_all": MIXUP | {"update": "all"},
}


def settings(precision: str = "fp64", **changes: Any) -> ise.Config:
    return replace(
        ise.DEMO,
        batch_size=BATCH,
        instances=2,
        bn_group=GROUP,
        model=ModelConfig(trunk="tiny", pooling="gem", weights="random", precision=precision),
        **changes,
    )


def images(number: int, count: int) -> Tensor:
    g = torch.Generator().manual_seed(number)
    return torch.randn(count, 3, 24, 16, generator=g)


def batches(number: int = 0) -> Iterator[Batch]:
    """This rank's share of random batches, four images of four clusters in any order; without end."""
    rng = np.random.default_rng(number)
    share = BATCH // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    for step in range(10**6):
        label = torch.from_numpy(rng.permutation(rng.choice(CLUSTERS, 4, replace=False).repeat(4)))
        nothing = torch.zeros(share, dtype=torch.int64)
        yield Batch(
            image=(images(derive(number, step) % 2**31, BATCH)[own],),
            image_id=nothing,
            row=nothing,
            camid=nothing,
            label=label[own, None],
            domain=nothing,
            position=torch.arange(BATCH)[own],
            seed=derive(number, "seed", step),
        )


def start_round(embedder: nn.Module, number: int = 0) -> Round:
    """The round with features that the network gives now; the last images are outliers."""
    embedder.eval()
    with torch.no_grad():
        feature = embedder(images(100, IMAGES))
    label = torch.arange(IMAGES) % CLUSTERS
    label[-4:] = -1
    every = torch.arange(IMAGES)
    target = Domain(image_id=every, camid=every, label=label[:, None], feature=feature)
    return Round(number=number, rounds=2, step=0, target=target, source=None)


class Run:
    """Embedder, objective and optimiser."""

    def __init__(self, config: ise.Config, method: Any = ise) -> None:
        self.embedder = build_embedder(config.model, bn_group=GROUP, seed=3)
        dtype = next(self.embedder.parameters()).dtype
        sizes = Sizes(IMAGES, 0, self.embedder.dim)
        self.objective = method.Objective(config, self.embedder, sizes).to(dtype)
        self.learner = Learner(self.embedder, self.objective)
        self.optimizer = contract.optimizer(method, config, self.embedder, self.objective)
        if config.model.precision == "fp32":  # Adam's first step is a sign: rounding may turn it
            trained = self.optimizer.param_groups[0]["params"]
            self.optimizer = torch.optim.SGD(trained, lr=0.1)

    def round(self, number: int, steps: int) -> list[dict[str, float]]:
        """Losses of one round; half of the run a round."""
        self.objective.begin_round(start_round(self.embedder, number))
        progress = (number / 2, (number + 1) / 2)
        history = train_round(
            self.learner, batches(number), self.optimizer, progress=progress, num_steps=steps
        )
        return reduce_terms([terms for terms, _ in history], 0)

    def modules(self) -> tuple[Any, ...]:
        return self.embedder, self.objective, self.optimizer

    def state(self) -> dict[str, Any]:
        check_equal_on_ranks(list(self.objective.buffers()), "the memory")
        return {"weights": self.embedder.state_dict(), "memory": self.objective.memory_CD}


def train(config: ise.Config, steps: int) -> dict[str, Any]:
    run = Run(config)
    return {"losses": run.round(0, steps), **run.state()}


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    for name in ("memory", "weights"):
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


# The slow twin


def slow_loss(
    x_bD: Tensor, batch: Batch, memory: Tensor, config: ise.Config, progress: float
) -> tuple[dict[str, Tensor], list[int], Tensor]:
    """Terms, and the rows to move with their embeddings in order."""
    label = batch.label[:, 0].tolist()
    lam = reference.degree(config.degree, config.lam0, progress)
    drawn = torch.rand(BATCH, CLUSTERS, generator=generator(batch.seed, "direction"))
    supports: list[list[Tensor]] = []
    for b, (x, y) in enumerate(zip(x_bD, label, strict=True)):
        similarity = memory @ x.detach()
        score = {"nearest": similarity, "farthest": -similarity, "random": drawn[b]}
        toward = reference.other_classes(score[config.direction], y, config.supports)
        supports.append(reference.supports(x, y, toward, memory, lam))
    samples = [[x, *own] for x, own in zip(x_bD, supports, strict=True)]
    terms = {"extension": reference.extension(samples, label, memory, config.temperature)}
    if config.beta:
        of = supports if config.supports else samples
        candidates = [(row, y) for own, y in zip(of, label, strict=True) for row in own]
        lp = reference.label_preserving(list(x_bD), label, candidates, config.lp_temperature)
        terms["preserving"] = config.beta * lp
    rows = label + [y for own, y in zip(supports, label, strict=True) for _ in own]
    return terms, rows, torch.stack([*x_bD, *(row for own in supports for row in own)])


def slow_mixup(
    embedder: nn.Module, batch: Batch, memory: Tensor, config: ise.Config
) -> tuple[dict[str, Tensor], list[int], Tensor]:
    share, partner = ise.mixup_draw(config.mixup, BATCH, GROUP, batch.seed)
    image, label = batch.image[0], batch.label[:, 0].tolist()
    x = embedder(torch.stack([share * image[b] + (1 - share) * image[p]
                              for b, p in enumerate(partner)]))  # fmt: skip
    losses = [
        share * reference.cross_entropy(x[b], label[b], memory, config.temperature)
        + (1 - share) * reference.cross_entropy(x[b], label[p], memory, config.temperature)
        for b, p in enumerate(partner)
    ]
    rows = [label[b] if share >= 0.5 else label[p] for b, p in enumerate(partner)]
    return {"extension": torch.stack(losses).mean()}, rows, x


def slow_twin(config: ise.Config, steps: int) -> dict[str, Any]:
    run = Run(config)
    target = start_round(run.embedder).target
    label = target.label[:, 0]
    means = torch.stack([target.extracted[label == c].mean(dim=0) for c in range(CLUSTERS)])
    memory = F.normalize(means, dim=1)
    run.embedder.train()
    losses = []
    for step, batch in zip(range(steps), batches(), strict=False):
        if config.mixup:
            terms, row, x = slow_mixup(run.embedder, batch, memory, config)
        else:
            embedded = run.embedder(batch.image[0])
            terms, row, x = slow_loss(embedded, batch, memory, config, 0.5 * step / steps)
        run.optimizer.zero_grad()
        sum(terms.values()).backward()  # type: ignore[union-attr]
        run.optimizer.step()
        update = getattr(
            reference_memory, {"all": "update_in_order", "hard": "update_hardest"}[config.update]
        )
        memory = update(memory, torch.tensor(row), x.detach(), config.momentum)
        losses.append({name: term.item() for name, term in terms.items()})
    return {"losses": losses, "weights": run.embedder.state_dict(), "memory": memory}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_slow_twin(name: str) -> None:
    config = settings(**VARIANTS[name])
    compare(train(config, 4), slow_twin(config, 4), 1e-8)


# The number of workers


CASES = [(name, precision) for name in VARIANTS for precision in ("fp64", "fp32")]


def run_all() -> list[dict[str, Any]]:
    """Every case; in one function, so that each rank starts its process only once."""
    return [
        train(settings(precision, **VARIANTS[name]), STEPS if precision == "fp64" else 1)
        for name, precision in CASES
    ]


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    ranks = tmp_path_factory.mktemp("ranks")
    return [run_ranks(run_all, world, ranks / str(world)) for world in (1, 2)]


@pytest.mark.ddp
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_one_worker_equals_two(one_and_two: list[list[Any]], case: tuple[str, str]) -> None:
    (one,), (two, other) = one_and_two
    number = CASES.index(case)
    compare(one[number], two[number], 1e-8 if case[1] == "fp64" else 1e-5)
    assert torch.equal(two[number]["memory"], other[number]["memory"])


# Resume


@pytest.mark.parametrize("name", ["market", "random", "mixup"])
def test_resume_between_rounds_is_bit_equal(name: str, tmp_path: Path) -> None:
    config = settings("fp32", **VARIANTS[name])
    whole = Run(config)
    whole.round(0, 3)
    torch.save([module.state_dict() for module in whole.modules()], tmp_path / "state.pt")
    losses = whole.round(1, 3)
    resumed = Run(config)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for module, state in zip(resumed.modules(), saved, strict=True):
        module.load_state_dict(state)
    assert resumed.round(1, 3) == losses
    torch.testing.assert_close(resumed.state(), whole.state(), atol=0, rtol=0)


# Properties


@pytest.mark.parametrize("update", ["all", "hard"])
def test_baseline_is_cluster_contrast(update: str) -> None:
    """With its own settings the baseline makes the same steps, bit for bit."""
    other = contract.load("cluster_contrast")
    config = settings("fp32", **VARIANTS["baseline"], update=update)
    theirs = replace(
        other.PRESETS["demo"].config,
        batch_size=BATCH,
        instances=2,
        bn_group=GROUP,
        model=config.model,
        momentum=config.momentum,
        update=update,
    )
    twin = Run(theirs, other)
    want, got = twin.round(0, 3), train(config, 3)
    assert [step["extension"] for step in got["losses"]] == [step["target"] for step in want]
    assert torch.equal(got["memory"], twin.objective.memory_RD)


def test_memory_is_read_before_it_is_moved_and_stays_unit() -> None:
    run = Run(settings())
    run.objective.begin_round(start_round(run.embedder))
    before = run.objective.memory_CD.clone()
    batch = next(batches())
    step = run.objective(run.embedder.train(), batch, 0.5)
    assert torch.equal(run.objective.memory_CD, before)
    run.objective.update(run.embedder, batch, step)
    moved = (run.objective.memory_CD != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == batch.label.unique().tolist()
    torch.testing.assert_close(run.objective.memory_CD.norm(dim=1), torch.ones_like(before[:, 0]))


def example(update: str) -> tuple[ise.Objective, Batch]:
    """methods.md 6.5: three centroids, one image, the memory momentum of Market-1501."""
    config = replace(settings(), update=update, degree="constant", batch_size=1, bn_group=1)
    objective = ise.Objective(config, nn.Identity(), Sizes(6, 0, 2))
    objective.memory_CD = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]])
    zero = torch.zeros(1, dtype=torch.int64)
    image = (torch.tensor([[0.8, 0.6]]),)
    batch = Batch(
        image=image, image_id=zero, row=zero, camid=zero, label=zero[:, None], domain=zero,
        position=zero, seed=0,
    )  # fmt: skip
    return objective, batch


@pytest.mark.parametrize(("update", "row"), [("all", [0.7067, 0.7075]), ("hard", [0.7701, 0.6379])])
def test_worked_example(update: str, row: list[float]) -> None:
    objective, batch = example(update)
    step = objective(nn.Identity(), batch, 0.0)
    assert step.terms["extension"].item() == pytest.approx(5.0071, abs=1e-3)
    assert step.terms["preserving"].item() == pytest.approx(0.0)
    objective.update(nn.Identity(), batch, step)
    torch.testing.assert_close(objective.memory_CD[0], torch.tensor(row), atol=1e-4, rtol=0)


def test_random_directions_change_with_the_seed_of_the_batch() -> None:
    run = Run(settings(**VARIANTS["random"]))
    run.objective.begin_round(start_round(run.embedder))
    run.embedder.eval()
    batch = next(batches())
    same, other = copy.copy(batch), replace(batch, seed=batch.seed + 1)
    one, two, three = (
        run.objective(run.embedder, b, 0.5).extra["sample_bED"] for b in (batch, same, other)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_mixup_partners_permute_each_group() -> None:
    share, partner = ise.mixup_draw(0.5, BATCH, GROUP, seed=1)
    assert 0 <= share <= 1
    for group in range(0, BATCH, GROUP):
        want = list(range(group, group + GROUP))
        assert sorted(partner[group : group + GROUP].tolist()) == want
    assert not torch.equal(partner, ise.mixup_draw(0.5, BATCH, GROUP, seed=2)[1])


# Labels, settings, presets


def test_labels_come_from_features_or_ids() -> None:
    assert ise.labels_from(ise.Config(), 0) == "extracted"
    assert ise.labels_from(ise.PRESETS["gt_market1501"].config, 3) == "ids"


def test_labels_groups() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(4, 16), 10, axis=0) + rng.normal(0, 0.01, (40, 16))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    features = Features(image_id=np.arange(40), feature=unit)
    labels = ise.assign_labels(ise.Config(k1=8, k2=3), features, None)
    assert labels.label[:, 0].tolist() == np.repeat(range(4), 10).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supports": -1}, "supports = -1; .* 1 is usual"),
        ({"lam0": -0.1}, "lam0 = -0.1; .* 0.1 to 2 is usual"),
        ({"beta": -1}, "beta = -1; .* 0.01 to 0.1 is usual"),
        ({"mixup": -1}, "mixup = -1; .* 0.1 to 4 is usual"),
        ({"lp_temperature": 0.0}, "lp_temperature = 0.0; .* 0.6 is usual"),
        ({"mixup": 1.0}, "mixup = 1.0 with supports = 1 and beta = 0.1; .* set supports and beta"),
        ({"eps": 1.5}, "eps = 1.5"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ise.Config(**changes)  # type: ignore[arg-type]


def labelled(label: list[int]) -> Round:
    every = torch.arange(len(label))
    target = Domain(
        image_id=every,
        camid=every,
        label=torch.tensor(label)[:, None],
        feature=torch.eye(len(label)),
    )
    return Round(number=2, rounds=3, step=0, target=target, source=None)


@pytest.mark.parametrize("clusters", [0, 1])
def test_two_clusters_are_needed(clusters: int) -> None:
    objective = ise.Objective(ise.Config(), nn.Identity(), Sizes(4, 0, 4))
    with pytest.raises(ValueError, match=f"{clusters} clusters: nothing to contrast"):
        objective.begin_round(labelled([clusters - 1] * 4))


def test_more_supports_than_clusters_are_cut_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    objective = ise.Objective(ise.Config(supports=5), nn.Identity(), Sizes(4, 0, 4))
    with caplog.at_level(logging.WARNING):
        objective.begin_round(labelled([0, 1, 2, -1]))
    assert "only 2 other clusters in round 2" in caplog.text


def test_every_row_of_the_tables_is_a_preset() -> None:
    rows = ["baseline", "pli", "lp_real", "const", "gem", "gt"]
    rows += [f"type_{t}" for t in ("constant", "square", "linear", "log")]
    rows += [f"dir_{d}" for d in ("random", "farthest", "nearest")]
    rows += [f"lam0_{x}" for x in ("0.1", "0.5", "1", "2")]
    rows += [f"K_{k}" for k in (1, 3, 5, 10)]
    rows += [f"mixup_{a}" for a in ("0.1", "0.2", "0.5", "1", "2", "4")]
    both = {f"{row}_{data}" for row in rows for data in ("market1501", "msmt17")}
    one = {"demo", "omniglot", "market1501", "msmt17", "baseline_hard_msmt17", "msmt17_released"}
    one |= {f"dg_{task}{row}" for task in ("ms2m", "m2ms") for row in ("", "_baseline")}
    assert set(ise.PRESETS) == both | one


def test_published_settings() -> None:
    market, msmt = (ise.PRESETS[name].config for name in ("market1501", "msmt17"))
    assert (market.eps, market.momentum, market.update, market.rounds) == (0.4, 0.2, "hard", 70)
    assert (msmt.eps, msmt.momentum, msmt.update, msmt.rounds) == (0.7, 0.1, "all", 50)
    assert (market.optim.step_rounds, msmt.optim.step_rounds) == (30, 20)
    assert ise.PRESETS["msmt17_released"].config == replace(msmt, beta=0.01)
    assert ise.PRESETS["K_10_msmt17"].config == replace(msmt, supports=10)
