"""What went wrong, in one line: the path of the field, the rule, the value."""

import re
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from widthwise.proxies.validation import ConfigError, Record, first_line, last_line, nearest, one_line


class Inner(Record):
    rate: float = Field(1.0, gt=0, lt=10)
    count: int = Field(1, ge=1)
    form: Literal["round", "square"] = "round"

    @model_validator(mode="after")
    def _consistent(self) -> "Inner":
        if self.count == 13:
            raise ValueError(f"count: must not be unlucky, got {self.count}")
        return self


class Aside(Record):
    depth: int = 1


class Outer(Record):
    name: str
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()
    flag: bool = False
    notes: dict[str, int] = {}
    pair: tuple[int, int] = (0, 0)
    maybe: Inner | None = None
    aside: Aside | None = None


def refusal(fields: Any, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Outer.parse(fields, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_lists_of_json_become_tuples_at_every_depth() -> None:
    outer = Outer.parse({"name": "x", "parts": [{"count": 2}, {"count": 3}], "pair": [1, 2]})
    assert outer == Outer(name="x", parts=(Inner(count=2), Inner(count=3)), pair=(1, 2))


def test_a_whole_number_is_a_number() -> None:
    assert Inner.parse({"rate": 2}).rate == 2.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inner": {"rate": "1"}}, "inner.rate: must be a number, got '1'"),
        ({"inner": {"rate": True}}, "inner.rate: must be a number, got true"),
        ({"inner": {"count": 1.0}}, "inner.count: must be a whole number, got 1.0"),
        ({"inner": {"count": True}}, "inner.count: must be a whole number, got true"),
        ({"name": 3}, "name: must be a string, got 3"),
        ({"name": None}, "name: must be a string, got null"),
        ({"flag": 1}, "flag: must be true or false, got 1"),
        ({"parts": 3}, "parts: must be a list, got 3"),
        ({"notes": []}, "notes: must be an object, got []"),
        ({"inner": 3}, "inner: must be an object, got 3"),
    ],
)
def test_wrong_types(fields: dict[str, Any], message: str) -> None:
    assert refusal({"name": "x", **fields}) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inner": {"rate": 0}}, "inner.rate: must be > 0, got 0"),
        ({"inner": {"rate": 10}}, "inner.rate: must be < 10, got 10"),
        ({"inner": {"rate": float("nan")}}, "inner.rate: must be finite, got nan"),
        ({"inner": {"rate": float("-inf")}}, "inner.rate: must be finite, got -inf"),
        ({"parts": [{}, {"count": 0}]}, "parts.1.count: must be >= 1, got 0"),
        ({"parts": [{"count": 13}]}, "parts.0.count: must not be unlucky, got 13"),
        ({"inner": {"count": 13}}, "inner.count: must not be unlucky, got 13"),
        (
            {"inner": {"form": "rond"}},
            "inner.form: must be 'round' or 'square', got 'rond'; did you mean 'round'?",
        ),
        ({"inner": {"form": 7}}, "inner.form: must be 'round' or 'square', got 7"),
        ({"pair": [1]}, "pair.1: is required"),
        ({"pair": [1, "2"]}, "pair.1: must be a whole number, got '2'"),
    ],
)
def test_impossible_values(fields: dict[str, Any], message: str) -> None:
    assert refusal({"name": "x", **fields}) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nmae": "y"}, "nmae: unknown field; did you mean 'name'?"),
        ({"zzz": 1}, "zzz: unknown field"),
        ({"inner": {"cuont": 2}}, "inner.cuont: unknown field; did you mean 'count'?"),
        ({"parts": [{}, {"cuont": 2}]}, "parts.1.cuont: unknown field; did you mean 'count'?"),
        ({"depth": 2}, "depth: unknown field; did you mean 'aside.depth'?"),
        ({"inner": {"flag": True}}, "inner.flag: unknown field; did you mean 'flag' at the top level?"),
        ({"maybe": {"cuont": 2}}, "maybe.cuont: unknown field; did you mean 'count'?"),
    ],
)
def test_unknown_fields(fields: dict[str, Any], message: str) -> None:
    assert refusal({"name": "x", **fields}) == message


def test_a_missing_field() -> None:
    assert refusal({}) == "name: is required"


def test_a_misspelt_field_goes_before_the_one_that_it_leaves_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        Outer.parse({"nmae": "y"})
    assert str(caught.value) == "nmae: unknown field; did you mean 'name'? (and 1 more)"


def test_what_is_no_object_at_all() -> None:
    assert refusal([1, 2]) == "must be an object, got [1, 2]"


def test_the_first_of_several_and_how_many_more() -> None:
    found = refusal({"name": "x", "flag": "yes", "inner": {"rate": -1, "count": 0}})
    assert found == "inner.rate: must be > 0, got -1 (and 2 more)"


def test_the_place_stands_before_the_path() -> None:
    assert refusal({"name": 3}, where="sweep.toml") == "sweep.toml: name: must be a string, got 3"


def test_a_config_error_is_a_value_error_without_pydantics_traceback() -> None:
    with pytest.raises(ValueError, match=f"^{re.escape('name: is required')}$") as caught:
        Outer.parse({})
    assert caught.value.__suppress_context__


def test_in_python_a_record_refuses_with_pydantics_own_error() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Inner(rate=-1)


def test_nearest_says_nothing_where_nothing_is_near() -> None:
    assert nearest("cosin", ["cosine", "linear"]) == "; did you mean 'cosine'?"
    assert nearest("xyz", ["cosine", "linear"]) == ""


def test_a_long_message_is_shortened_to_a_line() -> None:
    told = RuntimeError("\n  first of all\nthen   this\nthe last\n")
    assert first_line(told) == "first of all"
    assert last_line(told) == "the last"
    assert one_line(told) == "first of all then this the last"
    assert (first_line(""), last_line(""), one_line("")) == ("", "", "")
