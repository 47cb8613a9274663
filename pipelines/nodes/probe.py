"""What a node is asked before a run: packages, storage and data. Runs on every node and imports little."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from reid_core.storage import join, read_bytes, write_bytes

MARK = "driver"  # the file that the driver has written


def problems(
    name: str,
    place: str,
    images: Sequence[tuple[str, str]],
    packages: Mapping[str, str | None],
) -> list[str]:
    """What keeps this node from taking part; empty when nothing does.

    Args:
        name: of a file that this node writes.
        place: folder of the storage (path or URI) in which the driver has written ``MARK``.
        images: a root (path or URI) and the path of an image below it, of every data set.
        packages: with the versions that the driver has.
    """
    found = [
        f"{package} is {has or 'missing'}, the driver has {wanted}: give all nodes the same environment"
        for package, wanted in packages.items()
        if (has := installed(package)) != wanted
    ]
    try:
        mark = read_bytes(join(place, MARK))  # not there where the storage is this node's own
        write_bytes(join(place, name), mark)
        if read_bytes(join(place, name)) != mark:
            found.append(f"{place}: what was written there reads back otherwise")
    except OSError as error:
        found.append(f"--storage is not shared, or cannot be written there ({error})")
    for root, path in images:
        try:
            read_bytes(join(root, path))
        except OSError as error:
            found.append(f"the data cannot be read ({error}): mount or admit it there as well")
    return found


def installed(package: str) -> str | None:
    """The version of a package, without its build (``+cpu``)."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None
