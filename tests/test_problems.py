from __future__ import annotations

import inspect
import pickle
import sys
import threading
from pathlib import Path

import pytest

from cytolens import problems
from cytolens.problems import (
    CytolensError,
    ImageError,
    MissingExtraError,
    Problem,
    Problems,
    did_you_mean,
    listing,
    require,
    written,
)

BLURRED = Problem("image-blurred", "a.png", "is out of focus.", "Take it again.", "note")
DAMAGED = Problem("image-damaged", "b.png", "cannot be decoded.", severity="error")


def test_every_error_is_a_cytolens_error_and_drawn_in_the_docstring() -> None:
    errors = [c for _, c in inspect.getmembers(problems, inspect.isclass) if issubclass(c, Exception)]
    assert len(errors) == 9
    for error in errors:
        assert issubclass(error, CytolensError)
        assert error.__name__ in (problems.__doc__ or "")


def test_image_error_keeps_its_problem_through_pickle() -> None:
    again = pickle.loads(pickle.dumps(ImageError(DAMAGED)))
    assert again.problem == DAMAGED
    assert str(again) == "b.png: cannot be decoded."


def test_a_problem_reads_as_where_what_fix() -> None:
    assert str(BLURRED) == "a.png: is out of focus. Take it again."
    assert BLURRED.to_dict() == {
        "kind": "image-blurred",
        "where": "a.png",
        "what": "is out of focus.",
        "fix": "Take it again.",
        "severity": "note",
    }


def test_problems_are_counted_by_kind_and_know_the_worst() -> None:
    found = Problems([BLURRED])
    assert found.worst == "note"
    found.add("image-blurred", "c.png", "is out of focus.")
    assert found.worst == "warning"
    found.extend([DAMAGED])
    assert found.worst == "error"
    assert found.counts() == {"image-blurred": 2, "image-damaged": 1}
    assert [problem.where for problem in found.of("image-blurred")] == ["a.png", "c.png"]
    assert [row["where"] for row in found.to_dicts()] == ["a.png", "c.png", "b.png"]
    assert (len(found), found[2]) == (3, DAMAGED)


def test_no_problem_is_no_severity() -> None:
    assert Problems().worst is None
    assert len(Problems()) == 0


@pytest.mark.parametrize(
    ("word", "hint"),
    [("Neutrofil", 'Did you mean "neutrophil"?'), ("NEUTROPHIL", 'Did you mean "neutrophil"?'), ("zzz", ""), ("", "")],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["basophil", "neutrophil"]) == hint


def test_listing_is_cut_and_says_how_much_is_left_out() -> None:
    assert listing("abc") == "a, b, c"
    assert listing("abcd", most=2) == "a, b … and 2 more"
    assert listing([]) == ""


def test_require_returns_the_module_or_names_the_extra() -> None:
    assert require("json", "web", "reading").__name__ == "json"
    with pytest.raises(MissingExtraError, match=r'pip install "cytolens\[web\]"') as caught:
        require("no_such_module_here.sub", "web", "The review")
    assert str(caught.value).startswith('The review needs the package "no_such_module_here"')


def test_require_does_not_hide_what_a_module_itself_misses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_module_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_here"):
        require("half_installed", "web", "The review")
    sys.modules.pop("half_installed", None)


def test_written_gives_the_file_its_name_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "new" / "färbung.png"
    with written(target) as part:
        part.write_bytes(b"whole")
        assert part.suffix == ".png"
        assert part.name.startswith("."), "a folder's images leave hidden files out"
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert [path.name for path in target.parent.iterdir()] == ["färbung.png"]


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "cells.csv"
    target.write_bytes(b"old")

    def fill_the_disk() -> None:
        with written(target) as part:
            part.write_bytes(b"half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="full"):
        fill_the_disk()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_names_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 251 + ".csv")
    with written(target) as part:
        part.write_bytes(b"x")
    assert target.read_bytes() == b"x"


def test_two_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    target, meet = tmp_path / "report.html", threading.Barrier(2)
    seen: list[bytes] = []

    def write(text: bytes) -> None:
        with written(target) as part:
            meet.wait(10)
            part.write_bytes(text)
            meet.wait(10)
            seen.append(part.read_bytes())
            meet.wait(10)

    threads = [threading.Thread(target=write, args=(text,)) for text in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(seen) == [b"one", b"two"]
    assert target.read_bytes() in seen
    assert list(tmp_path.iterdir()) == [target]
