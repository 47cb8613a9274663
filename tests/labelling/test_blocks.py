import numpy as np
import pytest

from reid_core.labelling import screens
from reid_core.labelling.blocks import Blocks, jaccard_of_all, nearest_of_all
from reid_core.labelling.clusters import cluster, density_labels, eps_graph
from reid_core.labelling.engine import Engine, block_edges, shards_for
from reid_core.labelling.jaccard import jaccard_graph
from reid_core.labelling.neighbours import nearest
from reid_core.labelling.tasks import InProcess
from reid_core.labels import Features
from tests.reference.features import people


def split(feature: np.ndarray, *edges: int) -> Blocks:
    return Blocks(np.split(feature, edges), [0, *edges, len(feature)])


@pytest.mark.parametrize("edges", [(), (100,), (60, 200, 290), (1, 2, 3)])
@pytest.mark.parametrize("k2", [1, 4])
def test_blocks_give_the_graph_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, edges: tuple[int, ...], k2: int
) -> None:
    monkeypatch.setattr(screens, "TILE", 64)
    feature, tasks = people(300, copies=30), InProcess()
    neighbours = nearest_of_all(split(feature, *edges), 12, tasks)
    expected = nearest(feature, 12)
    np.testing.assert_array_equal(neighbours.row, expected.row)
    graph = jaccard_of_all(split(feature, *edges), neighbours, k2=k2, eps=0.7, tasks=tasks)
    whole = jaccard_graph(feature, expected, k2=k2, eps=0.7)
    for name in ("row", "col", "distance"):
        np.testing.assert_array_equal(getattr(graph, name), getattr(whole, name))
    assert len(whole.row) > 100


def test_labels_of_blocks_are_those_of_the_whole() -> None:
    feature, image_id, engine = people(400, copies=20), np.arange(5, 1205, 3), Engine()
    blocks = split(feature, 150, 151)
    graph, _ = eps_graph(blocks, eps=0.6, k1=20, k2=6, engine=engine)
    labels = density_labels(graph, image_id, blocks, eps=0.6, min_samples=4, engine=engine)
    whole = cluster(Features(image_id=image_id, feature=feature), k1=20)
    np.testing.assert_array_equal(labels.label, whole.label)
    np.testing.assert_array_equal(labels.is_core, whole.is_core)
    np.testing.assert_allclose(labels.confidence, whole.confidence, atol=1e-6)
    assert labels.metrics["label_free"] == whole.metrics["label_free"]
    assert labels.label.max() > 3


def test_a_bad_row_is_named_by_its_place_among_all() -> None:
    feature = people(50)
    feature[33, 2] = np.inf
    with pytest.raises(ValueError, match="row 33 has length inf"):
        nearest_of_all(split(feature, 10, 30), 5, InProcess())


def test_fewer_images_than_neighbours_in_blocks() -> None:
    feature = people(7)
    found = nearest_of_all(split(feature, 2, 3), 7, InProcess())
    np.testing.assert_array_equal(found.row, nearest(feature, 7).row)


@pytest.mark.parametrize("shards", [2, 4, 5, 1000])
def test_an_engine_of_blocks_clusters_alike(shards: int) -> None:
    feature, image_id = people(90, copies=10), np.arange(100)
    whole = cluster(Features(image_id=image_id, feature=feature), k1=12)
    engine = Engine(shards=shards)
    labels = cluster(Features(image_id=image_id, feature=feature, engine=engine), k1=12)
    np.testing.assert_array_equal(labels.label, whole.label)
    assert labels.label.max() > 3


def test_block_edges() -> None:
    assert block_edges(10, 3) == [0, 3, 6, 10]
    assert block_edges(2, 5) == [0, 1, 2]
    assert block_edges(0, 4) == [0, 0]
    assert (shards_for(1), shards_for(131_072), shards_for(131_073)) == (1, 1, 2)
    assert shards_for(10**7, asked=3) == 3
