"""One file with the whole state of training; loading it executes no code."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def save_state(path: Path, parts: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Write the ``state_dict`` of every part, the RNG state and ``extra`` (numbers, strings, dicts of them)."""
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save({"parts": state, "rng": torch.get_rng_state(), "extra": dict(extra)}, path)


def load_state(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Restore every part and the RNG state; returns ``extra``.

    Raises:
        ValueError: the file is no checkpoint of ours or belongs to other parts.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state["parts"][name])
    except UnpicklingError as error:  # its text advises to load the file without this check
        raise ValueError(
            f"{path}: not a checkpoint of this run: refused, it holds more than a training state or is damaged, and "
            "loading it could run code; restore it or choose another --name"
        ) from error
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]}); choose another --name"
        ) from error
    torch.set_rng_state(state["rng"].cpu())
    return state["extra"]
