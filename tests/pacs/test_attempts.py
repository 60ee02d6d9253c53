"""A series during which the process ends again and again holds nobody up."""

from __future__ import annotations

from pathlib import Path

from ucseg_runtime.pacs.attempts import Attempts


def test_series_that_are_not_suspect_go_first_together(tmp_path: Path) -> None:
    for keys in (["a", "b", "c"], ["a", "b"]):
        Attempts(tmp_path / "attempts.json").begin(keys)

    again = Attempts(tmp_path / "attempts.json")

    assert again.next_round(["a", "b", "c", "d"]) == {"c", "d"}, "one end alone may have had any cause"
    assert len(again.next_round(["a", "b"])) == 1, "one alone"
    assert again.next_round([]) == frozenset()


def test_those_that_did_are_tried_one_by_one_the_least_suspicious_first(tmp_path: Path) -> None:
    for keys in (["a", "b"], ["a", "b"], ["a"]):
        Attempts(tmp_path / "attempts.json").begin(keys)
    attempts = Attempts(tmp_path / "attempts.json")

    assert attempts.next_round(["a", "b"]) == {"b"}
    attempts.begin(["b"])
    attempts.end(["b"])
    assert attempts.next_round(["a", "b"]) == {"b"}, "it was not b"
    assert (attempts.ends("a"), attempts.ends("b")) == (3, 0)


def test_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "attempts.json").write_text("{")

    assert Attempts(tmp_path / "attempts.json").next_round(["a"]) == {"a"}
