"""Validated, frozen records, and their errors in one line: the field, the rule, the value.

Pydantic does the validation; this module says what went wrong the way the command line prints it,
for example ``hyperparameters.weight_decay: must be >= 0, got -0.1``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")


class ConfigError(ValueError):
    """A user's mistake: the message names the field, the rule and the value in one line."""


class RunError(RuntimeError):
    """A run that failed through no mistake in its input; the message says in one line why and what to do."""


class DiskFull(RunError):
    """A file that the disk had no room for; what was there before it stays."""


class Record(BaseModel):
    """A frozen, keyword-only record that refuses unknown fields, wrong types, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate a mapping that was read from JSON or TOML.

        Args:
            value: the fields; lists stand for tuples, as in JSON.
            where: put before the field's path in the message, for example a file's name.

        Raises:
            ConfigError: naming the first offending field, its rule and its value.
        """
        try:
            return cls.model_validate(_tuples(value))
        except ValidationError as error:
            raise ConfigError(explain(error, cls, where)) from None


def explain(error: ValidationError, model: type[BaseModel], where: str = "") -> str:
    """Say the first of a ValidationError's complaints in one line, and how many more there are."""
    # A default that follows from a faulty field is no second complaint.
    complaints = [one for one in error.errors() if one["type"] != "default_factory_not_called"]
    # A misspelt field explains one that is missing.
    unknown = [one for one in complaints if one["type"] == "extra_forbidden"]
    first = unknown[0] if unknown and complaints[0]["type"] == "missing" else complaints[0]
    place = first["loc"]
    if first["type"] == "literal_error" and isinstance(place[-1], int):
        # A word of a list tells where it stands by itself.
        place = place[:-1]
    path = ".".join(map(str, place))
    head = f"{where}: " if where else ""
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    # Our own validators' messages begin with the field's name: it goes on with the path.
    separator = "" if not path else "." if first["type"] == "value_error" else ": "
    return f"{head}{path}{separator}{_complaint(first, model)}{more}"


def first_line(told: object) -> str:
    """Return the first line of an error or a text: torch's messages go on with a stack of C++ calls."""
    return str(told).strip().partition("\n")[0]


def last_line(told: object) -> str:
    """Return the last line of an error or a text: Ray's messages begin with the stack of another process."""
    return str(told).strip().rpartition("\n")[2]


def one_line(told: object) -> str:
    """Return all of an error or a text, its line breaks and runs of blanks made single blanks."""
    return " ".join(str(told).split())


def nearest(word: str, known: list[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word closest to `word`, or nothing."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return names for a message, each as Python writes it: the first ones of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def look_up(field: str, name: str, known: Mapping[str, T], other: str = "") -> T:
    """Return what `known` has for `name`; `other` says what may stand in a name's place.

    Raises:
        ConfigError: nothing; the message names the field, the choices and the nearest one.
    """
    if name not in known:
        choices = ", ".join(known) + (f" or {other}" if other else "")
        raise ConfigError(f"{field}: must be one of {choices}, got {name!r}{nearest(name, list(known))}")
    return known[name]


_BOUNDS = {
    "greater_than_equal": (">=", "ge"),
    "greater_than": (">", "gt"),
    "less_than_equal": ("<=", "le"),
    "less_than": ("<", "lt"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def _complaint(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    value = _as_written(details["input"])
    if kind in _BOUNDS:
        sign, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {sign} {bound if isinstance(bound, int) else format(bound, 'g')}, got {value}"
    if kind in _TYPES:
        return f"must be {_TYPES[kind]}, got {value}"
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        name = str(details["loc"][-1])
        return f"unknown field{_elsewhere(name, model) or nearest(name, _fields(model, details['loc'][:-1]))}"
    if kind == "literal_error":
        choices = context["expected"]
        words = re.findall("'([^']*)'", choices)
        return f"must be {choices}, got {value}{nearest(str(details['input']), words)}"
    if kind == "finite_number":
        return f"must be finite, got {value}"
    if kind == "value_error":
        return str(context["error"])
    return f"{details['msg'][0].lower()}{details['msg'][1:]}, got {value}"


def _as_written(value: Any) -> str:
    """Return a value as JSON and TOML write it, but for the quotes."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return repr(value)


def _elsewhere(name: str, model: type[BaseModel]) -> str:
    """Return ``; did you mean 'section.name'?`` where a field of this name stands elsewhere in a record, or nothing."""
    sections: list[tuple[str, type[BaseModel]]] = [("", model)]
    for head, record in sections:
        for own, field in record.model_fields.items():
            place = f"{head}{field.alias or own}"
            if name == (field.alias or own):
                return f"; did you mean {place!r}{'' if head else ' at the top level'}?"
            # Where several may stand in a list, none is a section.
            if get_origin(field.annotation) in (None, Union, UnionType):
                known = [record for _, record in sections]
                found = (one for one in _records(field.annotation) if one not in known)
                sections.extend((f"{place}.", record) for record in found)
    return ""


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields of the record that stands at `path` below `model`."""
    found = [model]
    for part in path:
        inner = [one.model_fields[part].annotation for one in found if part in one.model_fields]
        # Anything else in a path is a place in a list or the tag of a union: the same records.
        found = [record for annotation in inner for record in _records(annotation)] if inner else found
    return [field.alias or name for one in found for name, field in one.model_fields.items()]


def _records(annotation: Any) -> list[type[BaseModel]]:
    """Return the records that a type names, also within lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for inner in get_args(annotation) for record in _records(inner)]


def _tuples(value: Any) -> Any:
    """Turn JSON's lists into tuples, at every depth: the records hold tuples, and strict mode converts none."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    return value


def difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """Return the path of the first difference between two JSON values that differ, and what stands there in both.

    What one of them lacks is None there.
    """
    if isinstance(was, dict) and isinstance(now, dict):
        inner = next((key for key in {**now, **was} if was.get(key) != now.get(key)), None)
        if inner is not None:
            return difference(f"{name}.{inner}".removeprefix("."), was.get(inner), now.get(inner))
    return name, was, now
