"""HCD as a method: its loss, when labels change, and equal numbers on any number of workers and after a resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_core import method as contract
from reid_core.batch import Batch, Domain, Round, Sizes
from reid_core.checkpoint import load_state, save_state
from reid_core.errors import UsageError
from reid_core.labels import Features
from reid_core.methods import hcd
from reid_core.training import reduce_terms, train_round
from tests.methods import small_run
from tests.ranks import run_ranks
from tests.reference import memory as reference

LIVELY = {
    "start_iter": 2,
    "neighbours": 12,
    "nearest": 8,
    "connect": 8,
    "min_similarity": -0.2,
    "sigma": 0.1,
}
"""Labels change within a few steps on random images."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


def settings(precision: str = "fp64", **changes: Any) -> hcd.Config:
    return small_run.settings(
        "hcd", precision, **(LIVELY | {"split_assign": "column_normalised"} | changes)
    )


class Run:
    """Rounds of a few steps, as the pipeline makes them."""

    def __init__(self, folder: Path, config: hcd.Config, *, uda: bool) -> None:
        self.config, self.uda, self.folder = config, uda, folder
        self.learner, self.start = small_run.start_round("hcd", config, uda=uda)
        objective, embedder = self.learner.objective, self.learner.embedder
        self.optimizer = contract.optimizer(hcd, config, embedder, objective)  # type: ignore[arg-type]
        if config.model.precision == "fp32":  # Adam's first step is a sign
            self.optimizer = torch.optim.SGD(self.optimizer.param_groups[0]["params"], lr=0.1)
        self.scheduler = hcd.scheduler(config, self.optimizer)
        self.history: list[dict[str, float]] = []
        self.counts: list[dict[str, int]] = []

    def round(self, number: int, steps: int) -> None:
        label = self.learner.objective.labels() if number else self.start.target.label
        target = replace(self.start.target, label=renumbered(label))
        source = self.start.source
        if source:  # as many levels as the target has
            source = replace(source, label=source.label[:, :1].expand(-1, target.label.shape[1]))
        start = replace(
            self.start, number=number, step=number * steps, target=target, source=source
        )
        self.learner.objective.begin_round(start)
        streams = small_run.streams("hcd", self.config, start)
        loader = small_run.loader(self.folder, self.config, uda=self.uda)
        batches = loader.round(start, streams, steps)
        ends = (0.0, 0.5)
        rows = list(
            train_round(self.learner, batches, self.optimizer, progress=ends, num_steps=steps)
        )
        self.scheduler.step()
        self.history += reduce_terms([terms for terms, _ in rows], 0)
        self.counts += [{k: int(v) for k, v in counts.items()} for _, counts in rows]

    def result(self) -> dict[str, Any]:
        return {
            "losses": self.history,
            "counts": self.counts,
            "labels": self.learner.objective.labels(),
            "memory": self.learner.objective.memory_RD,
            "state": self.learner.embedder.state_dict(),
        }


def renumbered(label_NL: torch.Tensor) -> torch.Tensor:
    """Contiguous numbers, clusters of one -1: what the loop does."""
    columns = []
    for label in label_NL.T:
        label = torch.where(label < 0, 10**6 + torch.arange(len(label)), label)
        _, place, count = label.unique(return_inverse=True, return_counts=True)
        number = (count > 1).cumsum(0) - 1
        columns.append(torch.where(count[place] > 1, number[place], -1))
    return torch.stack(columns, dim=1)


CASES = [(uda, precision) for uda in (False, True) for precision in ("fp64", "fp32")]
STEPS = {"fp64": 10, "fp32": 1}
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-5}


def run_all(folder: Path) -> list[dict[str, Any]]:
    """Every case; in one function, so that each rank starts its process only once."""
    results = []
    for uda, precision in CASES:
        run = Run(folder, settings(precision, start_iter=0), uda=uda)
        run.round(0, STEPS[precision])
        results.append(run.result())
    return results


@pytest.fixture(scope="module")
def one_and_two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    ranks = tmp_path_factory.mktemp("ranks")
    return [run_ranks(run_all, world, ranks / str(world), folder) for world in (1, 2)]


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    assert one["counts"] == other["counts"]
    assert torch.equal(one["labels"], other["labels"])
    for name in ("memory", "state"):
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


@pytest.mark.ddp
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{'uda' if c[0] else 'usl'}-{c[1]}")
def test_one_worker_equals_two(one_and_two: list[list[Any]], case: tuple[bool, str]) -> None:
    (one,), (two, other) = one_and_two
    number = CASES.index(case)
    compare(one[number], two[number], TOLERANCE[case[1]])
    assert torch.equal(two[number]["memory"], other[number]["memory"])
    assert torch.equal(two[number]["labels"], other[number]["labels"])


