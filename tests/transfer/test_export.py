"""Plans for other trainers: read back by the trainer's own parser, or as it documents its options."""

import json
import re
import shlex
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.schedule import schedule
from widthwise.transfer import Plan, Recipe, cli
from widthwise.transfer.exporting import TRAINERS, export

# Everything is other than its default, and AdamW can say all of it.
TUNED = Hyperparameters(
    lr=0.02, weight_decay=0.4, betas=(0.8, 0.9), eps=1e-9, decay="l2", corrected=False, clip_norm=0.5
)
PROXY = GPTConfig(width=64, depth=2, head_dim=32, context=128, group_size=2, norm_gain=True, readout_std=1.0)


def plan_of(
    schedule: Any = "cosine",
    rule: str = "fan-sqrt",
    final: float = 0.1,
    width: int = 256,
    model: Any = None,
    **tuned: Any,
) -> Plan:
    proxy = GPTConfig.parse(PROXY.model_dump() | (model or {}))
    horizon = Horizon(
        batch_tokens=1024, tokens=102_400, schedule=schedule, final_fraction=final, decay_fraction=0.3
    )
    hyperparameters = Hyperparameters.parse(TUNED.model_dump() | tuned)
    recipe = Recipe(hyperparameters=hyperparameters, proxy=proxy, horizon=horizon)
    return recipe.at(width=width, rule=rule)


@dataclass
class ParamGroupConfig:
    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class TrainingConfig:
    local_batch_size: int = 8
    global_batch_size: int = -1
    seq_len: int = 2048
    max_norm: float = 1.0
    steps: int = 10000


class OptimizersContainer:
    @dataclass
    class Config:
        """As there."""

        param_groups: list[ParamGroupConfig] = field(default_factory=list)


class LRSchedulersContainer:
    @dataclass
    class Config:
        """As there."""

        warmup_steps: int = 200
        total_steps: int | None = None
        decay_ratio: float | None = None
        decay_type: str = "linear"
        min_lr_factor: float = 0.0


