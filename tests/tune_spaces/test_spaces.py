from dataclasses import fields
from importlib import import_module

import pytest

from reid_core import method as contract


@pytest.mark.parametrize("name", contract.names())
def test_every_key_is_a_field_of_the_config(name: str) -> None:
    space = import_module(f"tune_spaces.{name}")
    known = {field.name for field in fields(contract.load(name).Config)}
    assert set(space.LABELLING) | set(space.TRAINING) <= known
