"""The demos' rate falls after the same share of any number of rounds."""

from dataclasses import replace

import pytest
import torch

from reid_core import method as contract
from reid_core.errors import UsageError
from reid_core.settings import AdamConfig, counted


@pytest.mark.parametrize("preset", ["demo", "omniglot"])
@pytest.mark.parametrize("name", contract.names())
@pytest.mark.parametrize(("rounds", "fall"), [(20, 15), (4, 3), (1, 1)])
def test_the_rate_falls_after_three_quarters(
    name: str, preset: str, rounds: int, fall: int
) -> None:
    method = contract.load(name)
    config = replace(method.PRESETS[preset].config, rounds=rounds, steps=1)
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight], lr=1.0)
    scheduler = contract.scheduler(method, config, optimizer)
    rates = []
    for _ in range(rounds):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx([1.0] * fall + [0.1] * (rounds + 1 - fall))


@pytest.mark.parametrize(
    ("number", "want"), [(0, 0), (1, 1), (30.0, 30), (0.75, 15), (0.05, 1), (0.001, 1)]
)
def test_counts_and_shares(number: float, want: int) -> None:
    assert counted(number, 20) == want


@pytest.mark.parametrize("value", [0, -1.0])
def test_no_rate_falls_every_no_rounds(value: float) -> None:
    with pytest.raises(UsageError, match=r"step_rounds = .*20 is usual"):
        AdamConfig(step_rounds=value)
