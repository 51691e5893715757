"""``widthwise data``: text or token files into shards."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from widthwise.transfer.commands.options import Flag


@dataclass(frozen=True, kw_only=True)
class Data:
    """Turn text or token files into training and validation shards."""

    files: Positional[Annotated[tuple[Path, ...], tyro.conf.arg(help_behavior_hint="")]]
    """Text files (bytes become tokens) or .bin shards."""
    out: Path
    """Folder for train_000000.bin … and val_000000.bin."""
    validation_fraction: float = 0.05
    """Share of the tokens, at the end, that is kept for validation."""
    shard_tokens: int = 100_000_000
    """Tokens per shard."""
    json: Flag = False
    """Print one JSON document."""

    def run(self) -> int:
        """Write the shards and name them."""
        from widthwise.proxies.shards import write_shards

        paths = write_shards(
            self.files, self.out, shard_tokens=self.shard_tokens, validation_fraction=self.validation_fraction
        )
        for line in _short(paths):
            print(f"widthwise: {line}", file=sys.stderr)
        if self.json:
            print(json.dumps({"shards": [str(path) for path in paths]}))
        else:
            print("\n".join(str(path) for path in paths))
        return 0


def _short(paths: Sequence[Path]) -> Iterator[str]:
    """Yield a line for each split that a model of the usual context cannot take a sequence from."""
    from widthwise.proxies.config import GPTConfig
    from widthwise.proxies.shards import read_tokens

    context = GPTConfig().context
    for name, split in (("train", "training"), ("val", "validation")):
        longest = max((len(read_tokens(path)) for path in paths if path.name.startswith(name)), default=None)
        if longest is not None and longest <= context:
            fits = f"a context of up to {longest - 1} fits, the usual {context} does not"
            yield f"the longest {split} shard holds {longest} tokens: {fits}"
