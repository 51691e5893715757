"""The book in which scaling rules stand by name.

A rule is one pure function ``Ratios -> Scaled``; ``@rule`` gives it a name::

    @rule("my-rule", source="my notes")
    def my_rule(ratios: Ratios) -> Scaled:
        "λ is left alone, the matrices' learning rate falls as 1/√w."
        return scaled(matrix=Multipliers(lr=ratios.width**-0.5, init_std=ratios.width**-0.5))

``--rule MODULE:FUNCTION`` takes such a function without a name of its own, from any module that can be imported.

Every rule must be the identity at ``Ratios()``, where the proxy was tuned. Its λ multipliers are for kinds
that decay; which do is a word of its own, `Scaled.decay_kinds`. The published rules stand in
`widthwise.transfer.scaling`, and this module's names are to be had from there.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from widthwise.proxies.references import referenced
from widthwise.proxies.validation import ConfigError, first_line, look_up
from widthwise.transfer.multipliers import Ratios, Scaled


@dataclass(frozen=True)
class Rule:
    """A named scaling rule; call it with `Ratios`.

    Attributes:
        name: what ``--rule`` and ``Recipe.at(rule=…)`` take.
        source: the paper or the code that it comes from.
        summary: what it does, in a sentence.
        function: the pure function behind it.
    """

    name: str
    source: str
    summary: str
    function: Callable[[Ratios], Scaled]

    def __call__(self, ratios: Ratios) -> Scaled:
        """Return the multipliers at `ratios`.

        Raises:
            ConfigError: naming the rule, where its multipliers are impossible.
        """
        try:
            return self.function(ratios)
        except ConfigError as error:
            raise ConfigError(f"rule {self.name!r}: {error}") from None


_registered: dict[str, Rule] = {}

rules: Mapping[str, Rule] = MappingProxyType(_registered)
"""Every registered rule by name, read-only."""


def rule(name: str, *, source: str) -> Callable[[Callable[[Ratios], Scaled]], Callable[[Ratios], Scaled]]:
    """Register the decorated function as the rule `name`; its docstring is the summary.

    Args:
        name: a name that is not taken.
        source: where the rule comes from, for example an arXiv id.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def register(function: Callable[[Ratios], Scaled]) -> Callable[[Ratios], Scaled]:
        known = _registered.get(name)
        # The same function again is a notebook's cell or a reload, not a clash.
        if known is not None and _identity(known.function) != _identity(function):
            raise ConfigError(f"rule: {name!r} is already registered")
        _registered[name] = Rule(name, source, summary(function), function)
        return function

    return register


def summary(described: object) -> str:
    """Return the first line of a docstring."""
    return first_line(described.__doc__ or "")


def _identity(function: Callable[[Ratios], Scaled]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def find_rule(name: str, known: Mapping[str, Rule] = rules) -> Rule:
    """Return the rule `name` of those known, or of ``MODULE:FUNCTION`` the function, as a rule of this name.

    Raises:
        ConfigError: no rule has this name, or there is no such function, or it is no rule, or changes something
            where the target is the proxy.
    """
    own = ":" in name and name not in known
    found = _own(name) if own else look_up("rule", name, known, other="MODULE:FUNCTION")
    for changed in _changed(found(Ratios())):
        rule = f"must change nothing where every ratio is 1, but does for {changed!r}"
        raise ConfigError(f"rule {name!r}: {rule}")
    return found


def _changed(outcome: Scaled) -> Iterator[str]:
    """Yield what an outcome changes; λ of others than matrices was not tuned."""
    for kind, multipliers in outcome.kinds.items():
        factors = asdict(multipliers)
        if kind != "matrix":
            del factors["weight_decay"]
        if not all(math.isclose(factor, 1) for factor in factors.values()):
            yield kind
    for name in ("residual_multiplier", "one_minus_beta"):
        if not math.isclose(getattr(outcome, name), 1):
            yield name


@cache
def _own(reference: str) -> Rule:
    """Return a user's function as a rule that raises nothing but a ConfigError."""
    function = referenced("rule", reference, Path.cwd())

    def guarded(ratios: Ratios) -> Scaled:
        try:
            outcome = function(ratios)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"failed: {type(error).__name__}: {error}") from error
        if not isinstance(outcome, Scaled):
            raise ConfigError(f"must return what `scaled` does, got {outcome!r}")
        return outcome

    return Rule(reference, reference.partition(":")[0], summary(function), guarded)