@pytest.mark.parametrize("uda", [False, True], ids=["usl", "uda"])
def test_resume_in_the_middle_is_bit_equal(folder: Path, tmp_path: Path, uda: bool) -> None:
    config = settings("fp32")
    whole, first, second = (Run(folder, config, uda=uda) for _ in range(3))
    for number in range(2):
        whole.round(number, 4)
    first.round(0, 4)

    def modules(run: Run) -> dict[str, Any]:
        return {
            "embedder": run.learner.embedder,
            "objective": run.learner.objective,
            "optimizer": run.optimizer,
            "scheduler": run.scheduler,
        }

    save_state(tmp_path / "state.pt", modules(first), {})
    load_state(tmp_path / "state.pt", modules(second))
    second.round(1, 4)
    second.history, second.counts = first.history + second.history, first.counts + second.counts
    compare(whole.result(), second.result(), 0.0)
    assert sum(sum(counts.values()) for counts in whole.counts) > 0


def test_labels_change_only_from_start_iter_on(folder: Path) -> None:
    run = Run(folder, settings(), uda=True)
    run.round(0, 4)
    changed = [sum(counts.values()) > 0 for counts in run.counts]
    assert changed[:2] == [False, False]
    assert any(changed[2:])
    assert set(run.counts[0]) == set(run.counts[-1])


def filled(config: hcd.Config, label: list[int], classes: int = 0) -> tuple[Any, Round]:
    """An objective in its first round, on random features of dimension 6."""
    g = torch.Generator().manual_seed(0)

    def of(label_N: torch.Tensor) -> Domain:
        count = len(label_N)
        return Domain(
            image_id=torch.arange(count),
            camid=torch.full((count,), -1),
            label=label_N[:, None],
            feature=F.normalize(torch.randn(count, 6, generator=g, dtype=torch.float64)),
        )

    source = of(torch.arange(3 * classes) % classes) if classes else None
    start = Round(number=0, rounds=2, step=0, target=of(torch.tensor(label)), source=source)
    objective = hcd.Objective(config, nn.Identity(), Sizes(len(label), classes, 6)).double()
    objective.begin_round(start)
    return objective, start


def batch_of(x: torch.Tensor, row: list[int], source_label: list[int]) -> Batch:
    """Source images first."""
    sources, count = len(source_label), len(x)
    return Batch(
        image=(x,),
        image_id=torch.arange(count),
        row=torch.tensor([0] * sources + row),
        camid=torch.full((count,), -1),
        label=torch.tensor(source_label + [0] * len(row))[:, None],
        domain=torch.tensor([1] * sources + [0] * len(row)),
        position=torch.arange(count),
        seed=0,
    )


@pytest.mark.parametrize("classes", [0, 3])
def test_loss_and_gradient_equal_the_twin_on_live_labels(classes: int) -> None:
    objective, _ = filled(hcd.Config(temperature=0.3), [0, 0, 1, 1, -1, -1, 2, 2], classes)
    objective.hierarchy.isolate(torch.tensor([classes + 1]))
    objective.hierarchy.join(torch.tensor([classes + 1]), torch.tensor([classes + 4]))
    g = torch.Generator().manual_seed(1)
    row, source_label = [1, 4, 0, 7, 5], [2, 0, 1, 1, 0] if classes else []
    x = F.normalize(torch.randn(len(row) + len(source_label), 6, generator=g).double())
    rows = source_label + [classes + r for r in row]
    label = [*range(classes), *(classes + k for k in (0, 4, 2, 2, 4, 5, 6, 6))]
    assert objective.hierarchy.label_HR.tolist() == [
        [label.index(k) for k in label] for _ in range(3)
    ]

    def twin(x: torch.Tensor) -> float:
        losses = reference.hybrid_nce(
            x, torch.tensor(rows), objective.memory_RD, torch.tensor(label), 0.3
        )
        parts = [losses[: len(source_label)], losses[len(source_label) :]]
        return sum(sum(part) / len(part) for part in parts if part)

    x.requires_grad_()
    step = objective(nn.Identity(), batch_of(x, row, source_label), 0.0)
    assert set(step.terms) == ({"target", "source"} if classes else {"target"})
    assert step.total.item() == pytest.approx(twin(x.detach()))
    step.total.backward()
    assert x.grad is not None
    for place in [(0, 0), (len(x) - 1, 3)]:
        moved = x.detach().repeat(2, 1, 1)
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        slope = (twin(moved[0]) - twin(moved[1])) / 2e-6
        assert x.grad[place].item() == pytest.approx(slope, abs=1e-6)


def test_bank_starts_from_features_and_labels_from_one_clustering() -> None:
    objective, start = filled(hcd.Config(), [1, -1, 0, 1, 0], classes=2)
    source = start.source
    assert source is not None
    means = torch.stack([source.extracted[source.label[:, 0] == k].mean(dim=0) for k in (0, 1)])
    torch.testing.assert_close(objective.memory_RD[:2], F.normalize(means))
    assert torch.equal(objective.memory_RD[2:], start.target.extracted)
    assert objective.labels().tolist() == [[k] * 3 for k in (0, 1, 2, 0, 2)]


