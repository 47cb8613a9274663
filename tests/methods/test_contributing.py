"""The example of CONTRIBUTING.md: it is found, learns, has valid search spaces, and obeys the contract it explains."""

import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch

import tune_spaces
from reid_core import method as contract
from reid_core import methods
from reid_core.training import train_round
from tests.methods import small_run
from tests.ranks import run_ranks

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
NAME = "proxy_anchor"
PACKAGES = {"reid_core/methods": methods, "tune_spaces": tune_spaces}
FILES = [f"{folder}/{NAME}.py" for folder in PACKAGES]
BLOCK = re.compile(r"^`([\w/]+\.py)`\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@contextmanager
def as_told(folder: Path) -> Iterator[None]:
    """The files of the guide, beside those of the packages while this lasts."""
    for path, text in BLOCK.findall(GUIDE.read_text()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
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
    with as_told(path / "example"):
        yield path


def run(folder: Path, precision: str, steps: int) -> dict[str, Any]:
    return small_run.run(folder, NAME, small_run.settings(NAME, precision), False, steps)


CASES = {("fp64", 10): 1e-8, ("fp32", 1): 1e-5}
"""Precision and steps, and how far two workers may be from one."""


def run_as_told(folder: Path) -> list[dict[str, Any]]:
    """Every case, in a rank of its own, which does not see what this process has patched."""
    with as_told(folder / "example"):
        return [run(folder, *case) for case in CASES]


def test_the_guide_shows_both_files_and_the_method_is_found(folder: Path) -> None:
    assert [path for path, _ in BLOCK.findall(GUIDE.read_text())] == FILES
    assert NAME in contract.names()


def test_it_takes_steps(folder: Path) -> None:
    losses = [step["proxy"] for step in run(folder, "fp32", 2)["losses"]]
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
    losses = [terms["proxy"].item() for terms, _ in steps]
    assert losses[-1] < losses[0] / 2


def test_every_key_of_its_spaces_is_a_setting(folder: Path) -> None:
    space = import_module(f"tune_spaces.{NAME}")
    assert space.LABELLING.keys() | space.TRAINING.keys() <= {
        field.name for field in fields(contract.load(NAME).Config)
    }


def slow_proxy_anchor(
    x_BD: torch.Tensor, class_B: list[int], proxy_RD: torch.Tensor, margin: float, scale: float
) -> torch.Tensor:
    """Eq. 4 of the paper with loops; ``scale`` is its alpha."""
    pull, push = [], []
    for number, proxy in enumerate(proxy_RD):
        own = [x @ proxy for x, y in zip(x_BD, class_B, strict=True) if y == number]
        others = [x @ proxy for x, y in zip(x_BD, class_B, strict=True) if y != number]
        if own:
            pull.append(torch.log1p(torch.exp(-scale * (torch.stack(own) - margin)).sum()))
        push.append(torch.log1p(torch.exp(scale * (torch.stack(others) + margin)).sum()))
    return torch.stack(pull).mean() + torch.stack(push).mean()


def test_its_loss_is_the_papers(folder: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x, proxy = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (6, 4))
    label = [0, 2, 2, 0, 1, 0]  # nothing of the last proxy
    one, other = (x.clone().requires_grad_() for _ in range(2))
    example = import_module(f"{methods.__name__}.{NAME}")
    loss = example.proxy_anchor(one, torch.tensor(label), proxy, 0.1, 1 / 4)
    slow = slow_proxy_anchor(other, label, proxy, 0.1, 4)
    loss.backward()
    slow.backward()
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.ddp
def test_one_worker_equals_two(folder: Path, tmp_path: Path) -> None:
    ones = [run(folder, *case) for case in CASES]
    ranks = run_ranks(run_as_told, 2, tmp_path, folder)
    for tolerance, one, two, other in zip(CASES.values(), ones, *ranks, strict=True):
        for a, b in zip(one["losses"], two["losses"], strict=True):
            assert a == pytest.approx(b, abs=tolerance, rel=0)
        torch.testing.assert_close(one["memory"], two["memory"], atol=tolerance, rtol=0)
        torch.testing.assert_close(one["state"], two["state"], atol=tolerance, rtol=0)
        assert torch.equal(two["memory"], other["memory"])
