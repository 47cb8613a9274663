"""Which images make a batch: endless streams of rows, cut into consecutive blocks.

N images, C identities (classes of the pseudo labels), B images a batch, Z images an identity. A row
is an image's place among the N training images of its domain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Outliers = Literal["drop", "single"]


def identity_batches(
    label: np.ndarray,
    camid: np.ndarray | None,
    *,
    batch_size: int,
    instances: int,
    seed: int,
    outliers: Outliers = "drop",
) -> Iterator[np.ndarray]:
    """P x K batches of methods.md 1.3 ("random multiple gallery"), camera-aware; without end.

    A pass walks a random permutation of the identities. Each gives an anchor image and Z - 1
    companions from other cameras (from the whole identity where there is no other camera), or the
    anchor alone where the identity has one image. Companions are distinct when at least Z are there
    to choose from. Batches are consecutive blocks of the stream, so an identity may straddle two.

    Args:
        label: (N,) int64 identity of each image; negative is an outlier.
        camid: (N,) int64 camera of each image, any negative number being one unknown camera; None
            ignores cameras.
        batch_size: B.
        instances: Z, at least 1.
        seed: the same seed gives the same stream.
        outliers: "drop" leaves outliers out; "single" makes each an identity of one image.

    Returns:
        An iterator of (B,) int64 rows.

    Raises:
        ValueError: no image would ever be drawn.
    """
    if outliers == "drop" and not (label >= 0).any():
        raise ValueError(
            f"none of {len(label)} images has a label, so there is nothing to train on; let "
            "clustering find more: a larger --method.eps or a smaller --method.min-samples"
        )
    identities = _group(label, camid, outliers)
    stream = _identity_stream(identities, instances, np.random.default_rng(seed))
    return _blocks(stream, batch_size)


@dataclass(frozen=True, kw_only=True)
class _Identities:
    """Images sorted by identity, then camera: each pair of them is one block of ``row``."""

    row: np.ndarray  # (M,) int64 rows of the M images that take part
    bounds: np.ndarray  # (C + 1,) where in ``row`` each identity begins
    camera_start: (
        np.ndarray
    )  # (M,) where in ``row`` the block of this image's identity and camera begins
    camera_stop: np.ndarray  # (M,) and ends


def _group(label: np.ndarray, camid: np.ndarray | None, outliers: Outliers) -> _Identities:
    """Sort once, O(N log N)."""
    identity = label.astype(np.int64)
    if outliers == "single":
        alone = np.flatnonzero(identity < 0)
        identity[alone] = identity.max(initial=0) + 1 + np.arange(len(alone))
    camera = np.zeros_like(identity) if camid is None else np.maximum(camid, -1)
    row = np.lexsort((camera, identity))
    row = row[identity[row] >= 0]
    identity, camera = identity[row], camera[row]
    new_identity = np.diff(identity, prepend=-1) != 0
    new_block = new_identity | (np.diff(camera, prepend=-2) != 0)
    starts = np.append(np.flatnonzero(new_block), len(row))
    block = np.cumsum(new_block) - 1
    return _Identities(
        row=row,
        bounds=np.append(np.flatnonzero(new_identity), len(row)),
        camera_start=starts[block],
        camera_stop=starts[block + 1],
    )


def _identity_stream(
    identities: _Identities, instances: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    for order in _permutations(len(identities.bounds) - 1, rng):
        for k in order:
            yield _draw_identity(identities, k, instances, rng)


def _permutations(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        yield rng.permutation(count)


def _draw_identity(
    identities: _Identities, k: int, instances: int, rng: np.random.Generator
) -> np.ndarray:
    """Rows of an anchor of identity ``k`` and its companions, or of its only image."""
    start, stop = int(identities.bounds[k]), int(identities.bounds[k + 1])
    anchor = int(rng.integers(start, stop))
    if stop - start == 1:
        return identities.row[[anchor]]
    # All of the identity but the block [left, right): the anchor's camera, or else the anchor.
    left, right = int(identities.camera_start[anchor]), int(identities.camera_stop[anchor])
    if right - left == stop - start:
        left, right = anchor, anchor + 1
    count = (stop - start) - (right - left)
    drawn = start + rng.choice(count, instances - 1, replace=count < instances)
    drawn[drawn >= left] += right - left
    return identities.row[np.append(anchor, drawn)]


def _blocks(stream: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut the concatenation of ``stream`` into arrays of ``size``."""
    parts: list[np.ndarray] = []
    held = 0
    for part in stream:
        parts.append(part)
        held += len(part)
        if held < size:
            continue
        rows = np.concatenate(parts)
        whole = held - held % size
        yield from rows[:whole].reshape(-1, size)
        parts, held = [rows[whole:]], held - whole
