"""What a check compares; imports nothing heavy, so that a mistake in it is told at once."""

from pydantic import Field, model_validator

from widthwise.proxies.config import Seed
from widthwise.proxies.validation import Record


class CheckOptions(Record):
    """What a check compares, and how closely.

    Attributes:
        widths: three or more, the recipe's own among them; None takes that one, twice and four times it.
        seeds: runs of every setting; three at least for a verdict other than inconclusive.
        seed: the first of them.
        rule: the scaling rule to check; None is the recipe's own, or the default.
        tokens: that every run lasts; None is the recipe's horizon.
        data: ``python``, a text file, a ``.bin`` shard or a folder of them.
        lr_octaves: log₂ steps between the values of η that are tried.
        decay_octaves: likewise of λ.
        points: how many values of each to begin with, an odd number.
        validation_batches: of every evaluation.
        full: whether to train all of it even where the verdict stands already, by the horizon too.
    """

    widths: tuple[int, ...] | None = None
    seeds: int = Field(3, ge=1)
    seed: Seed = 0
    rule: str | None = None
    tokens: int | None = None
    data: str = "python"
    lr_octaves: float = Field(1.0, gt=0)
    decay_octaves: float = Field(1.0, gt=0)
    points: int = Field(5, ge=3)
    validation_batches: int = Field(16, ge=1)
    full: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> "CheckOptions":
        if self.widths is not None and len(set(self.widths)) < 3:
            raise ValueError(f"widths: must be three different ones or more, got {list(self.widths)}")
        if self.points % 2 == 0:
            raise ValueError(f"points: must be odd, the rule's own value in the middle, got {self.points}")
        return self
