"""What methods state has the form that the contract gives it, and what they leave out has the default."""

from collections.abc import Callable, Iterator
from inspect import signature
from types import ModuleType, SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from reid_core import method as contract

IN_THE_FILE = [
    contract.HasLabelsFrom,
    contract.HasViews,
    contract.HasBatches,
    contract.HasNumSteps,
    contract.HasOptimizer,
    contract.HasScheduler,
]
ON_THE_OBJECTIVE = [contract.HasFeatures, contract.HasLabels, contract.HasEmbedders]


def statement(protocol: type) -> tuple[str, Callable[..., Any]]:
    """The one function that a protocol asks for."""
    (found,) = ((k, v) for k, v in vars(protocol).items() if not k.startswith("_"))
    return found


def statements(holder: Any, protocols: list[type]) -> Iterator[tuple[Any, Callable[..., Any]]]:
    for protocol in protocols:
        name, asked = statement(protocol)
        if isinstance(holder, protocol):
            yield getattr(holder, name), asked


def shape(function: Callable[..., Any]) -> list[str]:
    return [name for name in signature(function).parameters if name != "self"]


@pytest.mark.parametrize("name", contract.names())
def test_what_a_method_states_is_of_the_form_of_the_contract(name: str) -> None:
    method = contract.load(name)
    found = [
        *statements(method, IN_THE_FILE),
        *statements(method.Objective, ON_THE_OBJECTIVE),
    ]
    assert found or name == "cluster_contrast"  # which lives by the defaults
    for stated, asked in found:
        assert shape(stated) == shape(asked)
        wanted = get_type_hints(asked)["return"]
        assert get_type_hints(stated)["return"] in (
            wanted,
            torch.Tensor,
        )  # Tensor | None may be narrowed


def test_a_method_that_states_nothing_has_the_defaults() -> None:
    bare: Any = ModuleType("bare")
    bare.Objective = nn.Identity
    config = SimpleNamespace(images="as they are", steps=7)
    assert contract.takes_source(bare)
    assert contract.labels_from(bare, config, 3) == "extracted"
    assert contract.views(bare, config) == ("as they are",)
    assert contract.num_steps(bare, config, None) == 7  # type: ignore[arg-type]
    assert not contract.is_judged(bare)
    objective: Any = nn.Identity()
    assert contract.memory_rows(objective) is None
    assert contract.online_labels(objective) is None
    assert contract.networks(objective) == {}


def test_what_is_stated_counts() -> None:
    objective: Any = SimpleNamespace(
        features=lambda: torch.ones(2, 3),
        labels=lambda: torch.zeros(2, 1),
        embedders=lambda: {"a": 1},
    )
    assert contract.memory_rows(objective).shape == (2, 3)  # type: ignore[union-attr]
    assert contract.online_labels(objective).shape == (2, 1)  # type: ignore[union-attr]
    assert contract.networks(objective) == {"a": 1}
    judged = {name for name in contract.names() if contract.is_judged(contract.load(name))}
    assert judged == {"hybrid_memory", "hcd", "hdcpd", "odc", "snnet"}
    takes = {name for name in contract.names() if contract.takes_source(contract.load(name))}
    assert takes == {"cluster_contrast", "hybrid_memory", "hcd", "hdcpd"}
