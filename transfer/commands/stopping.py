"""What Ctrl-C says of work that can be gone on with."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from widthwise.proxies.storage import Place
from widthwise.search.standard_error import standard_error


@contextmanager
def resumable(books: Sequence[Place], told: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C into one line and exit status 130 where there is something to resume, whenever it comes.

    Args:
        books: the files without any of which the folder holds nothing to resume.
        told: returns what is said after "stopped; ".
    """
    try:
        yield
    except KeyboardInterrupt:
        if not any(book.exists() for book in books):
            raise
        print(f"widthwise: stopped; {told()}", file=standard_error())
        raise SystemExit(130) from None


def sweep_resumption(out: str | Place) -> str:
    """Return the command that goes on with the sweep in `out`, to be copied into a shell."""
    return shlex.join(["widthwise", "sweep", "--resume", "--out", str(out)])


def same_command(out: Place) -> str:
    """Return how to go on in `out`."""
    return f"go on with the same command and --resume ({out})"
