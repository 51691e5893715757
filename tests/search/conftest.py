"""Sweeps' books over real studies, for tests that drive them by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon
from widthwise.search import SweepConfig
from widthwise.search.ledger import Ledger

STEPS = 60


def configured(**fields: Any) -> SweepConfig:
    defaults = {
        "model": GPTConfig(width=32, context=64),
        "horizon": Horizon(batch_tokens=1024, tokens=1024 * STEPS),
        "trials": 6,
        "finalists": 2,
        "seeds": 3,
        "seed": 5,
    }
    return SweepConfig(**(defaults | fields))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Ledger]]:
    """Return a function that opens a ledger, in `tmp_path` if not told otherwise; all are closed at the end."""
    ledgers: list[Ledger] = []

    def open_ledger(out: Path = tmp_path / "sweep", *, resume: bool = False, **fields: Any) -> Ledger:
        ledgers.append(Ledger(configured(**fields), out, resume=resume))
        return ledgers[-1]

    yield open_ledger
    for ledger in ledgers:
        ledger.close()
