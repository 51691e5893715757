"""``widthwise check``: train proxies at several widths and say whether a recipe's transfer holds."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from widthwise.proxies.validation import ConfigError
from widthwise.search.names import GRID_STUDY
from widthwise.transfer.commands.listing import whole_numbers
from widthwise.transfer.commands.options import Flag, Option, storage_of
from widthwise.transfer.commands.sources import recipe_file, source_for
from widthwise.transfer.commands.stopping import resumable, same_command

if TYPE_CHECKING:
    from widthwise.transfer.checking.options import CheckOptions
    from widthwise.transfer.checking.running import CheckResult
    from widthwise.transfer.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Check:
    """Train proxies at several widths; says whether the transfer holds, fails or is inconclusive, and why."""

    recipe: Positional[Path]
    """Recipe file, as `widthwise sweep` writes it, or the sweep's folder."""
    widths: Option[str] = None
    """Three widths or more, separated by commas, the recipe's among them. (default: that one, 2 and 4 times it)"""
    seeds: int = 3
    """Runs of every setting; fewer than three are never enough."""
    seed: int = 0
    """The first seed."""
    rule: Option[str] = None
    """Scaling rule to check, as for `widthwise scale`."""
    tokens: Option[int] = None
    """Tokens of every run; the recipe's if not given."""
    lr_octaves: float = 1.0
    """Steps between the values of η that are tried, as log2."""
    decay_octaves: float = 1.0
    """Steps between the values of λ that are tried, as log2."""
    points: int = 5
    """Values of each to begin with, an odd number; lines are extended where the lowest loss is at an end."""
    data: Option[str] = None
    """'python', a text file, a .bin shard or a folder of them; if not given, what the recipe was tuned on, or
    'python' where that is unknown or gone."""
    out: Path = Path("widthwise-check")
    """Folder for check.json and the runs' records."""
    storage: Option[str] = None
    """Database for the study: postgresql+psycopg://USER@HOST/DATABASE. (default: an SQLite file in the folder)"""
    study_name: Option[str] = None
    """The study's name in the database. (default: the folder's and eight random digits)"""
    address: Option[str] = None
    """Ray cluster, host:port or auto. (default: a local Ray)"""
    concurrency: Option[int] = None
    """Runs at a time. (default: one per core, or per GPU)"""
    gpus_per_trial: Option[float] = None
    """Share of a GPU per run. (default: 1 where there is a GPU)"""
    resume: Flag = False
    """Go on with the check in the folder; also with more seeds, other widths or more values."""
    full: Flag = False
    """Train everything, for all the numbers, even where the verdict stands already, by the horizon too."""
    calibrate: Flag = False
    """Write the exponent of λ that the measured loss supports into the recipe, as its own rule `calibrated`."""
    output: Option[Path] = None
    """Where --calibrate writes; RECIPE itself if not given."""
    strict: Flag = False
    """Exit with status 1 unless the transfer holds."""
    quiet: Flag = False
    """Print nothing but the verdict and errors."""
    json: Flag = False
    """Print check.json's document."""

    def run(self) -> int:
        """Check, print what was found, and calibrate where asked to."""
        with resumable([self.out / name for name in GRID_STUDY], lambda: same_command(self.out)):
            result = self._checked()
        self._print(result)
        if self.calibrate:
            self._calibrate(result)
        return 1 if self.strict and result.verdict.outcome != "holds" else 0

    def _checked(self) -> "CheckResult":
        from widthwise.transfer.recipe import Recipe

        if self.output is not None and not self.calibrate:
            raise ConfigError("output: needs --calibrate")
        # Before the check: it takes hours.
        if self.calibrate and self._calibrated.is_dir():
            raise ConfigError(f"output: {self._calibrated} is a folder, must be a file")
        if self.calibrate and not os.access(self._calibrated.parent, os.W_OK):
            raise ConfigError(f"output: {self._calibrated} cannot be written: no such folder, or not yours")
        recipe = Recipe.load(recipe_file(self.recipe))
        options = self._options(recipe)
        # Not before, because it takes seconds, and the options may hold mistakes.
        from widthwise.search.executing import Placement
        from widthwise.transfer.checking.calibrating import require_base
        from widthwise.transfer.checking.judging import FEWEST_SEEDS
        from widthwise.transfer.checking.running import check

        if self.calibrate:
            require_base(options.rule)
        if options.seeds < FEWEST_SEEDS:
            said = (
                f"with {options.seeds} seed(s) the transfer can fail, but not hold: that takes {FEWEST_SEEDS}"
            )
            if not self.quiet:
                print(f"widthwise: note: {said} (--seeds, also with --resume)", file=sys.stderr)
        placement = Placement(
            address=self.address, concurrency=self.concurrency, gpus_per_trial=self.gpus_per_trial
        )
        return check(
            recipe,
            self.out,
            options,
            resume=self.resume,
            storage=storage_of(self.storage, self.study_name),
            placement=placement,
            show_progress=not self.quiet,
        )

    @property
    def _calibrated(self) -> Path:
        return self.output or (self.recipe / "recipe.json" if self.recipe.is_dir() else self.recipe)

    def _options(self, recipe: "Recipe") -> "CheckOptions":
        from widthwise.transfer.checking.options import CheckOptions

        names = ("seeds", "seed", "rule", "tokens", "lr_octaves", "decay_octaves", "points", "full")
        given = {name: getattr(self, name) for name in names}
        widths = None if self.widths is None else whole_numbers("widths", self.widths)
        return CheckOptions.parse({**given, "widths": widths, "data": source_for(recipe, self.data)})

    def _print(self, result: "CheckResult") -> None:
        if self.json:
            print(json.dumps(result.as_json()))
            return
        if self.quiet:
            print(result.verdict.sentence)
            return
        from rich.console import Console

        from widthwise.transfer.checking.tables import show

        # A row per width needs up to 120 columns: rather long lines than numbers cut short.
        show(result, Console(width=max(120, Console().width)))
        print(f"files: {self.out / 'check.json'}")

    def _calibrate(self, result: "CheckResult") -> None:
        from widthwise.transfer.checking.calibrating import calibrated

        recipe, path = calibrated(result), self._calibrated
        recipe.save(path)
        assert recipe.rule is not None
        print(f"widthwise: {path} has a rule of its own now: {recipe.rule.basis()}", file=sys.stderr)
