"""Which runs a folder's own goes on with."""

import re
from pathlib import Path
from typing import Any

import pytest

from widthwise.proxies import AlphaDecay
from widthwise.proxies.files import write_json
from widthwise.proxies.validation import ConfigError
from widthwise.transfer.run_folder import require_folder

DECAY = AlphaDecay(interval=50).model_dump(mode="json")


def document(**decay: Any) -> dict[str, Any]:
    return {"rule": "fan-sqrt", "model": {"width": 64, "depth": 2}, "module_decay": {**DECAY, **decay}}


def older() -> dict[str, Any]:
    """Return the document of a version that did not know `lag`."""
    found = document()
    del found["module_decay"]["lag"]
    return found


def test_a_run_goes_on_that_was_begun_before_an_option_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", older())
    require_folder(tmp_path, document(), resume=True)


def test_a_run_goes_on_with_its_tokens_wherever_they_lie_and_with_no_others(tmp_path: Path) -> None:
    begun = {**document(), "data": "/a/corpus.bin", "data_fingerprint": "ab"}
    write_json(tmp_path / "plan.json", begun)
    require_folder(tmp_path, {**begun, "data": "/b/corpus.bin"}, resume=True)
    told = f"data: must hold the tokens that the run in {tmp_path} was started with, but differs"
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        require_folder(tmp_path, {**begun, "data_fingerprint": "cd"}, resume=True)


def test_a_run_that_kept_no_fingerprint_must_name_the_same_place(tmp_path: Path) -> None:
    begun = {**document(), "data": "/a/corpus.bin"}
    write_json(tmp_path / "plan.json", begun)
    require_folder(tmp_path, {**begun, "data_fingerprint": "ab"}, resume=True)
    told = f"data: must be as the run in {tmp_path} was started, '/a/corpus.bin', got '/b/corpus.bin'"
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}$"):
        require_folder(tmp_path, {**begun, "data": "/b/corpus.bin", "data_fingerprint": "ab"}, resume=True)


@pytest.mark.parametrize(
    ("stored", "asked", "field", "was", "now"),
    [
        (older(), document(lag=5), "module_decay.lag", None, 5),
        (document(lag=5), document(), "module_decay.lag", 5, None),
        (document(lag=5), older(), "module_decay.lag", 5, None),
        (document(), document(interval=20), "module_decay.interval", 50, 20),
        (document(), {**document(), "module_decay": None, "rule": "sp"}, "rule", "'fan-sqrt'", "'sp'"),
        (document(), {**document(), "module_decay": None}, "module_decay", "'alpha'", "'none'"),
        # What a user asks for by an option of its own is named before what follows from it.
        (document(), {**document(lag=5), "model": {"width": 128, "depth": 2}}, "width", 64, 128),
    ],
)
def test_the_field_is_named_in_which_a_run_differs(
    tmp_path: Path, stored: dict[str, Any], asked: dict[str, Any], field: str, was: object, now: object
) -> None:
    write_json(tmp_path / "plan.json", stored)
    rule = f"{field}: must be as the run in {tmp_path} was started, {was}, got {now}"
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
        require_folder(tmp_path, asked, resume=True)
