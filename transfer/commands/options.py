"""Options as the commands share them."""

from typing import Annotated, TypeVar

import tyro

T = TypeVar("T")

Option = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""An option that may be left out: its own help says what holds then, in place of tyro's ``default: None``."""