@pytest.fixture
def _torchtitan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the classes of torchtitan 0.3.0 that an export names, with their fields, their home."""
    optimizer = types.ModuleType("torchtitan.components.optimizer")
    vars(optimizer).update(
        {c.__name__: c for c in (ParamGroupConfig, OptimizersContainer, LRSchedulersContainer)}
    )
    config = types.ModuleType("torchtitan.config")
    vars(config)["TrainingConfig"] = TrainingConfig
    homes = {"torchtitan": types.ModuleType("torchtitan")}
    homes |= {"torchtitan.components": types.ModuleType("torchtitan.components")}
    for module in (optimizer, config):
        homes[module.__name__] = module
    for name, module in homes.items():
        monkeypatch.setitem(sys.modules, name, module)


NAMES = {
    "tok_embeddings.weight": "embedding",
    "layers.0.attention.qkv_linear.wq.weight": "matrix",
    "layers.0.attention.q_norm.weight": "gain",
    "layers.0.attention_norm.weight": "gain",
    "layers.0.feed_forward.w1.weight": "matrix",
    "layers.0.ffn_norm.weight": "gain",
    "norm.weight": "gain",
    "lm_head.weight": "readout",
}


@pytest.mark.usefixtures("_torchtitan")
def test_torchtitan_gives_every_parameter_its_kinds_values() -> None:
    plan = plan_of("wsd")
    found: dict[str, Any] = {}
    exec(export(plan, "torchtitan").text, found)
    groups = found["optimizer"].param_groups
    claimed = set()
    for name, kind in NAMES.items():
        first = next(group for group in groups if re.search(group.pattern, name))
        claimed.add(first.pattern)
        settings = plan.settings(kind)  # type: ignore[arg-type]
        assert first.optimizer_name == "AdamW"
        assert first.optimizer_kwargs == {**settings.model_dump(), "betas": (0.8, 0.9)}
        torch.optim.AdamW([nn.Parameter(torch.ones(2))], **first.optimizer_kwargs)
    assert claimed == {group.pattern for group in groups}  # torchtitan refuses a pattern without a match
    expected = {"warmup_steps": 10, "decay_ratio": 0.3, "decay_type": "linear", "min_lr_factor": 0.1}
    assert vars(found["lr_scheduler"]) == {"total_steps": None, **expected}
    training = {"global_batch_size": 8, "seq_len": 128, "steps": 100, "max_norm": 0.5}
    assert vars(found["training"]) == {"local_batch_size": 8, **training}


# As megatron/training/arguments.py and the dataclasses it is made of name them.
MEGATRON = {
    *[
        "lr",
        "min-lr",
        "decoupled-lr",
        "decoupled-min-lr",
        "weight-decay",
        "adam-beta1",
        "adam-beta2",
        "adam-eps",
        "clip-grad",
    ],
    *[
        "train-iters",
        "global-batch-size",
        "lr-decay-iters",
        "lr-warmup-iters",
        "lr-decay-style",
        "lr-wsd-decay-style",
    ],
    *[
        "lr-wsd-decay-iters",
        "seq-length",
        "max-position-embeddings",
        "hidden-size",
        "num-layers",
        "num-attention-heads",
    ],
    *[
        "kv-channels",
        "ffn-hidden-size",
        "position-embedding-type",
        "normalization",
        "qk-layernorm",
        "swiglu",
        "squared-relu",
    ],
    *[
        "untie-embeddings-and-output-weights",
        "disable-bias-linear",
        "group-query-attention",
        "num-query-groups",
    ],
    *["use-mup", "mup-base-hidden-size", "mup-output-mult"],
}


def arguments(text: str) -> dict[str, str]:
    """Return the options of a file, read as the shell reads ``$(grep -v '^#' FILE)``."""
    words = shlex.split("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found: dict[str, str] = {}
    for word in words:
        if word.startswith("--"):
            found[word[2:]] = ""
        else:
            found[next(reversed(found))] = word
    return found


def test_megatron_says_a_mup_plan_in_its_own_options() -> None:
    plan = plan_of("wsd")
    found = arguments(export(plan, "megatron").text)
    assert found.keys() <= MEGATRON
    ratio = int(found["hidden-size"]) / int(found["mup-base-hidden-size"])
    # Megatron: hidden matrices train with lr / ratio, embedding and output layer with decoupled-lr.
    assert float(found["lr"]) / ratio == pytest.approx(plan.kinds["matrix"].lr)
    assert float(found["lr"]) == plan.kinds["gain"].lr
    assert float(found["decoupled-lr"]) == plan.kinds["embedding"].lr == plan.kinds["readout"].lr
    assert float(found["weight-decay"]) == plan.kinds["matrix"].weight_decay
    assert float(found["mup-output-mult"]) == plan.kinds["readout"].multipliers.forward
    assert (found["lr-decay-style"], found["lr-wsd-decay-style"]) == ("WSD", "linear")
    assert (found["lr-wsd-decay-iters"], found["lr-warmup-iters"], found["train-iters"]) == (
        "30",
        "10",
        "100",
    )
    assert (found["num-attention-heads"], found["num-query-groups"], found["kv-channels"]) == ("8", "4", "32")
    assert float(found["min-lr"]) == pytest.approx(0.002)
    assert found["clip-grad"] == "0.5"


def test_megatron_without_mup() -> None:
    found = arguments(export(plan_of(rule="sp"), "megatron").text)
    assert found.keys() <= MEGATRON
    assert not [name for name in found if name.startswith("mup") or name == "use-mup"]
    assert (found["lr"], found["decoupled-lr"]) == ("0.02", "0.02")


# As train.py names them, and below the line as the fork adds them.
NANOGPT = {
    *[
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "bias",
        "batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
    ],
    *[
        "weight_decay",
        "beta1",
        "beta2",
        "grad_clip",
        "decay_lr",
        "max_iters",
        "lr_decay_iters",
        "warmup_iters",
        "min_lr",
    ],
}
NANOGPT_MUP = {"mup_enabled", "mup_width_multiplier"}


@pytest.mark.parametrize(("rule", "names"), [("fan-sqrt", NANOGPT | NANOGPT_MUP), ("sp", NANOGPT)])
def test_nanogpt_reads_its_own_names(rule: str, names: set[str]) -> None:
    plan, found = plan_of(rule=rule), {}
    exec(export(plan, "nanogpt").text, {}, found)
    assert found.keys() == names
    hidden = found["learning_rate"] / found.get("mup_width_multiplier", 1.0)
    assert hidden == pytest.approx(plan.kinds["matrix"].lr)
    assert found["learning_rate"] == plan.kinds["embedding"].lr
    assert found["weight_decay"] == plan.kinds["matrix"].weight_decay
    assert (found["n_embd"], found["n_head"], found["max_iters"], found["min_lr"]) == (256, 8, 100, 0.002)


@pytest.mark.usefixtures("hugging_face")
@pytest.mark.parametrize(
    ("kind", "final"), [("cosine", 0.0), ("cosine", 0.1), ("linear", 0.0), ("linear", 0.1), ("wsd", 0.1)]
)
def test_transformers_reads_the_arguments_and_makes_the_schedule(kind: str, final: float) -> None:
    from transformers import HfArgumentParser
    from transformers.optimization import get_scheduler
    from transformers.training_args import TrainingArguments

    plan = plan_of(kind, rule="sp", final=final)
    exported = export(plan, "hf")
    written = yaml.safe_load(exported.text)
    words = [
        word
        for name, value in written.items()
        for word in (f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value))
    ]
    found = HfArgumentParser(TrainingArguments).parse_args(words)
    assert found.learning_rate == plan.kinds["matrix"].lr
    assert (found.weight_decay, found.adam_epsilon) == (plan.kinds["matrix"].weight_decay, 1e-9)
    assert (found.adam_beta1, found.adam_beta2, found.max_grad_norm) == (0.8, 0.9, 0.5)
    assert (found.max_steps, found.warmup_steps, found.gradient_accumulation_steps) == (100, 10, 8)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(
        found.lr_scheduler_type,
        optimizer,
        num_warmup_steps=10,
        num_training_steps=100,
        scheduler_specific_kwargs=written.get("lr_scheduler_kwargs"),
    )
    told = [line for line in exported.missing if line.startswith("schedule")]
    assert bool(told) == (kind == "linear" and final > 0)
    for step in range(100):
        # In the warm-up, they count steps done, from 0, and we those being done.
        if step > 10 and not told:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(schedule(plan.horizon, step))
        optimizer.step()
        theirs.step()


def test_json_is_the_plan() -> None:
    plan = plan_of()
    assert json.loads(export(plan, "json").text) == json.loads(json.dumps(plan.document()))


HUBER = (
    "decay huber with c = 2, threshold mean: AdamW decays by the whole weight, for which this λ was not tuned"
)
CORRECTED = "AdamC's correction: the matrices' decay times η_t/η_max"
# The proxy's matrices have 1/√fan_in; fan-sqrt halves them at 4 times the width, as fan_in does.
STDS = "initial standard deviations: matrix 1/√fan_in (0.0625 from the width), embedding 1, readout 1"


@pytest.mark.parametrize("trainer", [name for name in TRAINERS if name != "json"])
def test_what_a_trainer_cannot_say_stands_in_the_file(trainer: str) -> None:
    missing = export(plan_of(decay="huber", huber_c=2.0, corrected=True), trainer).missing
    text = export(plan_of(decay="huber", huber_c=2.0, corrected=True), trainer).text
    assert {HUBER, CORRECTED, STDS} < set(missing)
    assert [line for line in text.splitlines() if line.startswith("# NOT EXPRESSED: ")] == [
        f"# NOT EXPRESSED: {line}" for line in missing
    ]
    assert ("logits times 0.25" in missing) == (trainer in ("torchtitan", "hf"))
    apart = "weight_decay of the embedding parameters: 0, where the trainer takes 0.8"
    assert (apart in missing) == (trainer != "torchtitan")


@pytest.mark.parametrize(
    ("trainer", "rule", "expected"),
    [
        ("torchtitan", "fan-sqrt", "0.1768 (1/√head_dim)"),
        ("hf", "fan-sqrt", "0.1768 (1/√head_dim)"),
        ("megatron", "fan-sqrt", "0.03125 (1/head_dim)"),
        ("megatron", "sp", "0.1768 (1/√head_dim)"),
        ("nanogpt", "fan-sqrt", "0.03125 (1/head_dim)"),
        ("nanogpt", "sp", "0.1768 (1/√head_dim)"),
    ],
)
def test_another_attention_is_named(trainer: str, rule: str, expected: str) -> None:
    line = f"attention: q·k times 0.125 (4/head_dim), where the trainer's models take {expected}"
    assert line in export(plan_of(rule=rule), trainer).missing
    same = PROXY.head_dim**0.5 if "√" in expected else 1.0
    missing = export(plan_of(rule=rule, model={"attention_multiplier": same}), trainer).missing
    assert not [line for line in missing if line.startswith("attention")]


def test_a_plan_that_a_trainer_can_say_lacks_nothing() -> None:
    same = plan_of(rule="sp", width=64, model={"attention_multiplier": PROXY.head_dim**0.5})
    assert export(same, "torchtitan").missing == ()


@pytest.mark.parametrize("rule", ["fan-sqrt", "sp"])
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            {"norm_gain": False},
            "mlp swiglu, 3 times the width (gelu, 4 times), rmsnorm (layernorm), norms without a gain (with one), "
            "rotary positions (learned ones), qk_norm (none), 2 query heads per key-value head (1), "
            "an untied readout (a tied one)",
        ),
        (
            {"mlp": "gelu", "mlp_ratio": 4, "norm": "layernorm", "qk_norm": False, "group_size": 1},
            "rotary positions (learned ones), an untied readout (a tied one)",
        ),
    ],
)
def test_nanogpt_says_which_shape_it_does_not_have(rule: str, model: dict[str, Any], told: str) -> None:
    line = f"the model's shape, with the trainer's in brackets: {told}"
    assert line in export(plan_of(rule=rule, model=model), "nanogpt").missing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--to megatron --rule qiu-compute-optimal",
            "to: megatron has options for one η for embedding and readout; rule 'qiu-compute-optimal' asks for "
            "something else",
        ),
        (
            "--to nanogpt --rule qiu-compute-optimal",
            "to: nanogpt has one η for all, or one for matrices divided by the ratio of widths; "
            "rule 'qiu-compute-optimal' asks for something else",
        ),
        ("--to torchtitan --strict", "to: torchtitan cannot say: logits times 0.25 (and 2 more)"),
        (
            "--to torchtitn",
            "to: must be one of torchtitan, megatron, hf, nanogpt, json, got 'torchtitn'; {near}",
        ),
        ("", "to: is required"),
        ("--to json --out missing/plan", "out: missing/plan cannot be written (No such file or directory)"),
        ("--to json --width 100", "width: must be a multiple of head_dim * group_size = 64, got 100"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    plan_of().recipe.save("recipe.json")
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "recipe.json", "--width", "256", *options.split()])
    told = message.format(near="did you mean 'torchtitan'?")
    assert (stop.value.code, capsys.readouterr()) == (2, ("", f"widthwise: error: {told}\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_the_command_writes_the_file_and_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of()
    plan.recipe.save(tmp_path / "recipe.json")
    command = ["export", str(tmp_path / "recipe.json"), "--width", "256", "--to", "nanogpt"]
    expected = export(plan, "nanogpt")
    lines = "".join(f"widthwise: not expressed: {line}\n" for line in expected.missing)
    count = f"widthwise: not expressed: {len(expected.missing)}, see the file's head\n"
    to_file = ["--out", str(tmp_path / "config.py")]
    for out, printed in (([], (expected.text, count)), (to_file, ("", lines))):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *out])
        assert (stop.value.code, capsys.readouterr()) == (0, printed)
    assert (tmp_path / "config.py").read_text() == expected.text
