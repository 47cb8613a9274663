"""The spaces of a sweep: found by name, walked through, and matched with what the papers print for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
from ray.tune.search.sample import Categorical, Float, Integer, Quantized

from reid_core.errors import UsageError
from reid_core.method import Preset

Space = Mapping[str, Any]  # Config field: a Tune domain, a grid, or one value
Point = tuple[Any, ...]  # one value a field, in the order of the space


def spaces(method: str) -> dict[str, Space]:
    """What ``tune_spaces/METHOD.py`` holds, by lower-case name; empty spaces are left out."""
    held = vars(import_module(f"tune_spaces.{method}"))
    return {
        name.lower(): value
        for name, value in held.items()
        if name.isupper() and isinstance(value, dict) and value
    }


def find_space(method: str, name: str) -> tuple[str, Space]:
    """The space of this name, or the only one that begins so, under its whole name.

    Raises:
        UsageError: there is none, or there are several.
    """
    known = spaces(method)
    found = [name.lower()] if name.lower() in known else []
    found = found or [other for other in known if name and other.startswith(name.lower())]
    if len(found) == 1:
        return found[0], known[found[0]]
    if name == "labelling":
        raise UsageError(f"{method} has no label settings to sweep; its spaces are{listed(method)}")
    why = "is missing" if not name else f"{name} may be {' or '.join(found) or 'nothing'}"
    raise UsageError(f"--space {why}; {method} has{listed(method)}")


def listed(method: str) -> str:
    """The spaces of a method under all their names, a line each, with the fields that they sweep."""
    names: dict[int, list[str]] = {}
    known = spaces(method)
    for name, space in known.items():
        names.setdefault(id(space), []).append(name)
    lines = [(", ".join(same), ", ".join(known[same[0]])) for same in names.values()]
    return "".join(f"\n  {same:<20}{fields}" for same, fields in lines)


def choices(key: str, domain: Any) -> list[Any]:
    """Every value that a field may take.

    Raises:
        UsageError: it is drawn from a continuous range.
    """
    if is_grid(domain):
        return list(domain["grid_search"])
    if isinstance(domain, Categorical):
        return list(domain.categories)
    sampler = domain.get_sampler() if isinstance(domain, Float | Integer) else None
    if isinstance(domain, Float | Integer) and isinstance(sampler, Quantized):
        count = round((domain.upper - domain.lower) / sampler.q) + 1
        values = np.linspace(domain.lower, domain.upper, count).round(10)
        return [domain.cast(value) for value in values]
    if sampler is not None:
        raise UsageError(f"--search grid: {key} is drawn from a range; use --search random")
    return [domain]


def is_grid(domain: Any) -> bool:
    """Whether Tune walks through all values of a field, whatever the search."""
    return isinstance(domain, dict) and "grid_search" in domain


def points(space: Space) -> list[Point] | None:
    """Every combination of a space of grids and single values; none where a value is drawn."""
    if any(hasattr(domain, "get_sampler") for domain in space.values()):
        return None
    return list(product(*(choices(key, domain) for key, domain in space.items())))


def swept(space: Space) -> list[str]:
    """The fields that take more than one value."""
    return [
        key for key, x in space.items() if hasattr(x, "get_sampler") or len(choices(key, x)) > 1
    ]


@dataclass(frozen=True)
class Column:
    """What a paper prints for the points of a space, on one data set."""

    data: str  # last word of its presets' names, such as d2m
    about: str  # of its first preset
    published: dict[Point, Mapping[str, float]]  # per cent


def paper_columns(
    presets: Mapping[str, Preset], keys: Sequence[str], asked: Sequence[Point]
) -> list[Column]:
    """The papers' columns of a table over ``keys``: presets that differ in nothing else.

    A preset stands for the point that its Config holds. Those of one data set that agree in every
    other field make a column; of a data set's columns the fullest counts, if it has two points.
    """
    groups: dict[tuple[str, Point], Column] = {}
    for name, preset in presets.items():
        point = tuple(getattr(preset.config, key) for key in keys)
        if not preset.published or point not in asked:
            continue
        data = name.rpartition("_")[2]
        rest = tuple(
            getattr(preset.config, f.name) for f in fields(preset.config) if f.name not in keys
        )
        column = groups.setdefault((data, rest), Column(data, preset.about, {}))
        column.published.setdefault(point, preset.published)
    best: dict[str, Column] = {}
    for column in sorted(groups.values(), key=lambda column: -len(column.published)):
        if len(column.published) > 1:
            best.setdefault(column.data, column)
    return list(best.values())
