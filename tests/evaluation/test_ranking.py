import logging

import numpy as np
import pytest

from reid_core.errors import UsageError
from reid_core.evaluation.ranking import CameraFilter, Images, match_ranks, top_k
from reid_core.tables import IMAGES, RANKS, features_table
from tests.reference import ranking as reference
from tests.reference.features import people


def images(
    feature: np.ndarray,
    pid: list[int] | np.ndarray,
    camid: list[int] | np.ndarray | None = None,
    tracklet: list[int] | np.ndarray | None = None,
) -> Images:
    count = len(feature)
    unknown = np.full(count, -1)
    return Images(
        image_id=np.arange(count) * 2,
        feature=feature,
        pid=np.asarray(pid),
        camid=unknown if camid is None else np.asarray(camid),
        tracklet=unknown if tracklet is None else np.asarray(tracklet),
    )


def with_ties(count: int, seed: int) -> Images:
    """Rows of +-1/4: products are exact multiples of 1/8, so they tie; all kinds of ids."""
    rng = np.random.default_rng(seed)
    feature = rng.choice(np.array([-0.25, 0.25], np.float32), size=(count, 16))
    return images(
        feature,
        rng.integers(-1, 12, count),
        rng.integers(-1, 3, count),
        rng.integers(-1, 9, count),
    )


@pytest.mark.parametrize("camera_filter", ["same_camera", "same_tracklet", "none"])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_a_stable_sort(camera_filter: CameraFilter, seed: int) -> None:
    query, gallery = with_ties(70, seed), with_ties(300, seed + 10)
    begin, rank = match_ranks(query, gallery, camera_filter=camera_filter, block=32)
    expected = reference.match_ranks(query, gallery, camera_filter)
    np.testing.assert_array_equal(np.diff(begin), [len(ranks) for ranks in expected])
    np.testing.assert_array_equal(rank, np.concatenate(expected))


@pytest.mark.parametrize("k", [1, 10, 400])
def test_top_k_equals_a_stable_sort(k: int) -> None:
    query, gallery = with_ties(40, 1), with_ties(300, 2)
    table = top_k(query, gallery, k, block=16)
    assert table.schema == RANKS
    ranks = table.to_pandas()
    for q in range(40):
        own = ranks[ranks["query_id"] == query.image_id[q]]
        expected = reference.ranking(query, q, gallery, "same_camera")[:k]
        np.testing.assert_array_equal(own["gallery_id"], gallery.image_id[expected])
        np.testing.assert_array_equal(own["rank"], np.arange(len(expected)) + 1)
        match = (gallery.pid[expected] == query.pid[q]) & (query.pid[q] > 0)
        np.testing.assert_array_equal(own["match"], match)
        similarity = gallery.feature[expected] @ query.feature[q]
        np.testing.assert_array_equal(own["similarity"], similarity)


def test_by_hand() -> None:
    """Of id 1: image 0 is of the query's camera, 2 and 4 match; 1 is junk, 3 a distractor."""
    angle = np.array([0.1, 0.15, 0.3, 0.2, 0.4])
    feature = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    query = images(np.array([[1, 0]], np.float32), [1], [2])
    gallery = images(feature, [1, -1, 1, 0, 1], [2, 1, 1, 1, 3])
    assert match_ranks(query, gallery).rank.tolist() == [2, 3]
    assert match_ranks(query, gallery, camera_filter="none").rank.tolist() == [1, 3, 4]
    assert top_k(query, gallery, 2)["gallery_id"].to_pylist() == [6, 4]


def test_unknown_cameras_equal_nothing(caplog: pytest.LogCaptureFixture) -> None:
    feature = people(4)
    with caplog.at_level(logging.WARNING):
        ranks = match_ranks(images(feature[:1], [1]), images(feature[1:], [1, 1, 2]))
    assert len(ranks.rank) == 2
    assert "no effect" in caplog.text


def test_gallery_images_of_another_id_stay_whatever_their_camera() -> None:
    feature = np.array([[1, 0], [0.6, 0.8]], np.float32)
    ranks = match_ranks(images(feature[:1], [1], [0]), images(feature, [2, 1], [0, 1]))
    assert ranks.rank.tolist() == [2]


def test_block_size_changes_nothing() -> None:
    query, gallery = with_ties(50, 3), with_ties(200, 4)
    for block in (1, 7, 50, 1000):
        for found, want in zip(
            match_ranks(query, gallery, block=block), match_ranks(query, gallery), strict=True
        ):
            np.testing.assert_array_equal(found, want)


@pytest.mark.gpu
def test_gpu_gives_the_same() -> None:
    query, gallery = with_ties(50, 3), with_ties(200, 4)
    np.testing.assert_array_equal(
        match_ranks(query, gallery, device="cuda").rank, match_ranks(query, gallery).rank
    )


def test_empty_query_and_gallery() -> None:
    some, none = with_ties(5, 0), with_ties(0, 0)
    assert match_ranks(none, some).begin.tolist() == [0]
    assert match_ranks(some, none).begin.tolist() == [0] * 6
    assert top_k(none, some, 3).num_rows == top_k(some, none, 3).num_rows == 0


def test_images_of_a_table_in_any_order() -> None:
    rows = IMAGES.empty_table().to_pandas()
    rows["image_id"], rows["path"], rows["split"] = [3, 1], ["b", "a"], "query"
    rows["pid"], rows["camid"] = [None, 4], [2, None]
    table = IMAGES.empty_table().from_pandas(rows, schema=IMAGES)
    feature = people(2)
    found = Images.from_table(features_table(table, np.array([1, 3]), feature))
    assert found.image_id.tolist() == [1, 3]
    assert found.pid.tolist() == [4, 0]
    assert found.camid.tolist() == [-1, 2]
    assert found.tracklet.tolist() == [-1, -1]
    np.testing.assert_array_equal(found.feature, feature)


def test_wrong_use() -> None:
    some = with_ties(5, 0)
    with pytest.raises(UsageError, match="same_camera, same_tracklet, none"):
        match_ranks(some, some, camera_filter="camera")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must be at least 1"):
        top_k(some, some, 0)
    with pytest.raises(ValueError, match="16 values and gallery features 64"):
        match_ranks(some, images(people(4), [1] * 4))
    with pytest.raises(ValueError, match="row 2 has length nan"):
        match_ranks(
            some, images(np.where(np.arange(5)[:, None] == 2, np.nan, some.feature), [1] * 5)
        )
