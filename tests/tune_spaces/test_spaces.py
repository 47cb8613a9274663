"""Every value of every space is one that the Config of the method takes."""

from dataclasses import replace
from itertools import product
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from pipelines.sweeps.spaces import choices, spaces
from reid_core import method as contract
from reid_core.errors import UsageError


def values(domain: Any) -> list[Any]:
    """All of them, or the ends of a range."""
    try:
        return choices("", domain)
    except UsageError:
        return [domain.lower, domain.upper]


@pytest.mark.parametrize(("method", "name"), [(m, s) for m in contract.names() for s in spaces(m)])
def test_every_value_of_a_space_is_taken(method: str, name: str) -> None:
    found, space = contract.load(method), spaces(method)[name]
    kinds = get_type_hints(found.Config)
    grid = {key: values(domain) for key, domain in space.items()}
    for key, held in grid.items():
        kind = kinds[key]
        for value in held:
            literal = get_origin(kind) is Literal
            assert value in get_args(kind) if literal else type(value) is kind, (key, value)
    preset = next(iter(found.PRESETS.values()))
    for point in product(*grid.values()):
        replace(preset.config, **dict(zip(grid, point, strict=True)))


@pytest.mark.parametrize(("method", "name"), [(m, s) for m in contract.names() for s in spaces(m)])
def test_no_training_space_changes_the_graph_of_the_score(method: str, name: str) -> None:
    if name != "labelling":  # label-free scores compare on one graph only
        assert not {"eps", "k1", "k2"} & spaces(method)[name].keys()


@pytest.mark.parametrize("method", contract.names())
def test_every_method_has_a_training_space(method: str) -> None:
    assert "training" in spaces(method)
