"""The data doctor: the opening table, queries that nothing answers, broken images."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reid_core.data.check import query_problems, subset_table, unreadable
from reid_core.data.datasets import scan
from reid_core.tables import IMAGES
from tests.data.trees import MARKET, jpeg, plant, record


def images(*rows: tuple[str, int | None, int | None]) -> pa.Table:
    """IMAGES of (split, pid, camid)."""
    records = [
        record(i, f"{i}.jpg", split, pid, camid, None) for i, (split, pid, camid) in enumerate(rows)
    ]
    return pa.Table.from_pylist(records, schema=IMAGES)


def test_subset_table_leaves_junk_out(tmp_path: Path) -> None:
    assert subset_table(scan(plant(tmp_path, MARKET))) == [
        ("train", 1, 2, 2, 751, 12936),
        ("query", 1, 1, 1, 750, 3368),
        ("gallery", 2, 2, 1, 751, 15913),
    ]


def test_subset_table_of_unknown_persons(tmp_path: Path) -> None:
    assert subset_table(scan(plant(tmp_path, ["a.jpg"]))) == [("train", None, 1, None, None, None)]


@pytest.mark.parametrize(
    ("query", "gallery", "alone"),
    [
        ((1, 1), [(1, 2)], False),
        ((1, 1), [(1, 1)], True),
        ((1, 1), [(1, 1), (1, 1), (1, 3)], False),
        ((1, 1), [(2, 2)], True),
        ((1, 1), [], True),
        ((1, 1), [(1, None)], False),
        ((1, None), [(1, 1)], False),
        ((1, None), [(1, None)], False),
        ((1, None), [(2, None)], True),
        ((-1, 1), [(-1, 2)], True),
        ((0, 1), [(0, 2)], True),
        ((None, 1), [(None, 2), (1, 2)], True),
    ],
)
def test_query_problems_by_hand(query: tuple, gallery: list[tuple], alone: bool) -> None:
    fine = [("query", 9, 1), ("gallery", 9, 2)]
    table = images(*fine, ("query", *query), *(("gallery", *row) for row in gallery))
    assert query_problems(table)["image_id"].to_pylist() == ([2] if alone else [])


def test_without_ids_there_is_no_problem() -> None:
    assert len(query_problems(images(("query", None, 1), ("gallery", None, 2)))) == 0
    assert len(query_problems(images(("train", 1, 1)))) == 0


def test_query_problems_equal_two_loops() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (str(rng.choice(["query", "gallery"])), int(rng.integers(1, 7)), int(rng.integers(3)))
        for _ in range(40)
    ]
    alone = [
        i
        for i, (split, pid, camid) in enumerate(rows)
        if split == "query"
        and not any(s == "gallery" and p == pid and c != camid for s, p, c in rows)
    ]
    assert query_problems(images(*rows))["image_id"].to_pylist() == alone


def test_unreadable_names_every_broken_image() -> None:
    contents = {f"{i}.jpg": jpeg() for i in range(3000)}
    contents["7.jpg"], contents["2000.jpg"], contents["2999.jpg"] = b"", b"text", jpeg()[:-40]

    def read(path: str) -> bytes:
        if path == "8.jpg":
            raise FileNotFoundError(path)
        return contents[path]

    seen = []
    broken = unreadable(list(contents), read, progress=lambda steps: map(seen.append, steps))
    assert broken == []  # this progress swallowed the reasons
    assert len(seen) == 3000

    broken = dict(unreadable(list(contents), read))
    assert list(broken) == ["7.jpg", "8.jpg", "2000.jpg", "2999.jpg"]
    assert all(broken.values())


def test_a_defect_is_not_taken_for_a_broken_image() -> None:
    def read(path: str) -> bytes:
        raise KeyError(path)

    with pytest.raises(KeyError):
        unreadable(["a.jpg"], read)
