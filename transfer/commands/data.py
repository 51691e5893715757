"""``widthwise data``: text or token files into shards."""

import json
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Data:
    """Turn text or token files into training and validation shards."""

    files: Positional[tuple[Path, ...]]
    """Text files (bytes become tokens) or .bin shards."""
    out: Path
    """Folder for train_000000.bin … and val_000000.bin."""
    validation_fraction: float = 0.05
    """Share of the tokens, at the end, that is kept for validation."""
    shard_tokens: int = 100_000_000
    """Tokens per shard."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Write the shards and name them."""
        from widthwise.proxies.shards import write_shards

        paths = write_shards(
            self.files, self.out, shard_tokens=self.shard_tokens, validation_fraction=self.validation_fraction
        )
        if self.json:
            print(json.dumps({"shards": [str(path) for path in paths]}))
        else:
            print("\n".join(str(path) for path in paths))
        return 0
