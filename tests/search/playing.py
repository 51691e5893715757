"""A sweep's books driven by hand, with made-up losses."""

import math
from typing import Any

from optuna.trial import Trial, TrialState

from widthwise.proxies.config import Hyperparameters
from widthwise.search import SearchSpace
from widthwise.search.ledger import Ledger


def made_up_loss(tried: Hyperparameters) -> float:
    return 2 + math.log(tried.lr / 0.03) ** 2 + 0.01 * math.log(tried.weight_decay) ** 2


def begin(ledger: Ledger) -> tuple[int, Hyperparameters]:
    """Take the next trial and draw its settings, as a worker's start does."""
    trial = ledger.next()
    assert isinstance(trial, Trial)
    return trial.number, ledger.hyperparameters(trial)


def complete(ledger: Ledger, number: int, tried: Hyperparameters) -> None:
    ledger.finish(number, "completed", {"loss": made_up_loss(tried), "tokens": 61440, "seconds": 1.5})


def play(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    """Run the next `count` trials to their ends; return what each tried."""
    tried = []
    for _ in range(count):
        number, hyperparameters = begin(ledger)
        complete(ledger, number, hyperparameters)
        tried.append({"number": number, **hyperparameters.model_dump()})
    return tried


def quadratic(**fields: Any) -> dict[str, Any]:
    space = SearchSpace(lr=(0.02, 0.045), weight_decay=(0.3, 3.0), decay=("l2",))
    return {"space": space, "sampler": "qmc", "trials": 12, "finalists": 1} | fields


def states(ledger: Ledger) -> list[TrialState]:
    return [trial.state for trial in ledger.study.get_trials()]
