"""``reid synth``: draw a synthetic set."""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro
from tyro.conf import Positional

from reid_core.data.datasets.synthetic import CAMERAS, IDS, IMAGES, draw


@dataclass(frozen=True, kw_only=True)
class SynthJob:
    """Draw a set of persons in Market-1501's layout, to try everything without data."""

    out: Positional[str]
    """The new folder, a path or a URI; a set of the same numbers that is already there is kept."""
    ids: int = IDS
    """The number of all identities: half are for training, half for query and gallery."""
    cameras: int = CAMERAS
    """The number of cameras; every person passes all of them."""
    images: int = IMAGES
    """The number of images of each identity in each camera; of a test identity the first is a query."""
    seed: int = 0
    """The seed of every random draw."""


def run(job: SynthJob) -> str:
    """Draw the set and return its folder.

    Raises:
        UsageError: a number is too small, or the folder holds something else.
    """
    out = draw(job.out, ids=job.ids, cameras=job.cameras, images=job.images, seed=job.seed)
    print(f"{out}: {job.ids * job.cameras * job.images} images of {job.ids} identities")  # noqa: T201
    return out


def main(argv: Sequence[str]) -> int:
    """Entry of ``reid synth``."""
    run(tyro.cli(SynthJob, args=argv, prog="reid synth"))
    return 0