def test_a_second_round_keeps_bank_and_labels() -> None:
    objective, start = filled(hcd.Config(), [0, 0, 1, 1])
    before = [b.clone() for b in objective.buffers()]
    later = replace(start.target, feature=None, label=torch.zeros(4, 3, dtype=torch.int64))
    objective.begin_round(replace(start, number=1, target=later))
    assert all(map(torch.equal, before, objective.buffers()))


def test_labels_are_clustered_once_and_copied_to_all_levels() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(3, 16), 10, axis=0) + rng.normal(0, 0.01, (30, 16))
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    features = Features(image_id=np.arange(30), feature=unit)
    labels = hcd.assign_labels(hcd.Config(k1=8, k2=3, levels=4), features, None)
    assert labels.label.tolist() == [[k] * 4 for k in np.repeat(range(3), 10)]
    assert labels.is_core.shape == labels.confidence.shape == (30, 4)
    assert [hcd.labels_from(hcd.Config(), number) for number in (0, 1)] == ["extracted", "online"]


def test_a_round_is_one_pass_over_the_coarsest_level() -> None:
    label = torch.tensor([[k, k // 2] for k in [0] * 40 + [1] * 40 + [2] * 40] + [[-1, -1]] * 30)
    domain = Domain(
        image_id=torch.arange(150), camid=torch.full((150,), -1), label=label, feature=None
    )
    start = Round(number=1, rounds=2, step=400, target=domain, source=None)
    config = hcd.Config(batch_size=8, instances=4, round_length="pass")
    assert hcd.num_steps(config, start) == (4 * 2 + 30) // 8 + 1
    assert hcd.num_steps(config, replace(start, number=0)) == 400
    assert hcd.num_steps(hcd.Config(), start) == 400
    stream = hcd.batches(config, domain, seed=0)
    drawn = np.concatenate([next(stream) for _ in range(4)] + [next(stream)[:6]])
    assert set(range(120, 150)) <= set(drawn.tolist())
    assert [(label[drawn, 1] == k).sum().item() for k in (0, 1)] == [4, 4]


def test_the_rate_falls_by_steps_made() -> None:
    weight = nn.Parameter(torch.ones(1))
    config = hcd.Config(steps=2, optim=replace(hcd.Config().optim, lr=1.0, step_rounds=2))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    scheduler = hcd.scheduler(config, optimizer)
    rates = []
    for steps in (3, 1, 3, 1, 1):
        for _ in range(steps):
            weight.grad = torch.ones(1)
            optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_the_published_run() -> None:
    """methods.md 3.8: 60 x 400 steps, labels change after 400, the rate falls at 8000 and 16000."""
    config = hcd.PRESETS["market1501"].config
    assert config.round_length == "steps"
    assert config.rounds * config.steps == 24000
    assert config.optim.step_rounds * config.steps == 8000
    assert waits(config) == 400


@pytest.mark.parametrize(("rounds", "want"), [(20, 30), (2, 3), (1, 2)])
def test_labels_of_the_demo_change_after_a_twentieth_of_the_steps(rounds: int, want: int) -> None:
    assert waits(replace(hcd.PRESETS["demo"].config, rounds=rounds)) == want


def waits(config: hcd.Config) -> int:
    """Steps until labels change."""
    return filled(config, [0, 0, 1, 1])[0].waits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha_m", 1.0), ("alpha_s", -0.1), ("levels", 0), ("anchors", 1), ("neighbours", 1),
        ("sigma", 0.0), ("start_iter", -1), ("eps", 1.0), ("split_limit", 0),
    ],
)  # fmt: skip
def test_nonsense_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"{name} = .*usual"):
        hcd.Config(**{name: value})


def test_all_rows_are_presets() -> None:
    tasks, alphas = ("d2m", "m2d"), ("0.3", "0.5", "0.7", "0.9", "0.99")
    rows = [
        "demo",
        "omniglot",
        "market1501",
        "dukemtmc",
        "msmt17",
        "no_split",
        "no_merge",
        "released",
    ]
    rows += [f"uda_{task}" for task in (*tasks, "ms2m", "ms2d", "m2ms", "d2ms")]
    rows += [f"alpha_m_{a}_{task}" for a in ("0.1", *alphas) for task in tasks]
    rows += [f"alpha_s_{a}_{task}" for a in (*alphas, "0.95") for task in tasks]
    rows += [f"H_{h}" for h in range(1, 5)] + [f"K_{k}" for k in (2, 4, 8, 16)]
    rows += [f"sigma_{s}" for s in ("0.1", "0.25", "0.4")]
    assert sorted(hcd.PRESETS) == sorted(rows)
    row = hcd.PRESETS["alpha_m_0.9_d2m"]
    assert row.config == hcd.Config(alpha_m=0.9)
    assert row.published == {"mAP": 78.9, "rank1": 91.1, "rank5": 96.6}
    assert "DukeMTMC-reID, target Market-1501" in row.about
