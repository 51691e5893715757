"""What a target run is to be watched by, decided before it begins, and what of it is not watched."""

from widthwise.proxies.validation import ConfigError
from widthwise.transfer.launch_options import LaunchOptions
from widthwise.transfer.plan import Plan
from widthwise.transfer.watching.alarms import watch_of
from widthwise.transfer.watching.records import Watch

NO_BANDS = "the recipe has no bands; a sweep measures them with three seeds or more"


def watch_for(plan: Plan, options: LaunchOptions, fingerprint: str) -> Watch | None:
    """Return what the run is compared with, or None: bands are those of our GPT, and not of other models."""
    if options.unwatched or options.model is not None:
        return None
    tuned_on = (plan.recipe.provenance or {}).get("data_fingerprint")
    watch = watch_of(
        plan,
        evaluations=options.evaluations,
        same_data=fingerprint == tuned_on,
        even=options.module_decay is None,
    )
    if options.abort_on == "alarm" and (watch is None or not watch.bands):
        why = NO_BANDS if watch is None else watch.left_out[0]
        raise ConfigError(f"abort_on: must not be 'alarm' where nothing is watched: {why}")
    return watch


def left_out(watch: Watch | None, options: LaunchOptions) -> list[str]:
    """Return what the run is not compared with, a line each, unless the user asked for just that."""
    if watch is not None:
        return [f"watched against its proxies; {line}" for line in watch.left_out]
    return [] if options.unwatched or options.model is not None else [f"not watched: {NO_BANDS}"]
