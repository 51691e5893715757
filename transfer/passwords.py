"""A password in a command line is taken out of it: `ps` shows it to every user, and Ray keeps it with the job."""

import os
import re
import sys
from urllib.parse import unquote

_URL = re.compile(r"((?:--[\w-]+=)?postgresql[\w+]*://[^:/@]*):([^@]*)@(.*)", re.DOTALL)


def conceal_password() -> None:
    """Start this process anew where a database's URL among its arguments has a password, which PGPASSWORD then has.

    libpq reads that one, and the environment of a process is for its own user to see.
    """
    found = [_URL.fullmatch(argument) for argument in sys.orig_argv]
    for match in filter(None, found):
        os.environ["PGPASSWORD"] = unquote(match[2])
    if any(found):
        bare = zip(sys.orig_argv, found, strict=True)
        os.execv(sys.executable, [f"{one[1]}@{one[3]}" if one else argument for argument, one in bare])
