"""State dicts of files: read safely, renamed to fit the network, or refused with a reason."""

import io
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from reid_core.errors import UsageError
from reid_core.models.trunks import TRUNKS
from reid_core.storage import exists, read_bytes

CLASSIFIER = ("fc.", "classifier.")  # parts of torchvision's files that a trunk does not have
SHOWN = 3  # names listed in a message


def load_weights(embedder: nn.Module, weights: str, trunk: str) -> None:
    """Fill ``embedder`` (an ``Embedder``) as ``ModelConfig.weights`` says.

    Args:
        embedder: changed in place.
        weights: "random" leaves it as it is; "imagenet" takes torchvision's file for ``trunk`` from
            the cache of torch.hub and never fetches it; else a path or URI, see ``load_file``.
        trunk: a key of ``TRUNKS``.

    Raises:
        UsageError: there is no such file.
        ValueError: the file does not fit.
    """
    if weights == "random":
        return
    load_file(embedder, str(_imagenet_file(trunk)) if weights == "imagenet" else weights)


def _imagenet_file(trunk: str) -> Path:
    name = TRUNKS[trunk].file
    instead = "give --method.model.weights FILE or --method.model.weights random"
    if name is None:
        raise UsageError(f"there are no ImageNet weights for the trunk {trunk}; {instead}")
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / name).is_file():
        raise UsageError(
            f"no ImageNet weights of {trunk}: {name} is not in {folder} and is never fetched; put "
            f"{_publisher(trunk)}'s file there, or {instead}"
        )
    return folder / name


def _publisher(trunk: str) -> str:
    return "torchreid" if trunk.startswith("osnet") else "torchvision"


def load_file(embedder: nn.Module, path: str) -> None:
    """Fill ``embedder`` from a .pth, .pt or .safetensors file (path or URI).

    The file holds a whole embedder, or a trunk with or without torchvision's classifier, which is
    left out; pooling and neck are then kept. Where the file and the network differ in the number of
    domains, both copies of a layer take the one of the file, or the one takes the target copy.

    Raises:
        UsageError: there is no such file.
        ValueError: it holds no state dict, or one of another network.
    """
    if not exists(path):
        raise UsageError(f"{path}: no such file; give another --method.model.weights, or random")
    state = read_state(path)
    if any(name.startswith("trunk.") for name in state):
        network = embedder
    else:
        network = embedder.get_submodule("trunk")
        plain = {name.removeprefix("module."): value for name, value in state.items()}
        state = {name: value for name, value in plain.items() if not name.startswith(CLASSIFIER)}
    network.load_state_dict(_fit(state, network.state_dict(), path))


def read_state(path: str) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .safetensors file; no code that a file may hold is run.

    Raises:
        ValueError: the file has another content.
    """
    content = read_bytes(path)
    try:
        if path.endswith(".safetensors"):
            state = safetensors.torch.load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, it holds more than tensors or is damaged; loading it could run "
            "code; save the state dict alone, best as .safetensors"
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path}: no readable weights ({error}); fetch or save the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{path}: not a state dict, that is names and tensors only; save that alone"
        )
    return state


def read_metadata(path: str) -> dict[str, str]:
    """The notes in the header of a .safetensors file (path or URI).

    Raises:
        ValueError: the file has no such header.
    """
    content = read_bytes(path)
    try:
        size = int.from_bytes(content[:8], "little")
        return json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: no .safetensors file; give one that a run has written"
        ) from error


def _fit(state: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of ``state`` under the names of ``wanted``, or a message about what differs."""
    found = {name: _sources(name, state) for name in wanted}
    used = {name for names in found.values() for name in names}
    missing = [
        n for n, names in found.items() if not names and not n.endswith("num_batches_tracked")
    ]
    unexpected = [
        n for n in state if n not in used and n.replace(".source.", ".target.") not in used
    ]
    fitted = {name: state[names[0]] for name, names in found.items() if names}
    other = [
        f"{n} {tuple(v.shape)}, want {tuple(wanted[n].shape)}"
        for n, v in fitted.items()
        if v.shape != wanted[n].shape
    ]
    if missing or unexpected or other:
        raise ValueError(
            f"{where}: weights of another network: {_some(missing)} missing, {_some(unexpected)} "
            f"unexpected, {_some(other)} of another shape; check --method.model.trunk and .pooling"
        )
    return wanted | fitted  # files of old versions lack num_batches_tracked


def _sources(name: str, state: dict[str, Any]) -> list[str]:
    """The names in ``state`` that may fill ``name``: its own, no domain's, the target's."""
    plain = name.replace(".target.", ".").replace(".source.", ".")
    layer, _, leaf = plain.rpartition(".")
    return [n for n in (name, plain, f"{layer}.target.{leaf}") if n in state]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    shown = f" ({', '.join([*listed[:SHOWN], *(['...'] if len(listed) > SHOWN else [])])})"
    return f"{len(listed)}{shown if listed else ''}"
