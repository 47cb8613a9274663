from itertools import islice

import numpy as np
import pytest

from reid_core.data.samplers import identity_batches
from tests.reference.sampling import identity_stream_reference


def take(batches, count: int) -> np.ndarray:
    return np.stack(list(islice(batches, count)))


@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_slow_twin(cameras: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label, camid = rng.integers(-1, 12, 80), rng.integers(-1, cameras - 1, 80)
    rows = take(identity_batches(label, camid, batch_size=8, instances=4, seed=seed), 30)
    stream = identity_stream_reference(label.tolist(), camid.tolist(), 4, seed)
    assert rows.dtype == np.int64
    assert rows.flatten().tolist() == list(islice(stream, rows.size))


def test_companions_come_from_other_cameras() -> None:
    label, camid = np.zeros(6, dtype=np.int64), np.array([0, 0, 0, 0, 1, 2])
    for block in take(identity_batches(label, camid, batch_size=4, instances=4, seed=0), 50):
        anchor, companions = camid[block[0]], camid[block[1:]]
        assert (companions != anchor).all()


def test_without_another_camera_the_others_are_drawn() -> None:
    label, camid = np.zeros(4, dtype=np.int64), np.full(4, 7)
    for block in take(identity_batches(label, camid, batch_size=3, instances=3, seed=0), 50):
        assert len(set(block.tolist())) == 3  # three others: distinct


def test_too_few_companions_repeat_but_never_the_anchor() -> None:
    label = np.zeros(3, dtype=np.int64)
    for block in take(identity_batches(label, None, batch_size=4, instances=4, seed=0), 50):
        assert block[0] not in block[1:]


def test_all_unknown_cameras_are_one() -> None:
    label = np.repeat(np.arange(3), 5)
    unknown = identity_batches(label, -np.arange(1, 16), batch_size=8, instances=4, seed=0)
    none = identity_batches(label, None, batch_size=8, instances=4, seed=0)
    assert np.array_equal(take(unknown, 20), take(none, 20))


def test_outliers_are_dropped_or_stand_alone() -> None:
    label = np.array([4, -1, 4, -1, 9, 9])
    dropped = take(identity_batches(label, None, batch_size=4, instances=2, seed=0), 20)
    assert set(dropped.flatten().tolist()) == {0, 2, 4, 5}
    options = {"batch_size": 6, "instances": 2, "seed": 0, "outliers": "single"}
    for batch in take(identity_batches(label, None, **options), 20):  # a pass: 2 + 2 + 1 + 1
        assert sorted(batch.tolist()) == [0, 1, 2, 3, 4, 5]


def test_batches_are_blocks_of_passes_over_all_identities() -> None:
    label = np.repeat(np.arange(5), 4)  # a pass is 5 x 4 = 20 rows: batches of 8 straddle
    rows = take(identity_batches(label, None, batch_size=8, instances=4, seed=3), 10).flatten()
    for one_pass in rows.reshape(4, 20):
        assert sorted(label[one_pass[::4]].tolist()) == [0, 1, 2, 3, 4]


def test_a_single_identity_fills_a_batch() -> None:
    batch = next(identity_batches(np.array([3, 3]), None, batch_size=7, instances=3, seed=0))
    assert batch.shape == (7,)


def test_no_label_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"none of 3 images .*eps"):
        identity_batches(np.full(3, -1), None, batch_size=4, instances=2, seed=0)


def test_seeds_fix_the_stream() -> None:
    label = np.repeat(np.arange(6), 5)
    streams = [
        take(identity_batches(label, None, batch_size=8, instances=4, seed=s), 20)
        for s in (1, 1, 2)
    ]
    assert np.array_equal(streams[0], streams[1])
    assert not np.array_equal(streams[0], streams[2])
