"""Public names that import their module on first use, so that the calculator never pays for torch or ray."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def exported(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return a module-level ``__getattr__`` and ``__dir__`` for `package`.

    Args:
        package: its ``__name__``.
        modules: module → the public names that live in it, separated by blanks.
    """
    home = {name: module for module, names in modules.items() for name in names.split()}

    def attribute(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)  # from now on Python finds it by itself
        return value

    def directory() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home})

    return attribute, directory
