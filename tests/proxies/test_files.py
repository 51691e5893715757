"""Files that are whole or absent, and JSON without numbers that JSON cannot say."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from widthwise.proxies.files import read_json, replacing, write_atomic, write_json
from widthwise.proxies.validation import ConfigError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "whole", "x")
        (tmp_path / "plain").write_text("x")
    finally:
        os.umask(before)
    assert mode(tmp_path / "whole") == mode(tmp_path / "plain") == 0o640


def test_the_processs_mask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads create files meanwhile"))
    write_atomic(tmp_path / "a", "x")


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: write_atomic(path, str(index) * 10_000), range(40)))
    text = path.read_text()
    assert text in {str(index) * 10_000 for index in range(40)}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"new", "not bytes"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_none_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing" / "a", "x")
    with pytest.raises(NotADirectoryError):
        write_atomic(tmp_path / "file" / "a", "x")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    document = {"η": 0.1, "list": [1, {"deep": [None, True]}], "empty": {}}
    write_json(tmp_path / "a.json", document)
    assert read_json(tmp_path / "a.json", "a document") == document


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"lr": NaN}', "lr: must be finite, got nan"),
        ('{"a": {"losses": [1.5, {"best": -Infinity}, NaN]}}', "a.losses.1.best: must be finite, got -inf"),
        ('{"a": 1, "b": 1e999}', "b: must be finite, got inf"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_by_their_place(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}: {complaint}')}$"):
        read_json(path, "a document")


def test_a_document_deeper_than_pythons_stack_needs_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": ' + "[" * 900 + "NaN" + "]" * 900 + "}")
    with pytest.raises(ConfigError, match=r"a(\.0){900}: must be finite, got nan$"):
        read_json(path, "a document")
