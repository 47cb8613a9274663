"""``reid picture`` as it is called, on run folders made by hand."""

import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread

from pipelines import picture
from pipelines.cli import main
from pipelines.results.saved_run import SavedRun
from pipelines.run.stages import label_table, labels_path
from reid_core.batch import Batch, Domain, Round, Sizes
from reid_core.data.datasets import scan
from reid_core.labelling.given import given_labels
from reid_core.methods import ise
from reid_core.models.embedder import build_embedder, save_embedder
from reid_core.tables import features_table, write_table
from reid_core.visualisation.matches import matches_figure

ISE = replace(ise.DEMO, supports=2, rounds=4, batch_size=48, bn_group=12)
DIM = 6


class World:
    """A set of 48 training images, and what runs on it leave."""

    def __init__(self, root: str, folder: Path) -> None:
        self.root, self.folder = root, folder
        found = scan(root).images.filter(pc.field("split") == "train")
        self.images = found.sort_by("image_id")
        self.image_id = self.images.column("image_id").to_numpy()
        pid = self.images.column("pid").to_numpy()
        camid = self.images.column("camid").to_numpy()
        self.levels = np.stack([10 * pid + camid, pid, pid // 2], axis=1)
        x = np.random.default_rng(0).standard_normal((len(pid), DIM)) + 2 * np.eye(DIM)[pid % DIM]
        self.feature = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        self.table = features_table(self.images, self.image_id, self.feature)
        self.features = str(folder / "features.parquet")
        write_table(self.table, self.features)

    def run(self, name: str, group: np.ndarray, *, ids: bool = True) -> str:
        """A run of ``name`` with these labels at its last evaluation, after round 2."""
        place = self.folder / name
        place.mkdir(exist_ok=True)
        job = {"method": asdict(ISE), "data": self.root, "layout": "auto", "seed": 1}
        job["camera_filter"] = "same_camera"
        (place / "last.safetensors").touch()
        config = {"job": job, "identity": {"method_name": name}}
        (place / "config.json").write_text(json.dumps(config))
        lines = [{"kind": "evaluation", "round": i, "mAP": 0.1 * i, "rank1": 0.2} for i in (0, 2)]
        if ids:
            lines += [{"kind": "quality", "round": i, "ari_singletons": 0.1 * i} for i in range(4)]
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        labels = given_labels(self.image_id, group, None)
        write_table(label_table(labels, self.images), labels_path(str(place), 2))
        return str(place)


@pytest.fixture
def world(small_set: str, tmp_path: Path) -> World:
    return World(small_set, tmp_path)


def test_hierarchy_with_and_without_images(world: World) -> None:
    run = world.run("hcd", world.levels)
    assert main(["picture", run, "--what", "hierarchy"]) == 0
    tiles = imread(f"{run}/hierarchy.png")
    out = str(world.folder / "new" / "images.png")
    assert main(["picture", run, "--what", "hierarchy", "--images", "--out", out]) == 0
    images = imread(out)
    assert images.shape[0] > tiles.shape[0]  # of people: twice as tall as wide
    few = str(world.folder / "few.png")
    flags = ["--clusters", "1", "--most", "3", "--out", few]
    assert main(["picture", f"file://{run}", "--what", "hierarchy", *flags]) == 0
    assert imread(few).shape[0] < tiles.shape[0]
    assert imread(few).shape[1] < tiles.shape[1]


def test_tsne_of_features_given(world: World) -> None:
    run = world.run("ise", world.levels[:, 1:2])
    flags = ["--what", "tsne", "--features", world.features, "--most", "4"]
    pictures = []
    for more in ([], ["--ids", "1", "3"], ["--clusters", "0", "2"]):
        assert main(["picture", run, *flags, *more]) == 0
        pictures.append(imread(f"{run}/tsne.png"))
    assert all((one != two).any() for one, two in pairwise(pictures))


def test_tsne_extracts_by_the_last_weights(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run = world.run("cluster_contrast", world.levels[:, 1:2])
    asked = []

    def extract(job: picture.extract.ExtractJob) -> None:
        asked.append((job.data, job.layout, job.weights, job.split))
        write_table(world.table, job.out)

    monkeypatch.setattr(picture.extract, "run", extract)
    assert main(["picture", run, "--what", "tsne", "--most", "4"]) == 0
    assert main(["picture", run, "--what", "tsne", "--most", "4", "--data", "elsewhere"]) == 0
    weights = f"{run}/last.safetensors"
    assert asked == [(root, "auto", weights, "train") for root in (world.root, "elsewhere")]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_tsne_extracts(world: World) -> None:
    run = world.run("ise", world.levels[:, 1:2])
    embedder = build_embedder(ISE.model, bn_group=1)
    save_embedder(embedder, ISE.model, ISE.images, f"{run}/last.safetensors")
    assert main(["picture", run, "--what", "tsne"]) == 0
    assert imread(f"{run}/tsne.png").any()


def test_matches_are_those_that_evaluation_ranks_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.run("hcd", world.levels)
    images = scan(world.root).images.filter(pc.field("split") != "train").sort_by("image_id")
    x = np.random.default_rng(1).standard_normal((len(images), DIM)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pid = images.column("pid").to_numpy().copy()
    gallery = images.column("split").to_numpy(zero_copy_only=False) == "gallery"
    pid[np.flatnonzero(gallery)[:9]] = -1  # junk
    unknown = np.flatnonzero(gallery)[9:15]
    pid = pa.array(np.where(np.isin(np.arange(len(pid)), unknown), None, pid), pa.int64())
    images = images.set_column(3, images.schema.field("pid"), pid)
    table = features_table(images, images.column("image_id").to_numpy(), x)
    monkeypatch.setattr(picture.extract, "run", lambda job: write_table(table, job.out))
    drawn = []

    def figure(query: list, found: list, same: list, title: str) -> object:
        drawn.append((len(query), [len(row) for row in found], same, title))
        return matches_figure(query, found, same, title)

    monkeypatch.setattr(picture, "matches_figure", figure)
    assert main(["picture", run, "--what", "matches", "--queries", "3", "--most", "30"]) == 0
    assert imread(f"{run}/matches.png").any()
    count, beside, same, title = drawn[0]
    assert count == 3
    assert title.endswith("by hcd after 2 rounds")
    rows = table.to_pylist()
    queries = [row for row in rows if row["split"] == "query"]
    expected = []
    for query in queries:
        seen = [
            (-np.dot(query["feature"], row["feature"]), row["pid"])
            for row in rows
            if row["split"] == "gallery"
            and row["pid"] != -1
            and not (row["pid"] == query["pid"] and row["camid"] == query["camid"])
        ]
        ordered = sorted(seen, key=lambda pair: pair[0])[:30]
        expected.append([None if pid is None else pid == query["pid"] for _, pid in ordered])
    assert all(row in expected for row in same)
    assert beside == [len(row) for row in same]
    assert any(None in row for row in same)
    assert any(True in row for row in same)

    flags = ["--queries", "3", "--most", "30", "--seed", "1"]
    assert main(["picture", run, "--what", "matches", *flags]) == 0
    assert drawn[1][2] != same


def test_queries_are_of_different_identities_where_known() -> None:
    known = pa.table({"pid": pa.array([1, 1, 1, 2, 2, 3])})
    for seed in range(5):
        chosen = picture._chosen(known, 3, seed)
        assert set(known.column("pid").take(chosen).to_pylist()) == {1, 2, 3}
        assert (np.diff(chosen) > 0).all()
    assert len(picture._chosen(known, 9, 0)) == 3
    unknown = pa.table({"pid": pa.array([None] * 6, pa.int64())})
    assert len(picture._chosen(unknown, 4, 0)) == 4


@pytest.mark.parametrize("direction", ["nearest", "farthest"])
@pytest.mark.parametrize("supports", [0, 2, 9])
def test_supports_are_those_of_the_method(world: World, direction: str, supports: int) -> None:
    config = replace(ISE, direction=direction, supports=supports)
    label = world.levels[:, 1] - 1
    job = {"method": asdict(config), "seed": 1}
    run = SavedRun("", "ise", job, [{"kind": "evaluation", "round": 3}])
    x, label = torch.from_numpy(world.feature), torch.from_numpy(label)
    label = label.unique(return_inverse=True)[1]
    row = np.array([0, 5, 40])
    found = picture._supports(run, x, label, row)
    none = torch.full((len(x),), -1)
    objective = ise.Objective(config, torch.nn.Identity(), Sizes(len(x), 0, DIM))
    target = Domain(image_id=none, camid=none, label=label[:, None], feature=x)
    objective.begin_round(Round(number=3, rounds=4, step=0, target=target, source=None))
    batch = Batch(
        image=(x[row],), image_id=none, row=none, camid=none, label=label[row, None], domain=none,
        position=torch.arange(3), seed=1,
    )  # fmt: skip
    sample_bED = objective(torch.nn.Identity(), batch, 0.75).extra["sample_bED"]
    torch.testing.assert_close(found, sample_bED[:, 1:])
    assert found.shape[1] == min(supports, len(label.unique()) - 1)


def test_random_supports_repeat_and_other_methods_have_none(world: World) -> None:
    config = replace(ISE, direction="random", supports=1)
    lines = [{"kind": "evaluation", "round": 3}]
    run = SavedRun("", "ise", {"method": asdict(config), "seed": 1}, lines)
    label = torch.from_numpy(world.levels[:, 1]).unique(return_inverse=True)[1]
    x, row = torch.from_numpy(world.feature), np.arange(48)
    found = picture._supports(run, x, label, row)
    torch.testing.assert_close(found, picture._supports(run, x, label, row), rtol=0, atol=0)
    torch.testing.assert_close(found, F.normalize(found, dim=2))
    assert picture._supports(replace(run, method="hcd"), x, label, row).shape == (48, 0, DIM)


def test_quality_of_runs_side_by_side(world: World) -> None:
    runs = [world.run(name, world.levels) for name in ("ise", "hcd")]
    assert main(["picture", *runs, "--what", "quality"]) == 0
    both = imread(f"{runs[0]}/quality.png")
    assert main(["picture", runs[0], "--what", "quality"]) == 0
    assert (imread(f"{runs[0]}/quality.png") != both).any()
    assert not Path(runs[1], "quality.png").exists()


def test_runs_of_one_name_are_told_apart() -> None:
    assert picture.names_of(["/a/x/", "/b/y"]) == ["x", "y"]
    assert picture.names_of(["/a/x", "/b/x"]) == ["/a/x", "/b/x"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("{hcd}", "--what"),
        ("--what quality", "RUN is missing"),
        ("{hcd} nowhere --what quality", "nowhere: no run lies here"),
        ("{hcd} {ise} --what hierarchy", "draws one run; 2 were given"),
        ("{ise} --what hierarchy", "ise has labels of one level"),
        ("{hcd} --what hierarchy --clusters 99", "no cluster 99 among the training images"),
        ("{hcd} --what hierarchy --ids 1", "--ids is for --what tsne"),
        ("{hcd} --what quality --most 3", "--most is for --what hierarchy and tsne and matches"),
        ("{hcd} --what tsne --queries 3", "--queries is for --what matches"),
        ("{hcd} --what matches --queries 0", "--queries 0; must be at least 1"),
        ("{hcd} --what matches --images", "--images is for --what hierarchy"),
        ("{fresh} --what matches", "no evaluation yet"),
        ("{hcd} --what hierarchy --data x", "--data has no use here"),
        ("{hcd} --what hierarchy --most 1", "must be at least 2"),
        ("{hcd} --what hierarchy --images --data nowhere", "nowhere"),
        ("{ise} --what tsne --features nowhere", "nowhere: no such file"),
        ("{ise} --what tsne --features {features} --ids 99", "no id 99"),
        ("{ise} --what tsne --features {one} --ids 1", "one image to draw"),
        ("{ise} --what tsne --ids 1 --clusters 1", "exclude each other"),
        ("{outliers} --what tsne", "no clusters, all images are outliers"),
        ("{no_ids} --what quality", "no quality of labels"),
        ("{fresh} --what hierarchy", "no evaluation yet"),
    ],
)
def test_wrong_use(
    world: World, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "hcd": world.run("hcd", world.levels),
        "ise": world.run("ise", world.levels[:, 1:2]),
        "outliers": world.run("outliers", world.levels[:, :1] * 0 - 1),
        "no_ids": world.run("no_ids", world.levels, ids=False),
        "fresh": world.run("fresh", world.levels),
        "features": world.features,
        "one": str(world.folder / "one.parquet"),
    }
    Path(runs["fresh"], "metrics.jsonl").unlink()
    pid = world.table.column("pid").to_numpy()
    pid = pa.array(np.where(np.arange(48) == np.argmax(pid == 1), 1, pid + 1))
    write_table(world.table.set_column(3, world.table.schema.field(3), pid), runs["one"])
    assert main(["picture", *flags.format(**runs).split()]) == 2
    assert message in capsys.readouterr().err


def test_features_of_other_images(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    run, part = world.run("ise", world.levels[:, 1:2]), str(world.folder / "part.parquet")
    write_table(world.table.slice(1), part)
    assert main(["picture", run, "--what", "tsne", "--features", part]) == 1
    assert "not the 48 training images" in capsys.readouterr().err
