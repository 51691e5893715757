"""Standard error whose reader may go, and the work goes on: a closed terminal, the end of ``ssh`` or of ``tee``."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from typing import IO, Any, cast

# Of a terminal that was closed, and of a pipe that nobody reads any more.
_GONE = {errno.EIO, errno.EPIPE}


class _Lasting:
    """A stream like `stream`; what nobody can read any more is lost."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._while_read():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._while_read():
            self._stream.flush()

    @contextmanager
    def _while_read(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            # For what is buffered still, and for all else that is written there.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def standard_error() -> IO[str]:
    """Return standard error as a stream that raises nothing when its reader goes; nor does `sys.stderr` after that."""
    # Within another live display it is rich's stand-in; it is None where whoever started the process closed it.
    stream = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return cast(IO[str], _Lasting(StringIO() if stream is None else stream))
