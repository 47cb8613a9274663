"""The example of CONTRIBUTING.md: it is found, learns, has valid search spaces, and obeys the contract it explains."""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tune_spaces
from reid_core import method as contract
from reid_core import methods
from reid_core.batch import Sizes
from reid_core.training import train_round
from tests.methods import small_run
from tests.ranks import run_ranks
from tests.reference import hdcpd as reference

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
NAME = "batch_contrast"
PACKAGES = {"reid_core/methods": methods, "tune_spaces": tune_spaces}
FILES = [f"{folder}/{NAME}.py" for folder in PACKAGES]
BLOCK = re.compile(r"^`([\w/]+\.py)`\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_as_told(folder: Path) -> None:
    """The files of the guide."""
    for path, text in BLOCK.findall(GUIDE.read_text()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


@contextmanager
def found_in(folder: Path) -> Iterator[None]:
    """The files under ``folder`` are found beside those of the packages while this lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for place, package in PACKAGES.items():
            patch.setattr(package, "__path__", [*package.__path__, str(folder / place)])
        yield
    for package in PACKAGES.values():
        sys.modules.pop(f"{package.__name__}.{NAME}", None)
        vars(package).pop(NAME, None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("images")
    small_run.draw_images(path)
    write_as_told(path / "example")
    with found_in(path / "example"):
        yield path


def run(folder: Path, precision: str, steps: int) -> dict[str, Any]:
    return small_run.run(folder, NAME, small_run.settings(NAME, precision), False, steps)


CASES = {("fp64", 10): 1e-8, ("fp32", 1): 1e-5}
"""Precision and steps, and how far two workers may be from one."""


def run_as_told(folder: Path) -> list[dict[str, Any]]:
    """Every case, in a rank of its own, which does not see what this process has patched."""
    with found_in(folder / "example"):
        return [run(folder, *case) for case in CASES]


def test_the_guide_shows_both_files_and_the_method_is_found(folder: Path) -> None:
    assert [path for path, _ in BLOCK.findall(GUIDE.read_text())] == FILES
    assert NAME in contract.names()


def test_it_takes_steps(folder: Path) -> None:
    losses = [step["batch"] for step in run(folder, "fp32", 2)["losses"]]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_the_loss_of_a_batch_falls(folder: Path) -> None:
    config = small_run.settings(NAME, "fp32")
    learner, start = small_run.start_round(NAME, config, uda=False)
    learner.objective.begin_round(start)
    loader = small_run.loader(folder, config, uda=False)
    batch = next(loader.round(start, small_run.streams(NAME, config, start), 1))
    adam = contract.optimizer(contract.load(NAME), config, learner.embedder, learner.objective)  # type: ignore[arg-type]
    steps = train_round(learner, repeat(batch), adam, progress=(0, 1), num_steps=10)
    losses = [terms["batch"].item() for terms, _ in steps]
    assert losses[-1] < losses[0] / 2


def test_its_spaces_pass_the_tests_of_all_spaces(folder: Path) -> None:
    # They load Ray, which the ranks of another test do without.
    from pipelines.sweeps.spaces import spaces
    from tests.tune_spaces import test_spaces

    assert set(spaces(NAME)) == {"labelling", "training"}
    for name in spaces(NAME):
        test_spaces.test_every_value_of_a_space_is_taken(NAME, name)
        test_spaces.test_no_training_space_changes_the_graph_of_the_score(NAME, name)


def test_its_loss_is_the_papers(folder: Path) -> None:
    config = small_run.settings(NAME, "fp64")
    objective: Any = contract.load(NAME).Objective(config, nn.Identity(), Sizes(36, 0, 8))
    _, start = small_run.start_round(NAME, config, uda=False)
    loader = small_run.loader(folder, config, uda=False)
    batch = next(loader.round(start, small_run.streams(NAME, config, start), 1))
    g = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(len(batch.row), 8, generator=g, dtype=torch.float64))
    one, other = (x.clone().requires_grad_() for _ in range(2))
    loss = objective(nn.Identity(), replace(batch, image=(one,)), 0.0).total
    slow = reference.batch_nce(other, batch.label[:, 0], batch.image_id, config.temperature)
    mean = torch.stack([term for term in slow if term is not None]).mean()
    torch.testing.assert_close(loss, mean)
    loss.backward()
    mean.backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_it_is_short() -> None:
    (_, text), _ = BLOCK.findall(GUIDE.read_text())
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 45


@pytest.mark.ddp
def test_one_worker_equals_two(folder: Path, tmp_path: Path) -> None:
    ones = [run(folder, *case) for case in CASES]
    ranks = run_ranks(run_as_told, 2, tmp_path, folder)
    for tolerance, one, two, other in zip(CASES.values(), ones, *ranks, strict=True):
        for a, b in zip(one["losses"], two["losses"], strict=True):
            assert a == pytest.approx(b, abs=tolerance, rel=0)
        torch.testing.assert_close(one["state"], two["state"], atol=tolerance, rtol=0)
        torch.testing.assert_close(two["state"], other["state"], atol=0, rtol=0)
