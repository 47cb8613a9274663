"""A few steps of a method that has two views, no labels and no source; without Ray, on random images of a disk."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from reid_core import method as contract
from reid_core.batch import TARGET, Batch, Domain, Round, Sizes
from reid_core.data.decode import ImageStore
from reid_core.data.loader import BatchLoader, TrainImages
from reid_core.distributed import check_equal_on_ranks
from reid_core.models.embedder import build_embedder
from reid_core.settings import ImageConfig, ModelConfig
from reid_core.training import Learner, reduce_terms, train_round
from tests.methods import small_run

STEPS = {"fp64": 10, "fp32": 1}
TOLERANCE = {"fp64": 1e-8, "fp32": 1e-5}


def settings(name: str, precision: str, **changes: Any) -> Any:
    """The demo preset made tiny."""
    return replace(
        contract.load(name).PRESETS["demo"].config,
        batch_size=16,
        bn_group=8,
        rounds=2,
        model=ModelConfig(trunk="tiny", pooling="gem", weights="random", precision=precision),  # type: ignore[arg-type]
        images=ImageConfig(height=24, width=16, pad=2),
        **changes,
    )


def start_round(number: int = 0, step: int = 0) -> Round:
    row = torch.arange(small_run.TARGETS)
    target = Domain(image_id=row, camid=0 * row, label=row[:, None], feature=None)
    return Round(number=number, rounds=2, step=step, target=target, source=None)


class Run:
    """Network, objective and optimiser, with the random weights of a run."""

    def __init__(self, folder: Path, name: str, config: Any) -> None:
        self.folder, self.config, self.method = folder, config, contract.load(name)
        embedder = build_embedder(config.model, bn_group=config.bn_group, seed=small_run.SEED)
        dtype = next(embedder.parameters()).dtype
        with torch.random.fork_rng():
            torch.manual_seed(small_run.SEED)
            objective = self.method.Objective(
                config, embedder, Sizes(small_run.TARGETS, 0, embedder.dim)
            ).to(dtype)
        self.learner = Learner(embedder, objective)
        self.objective: Any = objective
        self.embedder = embedder
        self.optimizer = contract.optimizer(self.method, config, embedder, objective)
        if config.model.precision == "fp32":  # Adam's first step is a sign: rounding turns it
            parameters = self.optimizer.param_groups[0]["params"]
            self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def batches(self, start: Round, steps: int) -> Iterator[Batch]:
        """This rank's share."""
        images = TrainImages(
            ImageStore(str(self.folder), None), [f"t{i:02d}.png" for i in range(small_run.TARGETS)]
        )
        loader = BatchLoader(
            {TARGET: images},
            contract.views(self.method, self.config),
            batch_size=self.config.batch_size,
            seed=small_run.SEED,
        )
        rows = contract.batches(self.method, self.config, start.target, seed=start.number)
        return loader.round(start, {TARGET: rows}, steps)

    def round(self, steps: int, number: int = 0) -> dict[str, Any]:
        """Train half of the run; losses, weights, and the objective's parameters and buffers."""
        start = start_round(number, number * steps)
        self.objective.begin_round(start)
        rounds = train_round(
            self.learner,
            self.batches(start, steps),
            self.optimizer,
            progress=(number / 2, (number + 1) / 2),
            num_steps=steps,
        )
        terms = [of_step for of_step, _ in rounds]
        check_equal_on_ranks(
            [*self.objective.parameters(), *self.objective.buffers()], "the objective"
        )
        return {"losses": reduce_terms(terms, 0)} | self.state()

    def state(self) -> dict[str, Any]:
        return {
            name: getattr(self, name).state_dict()
            for name in ("embedder", "objective", "optimizer")
        }


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    """First steps in both precisions; in one function, so that each rank starts its process only once."""
    return [
        Run(folder, name, settings(name, precision)).round(steps)
        for precision, steps in STEPS.items()
    ]


def check_resuming(folder: Path, name: str) -> None:
    """Round 1 of a run that goes on equals, bit by bit, round 1 of a new process that loads the state."""
    whole = Run(folder, name, settings(name, "fp32"))
    whole.round(3)
    torch.save(whole.state(), folder / f"{name}.pt")
    resumed = Run(folder, name, settings(name, "fp32"))
    for part, state in torch.load(folder / f"{name}.pt").items():
        getattr(resumed, part).load_state_dict(state)
    compare(whole.round(3, number=1), resumed.round(3, number=1), 0.0)


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    for a, b in zip(one["losses"], other["losses"], strict=True):
        assert a == pytest.approx(b, abs=tolerance, rel=0)
    for part in ("embedder", "objective"):
        torch.testing.assert_close(one[part], other[part], atol=tolerance, rtol=0)
