"""A plan as other trainers read it: their own options for what they can say, and a list of what they cannot."""

import json
from collections.abc import Callable

from widthwise.transfer.exporting.export import Export
from widthwise.transfer.exporting.huggingface import hf
from widthwise.transfer.exporting.megatron import megatron
from widthwise.transfer.exporting.nanogpt import nanogpt
from widthwise.transfer.exporting.torchtitan import torchtitan
from widthwise.transfer.plan import Plan

__all__ = ["TRAINERS", "Export", "export"]


def _json(plan: Plan) -> Export:
    return Export(text=json.dumps(plan.document(), indent=2, ensure_ascii=False) + "\n", missing=())


TRAINERS: dict[str, Callable[[Plan], Export]] = {
    "torchtitan": torchtitan,
    "megatron": megatron,
    "hf": hf,
    "nanogpt": nanogpt,
    "json": _json,
}
"""Name → what writes a plan for that trainer."""


def export(plan: Plan, trainer: str) -> Export:
    """Return a plan as `trainer`, one of `TRAINERS`, reads it.

    Raises:
        ConfigError: the trainer has no options for what the plan's rule does to learning rates.
    """
    return TRAINERS[trainer](plan)
