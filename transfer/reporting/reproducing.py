"""The report's last words: the commands that make again what it shows, from what the files say."""

import shlex
from collections.abc import Mapping

from widthwise.transfer.reporting.checks import same_settings
from widthwise.transfer.reporting.markup import Html, tag
from widthwise.transfer.reporting.reading import CheckFolder, Contents, RunFolder, SweepFolder
from widthwise.transfer.sweep_files import as_options, as_toml


def commands(contents: Contents) -> list[Html]:
    """Return the commands as lines to copy, made from what the files say."""
    lines = [_sweep_command(sweep) for sweep in contents.sweeps]
    lines += [_check_command(check, contents.sweeps) for check in contents.checks]
    lines += [_launch_command(run, contents.sweeps) for run in contents.runs]
    places: list[SweepFolder | RunFolder | CheckFolder] = [*contents.sweeps, *contents.runs, *contents.checks]
    one = [place.name for place in places if place.folder == contents.folder]
    lines.append(shlex.join(["widthwise", "report", *(one[:1] or ["."])]))
    text = "In an empty folder; what the files do not record is left at its default."
    return [tag("p", text), tag("pre", "\n".join(lines))]


def _sweep_command(sweep: SweepFolder) -> str:
    """Return the command, after the ``config.toml`` that it needs where the options alone do not suffice."""
    if sweep.config is None:
        return _guessed_command(sweep)
    file, given = as_toml(sweep.config), {**as_options(sweep.config), "out": sweep.name}
    if not file:
        return _command("sweep", given)
    return f"cat > config.toml <<'END'\n{file}END\n" + _command("sweep", {"config": "config.toml", **given})


def _guessed_command(sweep: SweepFolder) -> str:
    """Return the command as far as the trials and a recipe without the sweep's configuration tell it."""
    recipe = sweep.recipe
    first = sweep.proposals[0] if sweep.proposals else None
    options: dict[str, object] = {"width": first and first.width, "trials": len(sweep.proposals)}
    if sweep.evidence.finalists:
        options["finalists"] = sum(not finalist.fitted for finalist in sweep.evidence.finalists)
        options["seeds"] = max(len(finalist.losses) for finalist in sweep.evidence.finalists)
    if recipe:
        options["data"] = (recipe.provenance or {}).get("data")
        shape = ("width", "depth", "head_dim", "context", "vocab_size")
        options |= {name: getattr(recipe.proxy, name) for name in shape}
        options |= {name: getattr(recipe.horizon, name) for name in ("tokens", "batch_tokens")}
    if first:
        options["seed"] = first.seed
    return _command("sweep", {**options, "out": sweep.name})


def _check_command(check: CheckFolder, sweeps: list[SweepFolder]) -> str:
    origins = [sweep.name for sweep in sweeps if sweep.recipe and same_settings(check.recipe, sweep.recipe)]
    options = check.result.options.model_dump(exclude={"validation_batches"})
    # The horizons are told of every width, also where nothing was trained.
    widths = ",".join(map(str, sorted(check.result.horizons)))
    given = {**options, "widths": widths, "rule": check.result.rule, "out": check.name}
    return _command("check", given, "/".join([*origins[:1], "recipe.json"]))


def _launch_command(run: RunFolder, sweeps: list[SweepFolder]) -> str:
    origins = [sweep.name for sweep in sweeps if sweep.recipe and sweep.recipe == run.recipe]
    options: dict[str, object] = {"width": run.width}
    if run.plan:
        options |= {"depth": run.plan.model.depth, "rule": run.plan.rule}
        if run.plan.horizon_rule != "none":
            options["horizon_rule"] = run.plan.horizon_rule
        if run.plan.decay_kinds != ("matrix",):
            options["decay_kinds"] = ",".join(run.plan.decay_kinds) or "none"
        # The horizon as planned, not as far as the run came.
        options |= {name: getattr(run.plan.horizon, name) for name in ("tokens", "batch_tokens")}
        options |= {"data": run.plan.data, "seed": run.plan.seed}
    options["out"] = run.name
    recipe = "/".join([*origins[:1], "recipe.json"])
    return _command("launch", options, recipe)


def _command(name: str, options: Mapping[str, object], *positional: str) -> str:
    words = [word for key, value in options.items() for word in _option(key, value)]
    return shlex.join(["widthwise", name, *positional, *words])


def _option(name: str, value: object) -> list[str]:
    """Return an option's words: of a flag its name where it is set, and none of what is not given."""
    if value is None or value is False:
        return []
    option = f"--{name.replace('_', '-')}"
    return [option] if value is True else [option, str(value)]
