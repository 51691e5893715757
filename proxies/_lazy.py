"""Public names that import their module on first use, so that the calculator never pays for torch or ray."""

from collections.abc import Callable, Mapping
from importlib import import_module


def exported(package: str, home: Mapping[str, str]) -> Callable[[str], object]:
    """Return a module-level ``__getattr__`` for `package`: `home` maps a public name to its module."""

    def attribute(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return attribute
