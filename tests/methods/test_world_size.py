"""The result of training does not depend on the number of workers, and equals a slow single-process twin."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from reid_core.batch import SOURCE, TARGET
from tests.methods import small_run
from tests.ranks import run_ranks
from tests.reference import memory as reference

METHODS = ["cluster_contrast", "hybrid_memory"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    return path


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert len(one["losses"]) == len(other["losses"])
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    torch.testing.assert_close(one["memory"], other["memory"], atol=tolerance, rtol=0)
    torch.testing.assert_close(one["state"], other["state"], atol=tolerance, rtol=0)


CASES = [
    (name, uda, precision)
    for name in METHODS
    for uda in (False, True)
    for precision in ("fp64", "fp32")
]
CASES.append(("cluster_contrast", False, "bf16"))
STEPS = {"fp64": 20, "fp32": 1, "bf16": 1}
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-5, "bf16": 1e-2}


def run_all(folder: Path) -> list[dict[str, Any]]:
    """Every case; in one function, so that each rank starts its process only once."""
    return [
        small_run.run(folder, name, small_run.settings(name, precision), uda, STEPS[precision])
        for name, uda, precision in CASES
    ]


@pytest.fixture(scope="module")
def one_and_two(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    ranks = tmp_path_factory.mktemp("ranks")
    return [run_ranks(run_all, world, ranks / str(world), folder) for world in (1, 2)]


@pytest.mark.ddp
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case[0]}-{'uda' if case[1] else 'usl'}-{case[2]}"
)
def test_one_worker_equals_two(one_and_two: list[list[Any]], case: tuple[str, bool, str]) -> None:
    (one,), (two, other) = one_and_two
    number = CASES.index(case)
    compare(one[number], two[number], TOLERANCE[case[2]])
    assert torch.equal(two[number]["memory"], other[number]["memory"])


def slow_twin(folder: Path, name: str, config: Any, uda: bool, steps: int) -> dict[str, Any]:
    """The equations of methods.md 2 with loops, one process, whole batches."""
    learner, start = small_run.start_round(name, config, uda=uda)
    embedder, classes = learner.embedder.train(), small_run.CLASSES if uda else 0
    rows, class_of_row, row_of = initial_memory(name, start, classes)
    optimizer = torch.optim.Adam(
        [p for p in embedder.parameters() if p.requires_grad], lr=3.5e-4, weight_decay=5e-4
    )
    losses = []
    streams = small_run.streams(name, config, start)
    for batch in small_run.loader(folder, config, uda=uda).round(start, streams, steps):
        x = embedder(batch.image[0])
        row = torch.tensor([row_of(b, batch) for b in range(len(x))])
        prototypes = torch.stack(
            [rows[class_of_row == k].mean(dim=0) for k in range(int(class_of_row.max()) + 1)]
        )
        z = x @ prototypes.T / config.temperature
        nll = -(z - z.exp().sum(dim=1, keepdim=True).log())[torch.arange(len(x)), class_of_row[row]]
        terms = {"target": nll[batch.domain == TARGET].mean()}
        if uda:
            terms["source"] = nll[batch.domain == SOURCE].mean()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        update = (
            reference.update_hardest
            if getattr(config, "update", "") == "hard"
            else reference.update_in_order
        )
        rows = update(rows, row, x.detach(), config.momentum)
        losses.append({k: v.item() for k, v in terms.items()})
    return {"losses": losses, "state": embedder.state_dict(), "memory": rows}


def initial_memory(name: str, start: Any, classes: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Rows, the class of each row, and the row of an image of a batch."""
    target, source = start.target, start.source
    means = []
    if source:
        means = [source.feature[source.label[:, 0] == k].mean(dim=0) for k in range(classes)]
    label = target.label[:, 0].tolist()
    if name == "cluster_contrast":
        means += [
            target.feature[target.label[:, 0] == k].mean(dim=0) for k in range(max(label) + 1)
        ]
        rows = F.normalize(torch.stack(means), dim=1)
        return (
            rows,
            torch.arange(len(rows)),
            lambda b, batch: int(batch.label[b, 0] + (classes if batch.domain[b] == TARGET else 0)),
        )
    rows = torch.cat(
        [F.normalize(torch.stack(means), dim=1), target.feature] if source else [target.feature]
    )
    fresh = iter(range(classes + max(label) + 1, 10**6))
    class_of_row = list(range(classes)) + [classes + y if y >= 0 else next(fresh) for y in label]
    return (
        rows,
        torch.tensor(class_of_row),
        lambda b, batch: int(
            classes + batch.row[b] if batch.domain[b] == TARGET else batch.label[b, 0]
        ),
    )


@pytest.mark.parametrize("uda", [False, True], ids=["usl", "uda"])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("cluster_contrast", {}), ("cluster_contrast", {"update": "hard"}), ("hybrid_memory", {})],
    ids=["all", "hard", "hybrid"],
)
def test_equals_the_slow_twin(folder: Path, name: str, changes: dict[str, str], uda: bool) -> None:
    config = small_run.settings(name, "fp64", **changes)
    compare(
        small_run.run(folder, name, config, uda, 20), slow_twin(folder, name, config, uda, 20), 1e-8
    )


@pytest.mark.parametrize("name", METHODS)
def test_two_runs_are_bit_equal(folder: Path, name: str) -> None:
    config = small_run.settings(name, "fp32")
    one, two = (small_run.run(folder, name, config, False, 3) for _ in range(2))
    compare(one, two, 0.0)
