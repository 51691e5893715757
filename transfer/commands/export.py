"""``widthwise export``: a plan as another trainer reads it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.commands.options import Flag, Option
from widthwise.transfer.commands.target import Target


@dataclass(frozen=True, kw_only=True)
class Export(Target):
    """Write a plan for another trainer: torchtitan, Megatron-LM, Hugging Face's Trainer, nanoGPT, JSON."""

    to: Literal["torchtitan", "megatron", "hf", "nanogpt", "json"]
    """The trainer."""
    out: Option[Path] = None
    """File to write; standard output if not given."""
    strict: Flag = False
    """Refuse where the trainer's options cannot say all of the plan."""

    def run(self) -> int:
        """Write the file; what it cannot say stands in it, and on standard error where the file is elsewhere."""
        from widthwise.proxies.files import write_atomic
        from widthwise.transfer.exporting import export

        found = export(self.plan(), self.to)
        if self.strict and found.missing:
            more = f" (and {len(found.missing) - 1} more)" if len(found.missing) > 1 else ""
            raise ConfigError(f"to: {self.to} cannot say: {found.missing[0]}{more}")
        if self.out is None:
            print(found.text, end="")
            if found.missing:
                print(f"widthwise: not expressed: {len(found.missing)}, see the file's head", file=sys.stderr)
            return 0
        try:
            write_atomic(self.out, found.text)
        except OSError as error:
            raise ConfigError(f"out: {self.out} cannot be written ({error.strerror})") from None
        for line in found.missing:
            print(f"widthwise: not expressed: {line}", file=sys.stderr)
        return 0
