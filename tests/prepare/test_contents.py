"""Digests: the memo is used, and never for a file that may have changed again unseen."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from cargo_cow.filesystems import GRANULE_NS
from cargo_cow.prepare.contents import MISSING, UNREADABLE, Contents


def _old(path: Path) -> None:
    time.sleep(2 * GRANULE_NS / 1e9)


def test_small_and_large_files(tmp_path: Path) -> None:
    for size in (0, 10, 5_000_000):
        path = tmp_path / f"f{size}"
        path.write_bytes(os.urandom(size))
        assert Contents().file(str(path)) == blake3(path.read_bytes()).hexdigest()


def test_what_is_missing_or_no_file(tmp_path: Path) -> None:
    contents = Contents()
    assert contents.file(str(tmp_path / "missing")) == MISSING
    os.mkfifo(tmp_path / "pipe")
    assert contents.file(str(tmp_path / "pipe")) == UNREADABLE


def test_the_memo_spares_reading_and_sees_every_change(tmp_path: Path) -> None:
    path, memo = tmp_path / "file", tmp_path / "memo.json"
    path.write_text("one")
    _old(path)
    first = Contents(str(memo))
    digest = first.file(str(path))
    first.save()
    second = Contents(str(memo))
    assert second.file(str(path)) == digest
    assert second.hashed_files == 0
    before = path.stat().st_mtime_ns
    path.write_text("two")  # the same size
    os.utime(path, ns=(before, before))  # and the same mtime: the ctime tells
    third = Contents(str(memo))
    assert third.file(str(path)) != digest


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    """It could change again within the clock's granule, with the same stat."""
    path, memo = tmp_path / "file", tmp_path / "memo.json"
    path.write_text("one")
    first = Contents(str(memo))
    first.file(str(path))
    first.save()
    second = Contents(str(memo))
    second.file(str(path))
    assert second.hashed_files == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "files": {}}', "null"])
def test_a_damaged_memo_is_none(tmp_path: Path, text: str) -> None:
    path, memo = tmp_path / "file", tmp_path / "memo.json"
    path.write_text("one")
    memo.write_text(text)
    assert Contents(str(memo)).file(str(path)) == blake3(b"one").hexdigest()


def test_trees_count_names_and_contents_below(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "d/e/f").write_text("1")
    (tmp_path / "d/loop").symlink_to(tmp_path / "d")
    seen = {Contents().tree(str(tmp_path / "d"))}
    (tmp_path / "d/e/f").write_text("2")
    seen.add(Contents().tree(str(tmp_path / "d")))
    (tmp_path / "d/g").write_text("")
    seen.add(Contents().tree(str(tmp_path / "d")))
    (tmp_path / "d/g").rename(tmp_path / "d/h")
    seen.add(Contents().tree(str(tmp_path / "d")))
    assert len(seen) == 4
    assert Contents().tree(str(tmp_path / "missing")) == MISSING


def test_what_was_found_in_contents_is_not_searched_again(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    asked = []

    def search(answer: object) -> object:
        asked.append(answer)
        return answer

    for _ in range(2):
        contents = Contents(str(memo))
        assert contents.answer(["baked", 1, ["d1"], "/root"], lambda: search(False)) is False
        assert contents.answer(["baked", 1, ["d2"], "/root"], lambda: search(True)) is True
        assert contents.answer(["asks", 1, "d1"], lambda: search(["head"])) == ["head"]
        contents.save()
    assert asked == [False, True, ["head"]]
    # Another version, another place.
    assert contents.answer(["baked", 2, ["d1"], "/root"], lambda: search(True)) is True
    assert contents.answer(["baked", 1, ["d1"], "/other"], lambda: search(True)) is True


def test_answers_do_not_grow_for_ever(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    contents = Contents(str(memo))
    for number in range(1200):
        contents.answer(number, partial(int, number))
        contents.answer("often", lambda: "asked")
    contents.save()
    again = Contents(str(memo))
    assert again.answer("often", lambda: "forgotten") == "asked"
    assert again.answer(1199, lambda: -1) == 1199
    assert again.answer(0, lambda: -1) == -1
