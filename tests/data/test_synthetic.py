"""The synthetic set: repeatable, well formed, hard for whoever has not learnt."""

import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reid_core.data.check import query_problems, subset_table
from reid_core.data.datasets import scan
from reid_core.data.datasets.drawing import HEIGHT, WIDTH, camera, person, photograph
from reid_core.data.datasets.market1501 import MARKER
from reid_core.data.datasets.synthetic import draw
from reid_core.data.decode import ImageStore, decode, resize
from reid_core.data.transforms import standardise
from reid_core.errors import UsageError
from reid_core.models.embedder import build_embedder
from reid_core.presets import DEMO_IMAGES, SMALL_MODEL


def contents(root: Path) -> dict[str, str]:
    """The digest of every file."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for folder, seed in ((one, 3), (two, 3), (other, 4)):
        draw(str(folder), ids=4, cameras=2, images=2, seed=seed)
    assert contents(one) == contents(two)
    images = [name for name in contents(one) if name != MARKER]
    assert len(images) == 16
    assert all(contents(one)[name] != contents(other)[name] for name in images)


def test_an_image_depends_on_its_own_numbers_alone(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    draw(str(small), ids=4, cameras=2, images=1)
    draw(str(large), ids=6, cameras=3, images=2)
    flat = {Path(name).name: digest for name, digest in contents(large).items()}
    for name, digest in contents(small).items():
        if name != MARKER:
            assert flat[Path(name).name] == digest


@pytest.mark.parametrize(("ids", "cameras", "images"), [(4, 2, 1), (5, 3, 1), (7, 2, 2), (6, 3, 4)])
def test_every_query_can_be_answered(tmp_path: Path, ids: int, cameras: int, images: int) -> None:
    found = scan(draw(str(tmp_path / "set"), ids=ids, cameras=cameras, images=images))
    assert found.layout == "market1501"
    assert found.notes == ("synthetic, drawn by reid synth",)
    assert found.published == {}
    assert len(found.images) == ids * cameras * images
    assert len(query_problems(found.images)) == 0
    table = {row.subset: row for row in subset_table(found)}
    assert table["train"].ids == (ids + 1) // 2
    assert table["query"].ids == table["gallery"].ids == ids // 2
    assert table["query"].images == ids // 2 * (cameras if images > 1 else 1)


def test_train_and_test_share_no_identity(tmp_path: Path) -> None:
    images = scan(draw(str(tmp_path / "set"), ids=8, cameras=2, images=2)).images.to_pylist()
    train = {row["pid"] for row in images if row["split"] == "train"}
    test = {row["pid"] for row in images if row["split"] != "train"}
    assert train == {1, 2, 3, 4}
    assert test == {5, 6, 7, 8}
    counts = Counter((row["pid"], row["camid"]) for row in images)
    assert set(counts.values()) == {2}


def test_images_are_whole_jpegs_of_the_stated_size(tmp_path: Path) -> None:
    draw(str(tmp_path / "set"), ids=4, cameras=2, images=1)
    content = (tmp_path / "set" / "query" / "0003_c1s1_000000_01.jpg").read_bytes()
    assert decode(content).shape == (3, HEIGHT, WIDTH) == (3, 128, 64)
    assert Image.open(io.BytesIO(content)).format == "JPEG"


def test_two_images_of_a_person_differ_and_look_alike() -> None:
    who, other, where = person(0, 1), person(0, 2), camera(0, 1)
    one, two, stranger = (
        np.asarray(photograph(someone, where, np.random.default_rng(seed)), np.float32)
        for someone, seed in ((who, 1), (who, 2), (other, 1))
    )
    assert (one != two).any()
    assert np.abs(one - stranger).mean() > 5


def test_a_set_of_the_same_numbers_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "set"
    draw(str(root), ids=4, cameras=2, images=1)
    before = (root / MARKER).stat().st_mtime_ns
    assert draw(str(root), ids=4, cameras=2, images=1) == str(root)
    assert (root / MARKER).stat().st_mtime_ns == before


@pytest.mark.parametrize("wrong", [{"ids": 5}, {"cameras": 3}, {"images": 2}, {"seed": 1}])
def test_another_set_is_not_overwritten(tmp_path: Path, wrong: dict[str, int]) -> None:
    numbers = {"ids": 4, "cameras": 2, "images": 1, "seed": 0}
    root = draw(str(tmp_path / "set"), **numbers)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="holds another set"):
        draw(root, **(numbers | wrong))
    assert contents(tmp_path) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="holds something else; give a new folder"):
        draw(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_and_a_uri_will_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    draw(str(tmp_path / "empty"), ids=4, cameras=2, images=1)
    draw(f"{tmp_path.as_uri()}/deep/er", ids=4, cameras=2, images=1)
    assert contents(tmp_path / "empty") == contents(tmp_path / "deep" / "er")


def test_nothing_is_left_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("reid_core.data.datasets.synthetic.photograph", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(str(tmp_path / "set"), ids=4, cameras=2, images=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"ids": 3}, {"cameras": 1}, {"images": 0}])
def test_numbers_that_are_too_small(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 4, 2 and 1 are needed"):
        draw(str(tmp_path / "set"), **wrong)


@pytest.fixture(scope="module")
def test_half(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], Tensor]:
    """The IMAGES rows of query and gallery of the default set, and their images (N, 3, H, W) in [0, 1]."""
    found = scan(draw(str(tmp_path_factory.mktemp("default") / "set")))
    rows = [row for row in found.images.to_pylist() if row["split"] != "train"]
    store = ImageStore(found.root, cache=None)
    return rows, torch.stack([decode(store.read(row["path"])) for row in rows]) / 255


def untrained(image: Tensor) -> Tensor:
    """Features of the demo's network with random weights."""
    size = DEMO_IMAGES.height, DEMO_IMAGES.width
    pixels = torch.stack([resize(one, *size) for one in (255 * image).round().byte()])
    with torch.inference_mode():
        return build_embedder(SMALL_MODEL, bn_group=1).eval()(standardise(pixels, "imagenet"))


BASELINES = {
    "raw pixels": lambda image: F.adaptive_avg_pool2d(image, (32, 16)).flatten(1),
    "mean colour": lambda image: image.mean((2, 3)),
    "untrained network": untrained,
}


def rank1(feature_ND: Tensor, rows: list[dict], *, other_cameras_only: bool) -> float:
    """Share of queries whose nearest gallery image has their id; their own camera's never count as answers."""
    pid, camid = (torch.tensor([row[name] for row in rows]) for name in ("pid", "camid"))
    query = torch.tensor([row["split"] == "query" for row in rows])
    unit = F.normalize(feature_ND, dim=1)
    similarity = unit[query] @ unit[~query].T
    left_out = camid[query, None] == camid[None, ~query]
    if not other_cameras_only:
        left_out &= pid[query, None] == pid[None, ~query]
    nearest = similarity.masked_fill(left_out, -2).argmax(1)
    return float((pid[~query][nearest] == pid[query]).float().mean())


@pytest.mark.parametrize("other_cameras_only", [False, True])
@pytest.mark.parametrize("baseline", BASELINES)
def test_whoever_has_not_learnt_fails(
    test_half: tuple[list[dict], Tensor], baseline: str, other_cameras_only: bool
) -> None:
    rows, image = test_half
    score = rank1(BASELINES[baseline](image), rows, other_cameras_only=other_cameras_only)
    assert 1 / 60 / 2 < score < 0.5  # 60 identities: 1 / 60 is chance
