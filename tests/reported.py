"""A study's SQLite file, read without Optuna: a look of a millisecond can watch a trial of a second."""

import sqlite3
from contextlib import closing
from pathlib import Path

_TABLE = "SELECT count(*) FROM sqlite_master WHERE name = 'trial_intermediate_values'"
_REPORTS = """
SELECT count(*) FROM trial_intermediate_values JOIN trials USING (trial_id) WHERE number = :number OR :number IS NULL
"""


def reports(path: Path, number: int | None = None) -> int:
    """Return how many evaluations the driver has heard of, of one trial or of all."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        [there] = connection.execute(_TABLE).fetchone()
        [found] = connection.execute(_REPORTS, {"number": number}).fetchone() if there else [0]
    return int(found)
