"""The records of bands: in a recipe's evidence, and carried to a target in its folder; they import nothing heavy."""

from typing import Literal

from pydantic import Field

from widthwise.proxies.config import Kind
from widthwise.proxies.validation import Record

SCHEMA: Literal["widthwise/bands/1"] = "widthwise/bands/1"
Place = Kind | Literal["run"]
"""A parameter kind, or the whole run."""


class Band(Record):
    """One quantity over the evaluations: geometric mean, least and largest over the seeds; null where unknown."""

    centre: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


class Bands(Record):
    """What a recipe's runs measured, ``evidence.bands`` of the recipe.

    Attributes:
        seeds: runs.
        fractions: the evaluations, as shares of the run's steps.
        run: of the whole model: ``loss`` (validation, nats per token) and ``gradient_norm`` (before clipping).
        kinds: by kind, `RECORDED`, as `widthwise.proxies.outcome.KindDiagnostics` defines them.
    """

    seeds: int
    fractions: tuple[float, ...]
    run: dict[str, Band]
    kinds: dict[Kind, dict[str, Band]]


class Carried(Band):
    """A band at the target's evaluations, in the target's own values, its tolerance included.

    ``low`` is null where a value below is no alarm, all where the evaluation is not judged.
    """

    quantity: str
    kind: Place


class Suspicion(Record):
    """Something that may be wrong with the matrices, and what it would do to them.

    Attributes:
        cause, advice: in plain words.
        rms, update_ratio: factors on what the plan says, by evaluation.
    """

    cause: str
    advice: str
    rms: tuple[float, ...]
    update_ratio: tuple[float, ...]


class Watch(Record):
    """What a target run is compared with; ``bands.json`` of its folder.

    Attributes:
        schema_: the file's format, ``"schema"`` in JSON.
        steps: after which the target is evaluated.
        bands: by quantity and kind.
        left_out: what is not judged, and why, a line each.
        suspicions: about the matrices.
        rate, time: cause and advice from the plan alone, where its η does not fall with the width, or its Σηλ is
            too small for the decay to act; the first is taken before all suspicions, the second after them.
    """

    schema_: Literal["widthwise/bands/1"] = Field(SCHEMA, alias="schema")
    steps: tuple[int, ...]
    bands: tuple[Carried, ...]
    left_out: tuple[str, ...] = ()
    suspicions: tuple[Suspicion, ...] = ()
    rate: tuple[str, str] | None = None
    time: tuple[str, str] | None = None

    def expected(self, quantity: str, kind: Place, place: int) -> float | None:
        """Return the centre of a band at an evaluation, or None where it is not judged."""
        found = [one for one in self.bands if (one.quantity, one.kind) == (quantity, kind)]
        return found[0].centre[place] if found else None
