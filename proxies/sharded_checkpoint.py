"""Checkpoints of a run on any number of workers: folders of `torch.distributed.checkpoint`, by name.

``step_000000120/`` holds model and optimizer state, written by all workers in the background, and the first
worker's ``progress.pt``. A half-written one is never picked up: `widthwise.proxies.checkpoint_store` says how. The
folder can be loaded by another number of workers, sharded or not.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from widthwise.proxies.background import Pending, reason, write_failure
from widthwise.proxies.checkpoint import DamagedCheckpoint, Progress, another_model
from widthwise.proxies.checkpoint_store import CheckpointStore, store
from widthwise.proxies.files import is_full
from widthwise.proxies.parallel import lost_peer, require_process_group
from widthwise.proxies.storage import Place
from widthwise.proxies.table import plain_names
from widthwise.proxies.validation import DiskFull, RunError, first_line

_logger = logging.getLogger("widthwise")


class ShardedCheckpoint:
    """The last `keep` checkpoints in a folder; every worker makes one, and calls it at the same steps.

    Random state is saved per worker, and restored on those that there were.
    """

    def __init__(self, folder: Place, *, keep: int, rank: int, workers: int) -> None:
        self._folder, self._keep, self._rank, self._workers = folder, keep, rank, workers
        self._store = store(folder)
        self._group: dist.ProcessGroup | None = None
        self._pending: Pending | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Copy everything and write it in the background, once the one before has been written.

        Raises:
            RunError: that one, or this one's beginning, cannot be written (`DiskFull` where there is no room);
                those before it stay.
        """
        from torch.distributed.checkpoint.state_dict_saver import async_save

        self.finish()
        tensors, numbers = _optimizer_state(model, optimizer)
        name = f"step_{progress['step']:09d}"
        if self._rank == 0:
            with self._complaining():
                self._store.begin(name, {**progress, "optimizer_numbers": numbers})
        # From the background only in a group of its own: training goes on in the others.
        written = async_save(
            {**_prefixed("model", model.state_dict()), **tensors, **self._random_state()},
            storage_writer=self._store.writer(name),
            process_group=self._own_group(),
        )
        self._pending = Pending(written, lambda: self._commit(name) if self._rank == 0 else None)

    def finish(self) -> None:
        """Wait for what is being written; errors as in `save`."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            with self._complaining():
                pending.wait()

    def load(self, model: nn.Module, optimizer: Optimizer, identity: Mapping[str, Any]) -> Progress | None:
        """Load the latest whole one and return its progress, or None where there is none.

        Raises:
            ConfigError: it belongs to another run.
            DamagedCheckpoint: there are some, and none of them can be read: nothing is begun anew without a word.
        """
        if self._rank == 0:
            self._store.discard_unfinished()
        damage = None
        for path in reversed(self._store.present()):
            try:
                progress = self._store.progress(path, identity)
                saved = _contents(self._store, path)
            except DamagedCheckpoint as error:
                _logger.warning("%s; going on from the one before it", error)
                damage = error.__cause__
                continue
            self._load(path, saved, model, optimizer, progress["optimizer_numbers"])
            return progress
        if damage is not None:
            rule = f"checkpoint: none in {self._folder} can be read ({first_line(damage)})"
            raise DamagedCheckpoint(f"{rule}; remove them to start anew") from damage
        return None

    def _load(
        self,
        path: Place,
        saved: Mapping[str, Any],
        model: nn.Module,
        optimizer: Optimizer,
        numbers: Mapping[str, Mapping[str, Any]],
    ) -> None:
        from torch.distributed.checkpoint.state_dict_loader import load

        weights = model.state_dict()
        sizes = {name: found.size for name, found in _within("model", saved).items()}
        if sizes != {name: weight.shape for name, weight in weights.items()}:
            raise another_model(path)
        states = {
            name: _like(parameter, _within(f"optimizer/{name}", saved))
            for name, parameter in _named_parameters(model).items()
        }
        random = {name: own for name, own in self._random_state().items() if name in saved}
        flat = {**_prefixed("model", weights), **_flat(states), **random}
        reader, group = self._store.reader(path), self._own_group()
        load(flat, storage_reader=reader, process_group=group)
        model.load_state_dict(weights)
        names = _names(model, optimizer)
        state = {
            index: {**states[name], **numbers.get(name, {})}
            for index, name in enumerate(names)
            if states[name] or name in numbers
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _restore_random_state(list(random.values()))

    def _commit(self, name: str) -> None:
        """Have a written checkpoint count, and remove those that are too many."""
        self._store.commit(name)
        # Those after it were damaged, or it would not have been made again: they take the place of no good one.
        whole = [one for one in self._store.present() if one.name <= name]
        for old in whole[: -self._keep]:
            self._store.remove(old)

    def _own_group(self) -> dist.ProcessGroup:
        if self._group is None:
            require_process_group()
            self._group = dist.new_group(backend="gloo")
        return self._group

    def _random_state(self) -> dict[str, Tensor]:
        states = {f"random/{self._rank}/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states[f"random/{self._rank}/cuda"] = torch.cuda.get_rng_state()
        return states

    def _last(self) -> Place | None:
        """Return the latest whole one, where the storage still tells."""
        try:
            return max(self._store.present(), key=lambda place: place.name, default=None)
        except OSError:
            return None

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Turn a failure to write, on any worker, into one line."""
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            yield
        except (OSError, CheckpointException) as error:
            if lost_peer(error):
                raise
            last = self._last()
            kept = f"the last good one is {last}" if last else "there is none yet"
            cause = write_failure(error, self._folder)
            failed = DiskFull if is_full(cause) else RunError
            raise failed(f"checkpoint: cannot be written ({reason(cause)}); {kept}") from error


def _contents(store: CheckpointStore, path: Place) -> Mapping[str, Any]:
    """Return the sizes and types of what a checkpoint holds.

    Raises:
        DamagedCheckpoint: some of it is not there.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        metadata, sizes = store.reader(path).read_metadata(), store.sizes(path)
        for place in metadata.storage_data.values():
            if sizes.get(place.relative_path, 0) < place.offset + place.length:
                raise OSError(f"{place.relative_path} is too short")
    except (Exception, CheckpointException) as error:  # a damaged file fails in many ways
        raise DamagedCheckpoint(f"checkpoint: {path} cannot be read ({first_line(error)})") from error
    found: Mapping[str, Any] = metadata.state_dict_metadata
    return found


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimizer's tensors, and its numbers by parameter."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    states = optimizer.state_dict()["state"]
    for index, name in enumerate(_names(model, optimizer)):
        for key, value in states.get(index, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def _like(parameter: Tensor, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors to load a parameter's state into: those of its own size are sharded as it is."""
    state = {}
    for key, found in saved.items():
        dtype = found.properties.dtype
        whole = found.size == parameter.shape and len(found.size) > 0
        state[key] = (
            torch.zeros_like(parameter.detach(), dtype=dtype)
            if whole
            else torch.zeros(found.size, dtype=dtype)
        )
    return state


def _names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the names of the optimizer's parameters, in its order."""
    names = {parameter: name for name, parameter in _named_parameters(model).items()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return plain_names(dict(model.named_parameters()))


def _prefixed(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in named.items()}


def _within(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(f"{prefix}/"): value
        for name, value in named.items()
        if name.startswith(f"{prefix}/")
    }


def _flat(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"optimizer/{name}/{key}": value for name, state in states.items() for key, value in state.items()
    }


def _restore_random_state(states: list[Tensor]) -> None:
    if states:
        torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state(states[1])
