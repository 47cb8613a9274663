"""What each entry may import: heavy packages cost seconds and 200 MB in every process of a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEVER = ("torchvision", "torch._dynamo", "sklearn", "scipy.stats", "matplotlib", "boto3")
NO_BOARD = (*NEVER, "tensorboardX")
NO_RAY = (*NO_BOARD, "pandas", "ray")
FEW = ("torch", *NO_RAY)

DECODE = """
import sys
from reid_core.data.datasets import synthetic
from pathlib import Path
root = {root!r}
path = sorted(p.relative_to(root).as_posix() for p in Path(root).rglob("*.jpg"))[0]
from functools import partial
from pipelines.images.blocks import decode_block, read_block
read = partial(read_block, root=root, cache=None, height=64, width=32, size=1)
row = decode_block({{"image_id": [0], "path": [path]}}, read)
assert row["error"] == [""] and row["image"].any()
"""


def verb(*words: str) -> str:
    """The code that runs ``reid WORDS`` in this process."""
    return f"from pipelines import cli; assert cli.main({list(words)!r}) == 0"


ENTRIES = {
    "usage": (verb("--help"), FEW),
    "version": (verb("--version"), FEW),
    "decode and method": (
        "import reid_core.data.decode, reid_core.tables, reid_core.method",
        NO_RAY,
    ),
    "decode task": (DECODE, NO_BOARD),
    "look task": ("import pipelines.images.look", NO_RAY),
    "node's task": ("import pipelines.nodes.probe", NO_RAY),
    "stage task": (
        "import pipelines.run.meeting, pipelines.run.stages, pipelines.nodes.inside",
        (*NO_BOARD, "pandas", "ray.train", "ray.data"),
    ),
    "tasks of a stage": ("import pipelines.nodes.tasks", (*NO_BOARD, "ray.train", "ray.data")),
    "a run in this process": ("import pipelines.run.alone", NO_RAY),
    **{
        f"{name} --help": (verb(name, "--help"), NO_RAY)
        for name in ("scan", "synth", "cluster", "labels", "picture", "plan")
    },
    **{
        f"{name} --help": (verb(name, "--help"), NO_BOARD)
        for name in ("demo", "evaluate", "extract")
    },
    "train --help": (verb("train", "cluster_contrast", "--help"), NO_RAY),
    "sweep --help": (verb("sweep", "cluster_contrast", "--help"), NO_BOARD),
    "scan": (verb("scan", "{root}"), (*NO_RAY[:-2], "ray")),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_leaves_heavy_packages_alone(entry: str, small_set: str) -> None:
    code, forbidden = ENTRIES[entry]
    code = code.format(root=small_set) if "{root" in code else code
    probe = f"import sys\n{code}\nprint(*sorted(set({forbidden!r}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=Path(__file__).parents[1], capture_output=True, text=True,
        env=os.environ | {"TERM": "dumb"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = done.stderr.splitlines()[-1].split()
    assert not found, f"{entry} imports {', '.join(found)}"
