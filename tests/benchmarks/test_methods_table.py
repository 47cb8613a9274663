"""The table of ``benchmarks.methods``: read from run folders, means over seeds, and what it marks."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.methods import COLUMNS, Outcome, read, table


def write_run(folder: Path, lines: list[dict[str, Any]]) -> None:
    first, last = ({"round": r, "mAP": m, "rank1": 2 * m} for r, m in ((0, 0.1), (2, 0.4)))
    (folder / "result.json").write_text(json.dumps({"first": first, "last": last}))
    (folder / "config.json").write_text(
        json.dumps({"identity": {"method_name": "ise"}, "job": {"method": {"steps": 10}}})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_read_by_its_last_lines(tmp_path: Path) -> None:
    lines = [
        {"kind": "quality", "round": 2, "ari_singletons": 0.5},  # comes late, and before others
        {"kind": "evaluation", "round": 0, "mAP": 0.1, "mAP_teacher": 0.1},
        {"kind": "round", "round": 0, "clusters": 9.0, "seconds_train": 8.0},
        {"kind": "round", "round": 1, "clusters": 7.0, "seconds_train": 2.0},
        {"kind": "round", "round": 2, "clusters": 6.0, "seconds_train": 3.0},
        {"kind": "quality", "round": 0, "ari_singletons": 0.2, "purity_clustered": 0.9},
        {"kind": "evaluation", "round": 2, "mAP": 0.4, "mAP_teacher": 0.3},
    ]
    write_run(tmp_path, lines)
    assert read(tmp_path) == pytest.approx(
        {
            "mAP first": 10,
            "mAP last": 40,
            "R1 first": 20,
            "R1 last": 80,
            "ARI": 50,
            "teacher": 30,
            "clusters": 6,
            "ms a step": 300,
        }
    )


def outcome(first: float, last: float, **more: float) -> Outcome:
    return {"mAP first": first, "mAP last": last} | more


def cells(line: str) -> dict[str, str]:
    names = ("method", *COLUMNS, "note")
    return dict(zip(names, line.strip("| ").split(" | "), strict=False))


def test_means_gains_and_marks() -> None:
    outcomes = {
        "broken": {},
        "worse": {1: outcome(10, 9), 2: outcome(10, 12)},
        "cluster_contrast": {1: outcome(10, 50), 2: outcome(10, 60), 3: outcome(10, 70)},
        "better": {1: outcome(10, 71, teacher=80), 2: outcome(10, 79, teacher=80)},
    }
    head, rule, *rows = table(outcomes, seeds=3)
    assert head.count("|") == rule.count("|") == rows[0].count("|")
    better, baseline, worse, broken = map(cells, rows)
    assert [row["method"] for row in (better, baseline, worse, broken)] == [
        "better", "cluster_contrast", "worse", "broken",
    ]  # fmt: skip
    assert baseline["mAP last"] == "60.0 ± 10.0"
    assert baseline["gain"] == "0.0 ± 0.0"
    assert better["gain"] == "20.0 ± 1.4"  # 21 and 19: seed by seed
    assert better["note"] == "teacher mAP 80.0 ± 0.0; 2 of 3 seeds"
    assert worse["note"] == "**below its start** in 1 of 2; 2 of 3 seeds"
    assert broken["mAP last"] == "-"
    assert broken["note"] == "0 of 3 seeds"


def test_one_seed_has_no_deviation() -> None:
    (_, _, row) = table({"cluster_contrast": {1: outcome(10, 50)}}, seeds=1)
    assert cells(row)["mAP last"] == "50.0"
