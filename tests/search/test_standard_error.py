"""What is written to a standard error that nobody reads any more."""

import os
from collections.abc import Callable

import pytest

from widthwise.search.progress import console, say


@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
def test_a_reader_that_goes_ends_nothing(
    opened: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = opened()
    with os.fdopen(writer, "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        screen = console()
        assert screen.is_terminal == os.isatty(reader)
        screen.print("heard")
        assert os.read(reader, 100).split() == [b"heard"]
        os.close(reader)
        screen.print("lost")
        say("lost too", True)
        # And what is not progress.
        print("lost in the end", file=stream, flush=True)


def test_a_standard_error_that_was_never_there_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    say("lost", True)
    assert capsys.readouterr().out == ""


def test_another_fault_of_standard_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with pytest.raises(OSError, match="No space left"):
            say("full", True)
        # What is buffered still.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
