"""The commands that sweep, launch, write shards and look at the machine: mistakes in one line, nothing written."""

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from widthwise.proxies import GPTConfig
from widthwise.proxies.config import Horizon, Hyperparameters
from widthwise.proxies.shards import read_shard
from widthwise.transfer import Recipe, cli

SMALL = "--width 32 --context 64 --tokens 51200 --batch-tokens 1024 --out sweep"

FILES = {
    "text.txt": b"Some text, long enough for a batch or two. " * 1000,
    "short.txt": b"Short.",
    "empty.txt": b"",
    "truncated.bin": struct.pack("<256i", 20240520, 1, 1000, *[0] * 253),
    "old.bin": struct.pack("<256i", 20240520, 7, 1, *[0] * 253) + b"ab",
    "wide.bin": struct.pack("<256i", 20240520, 1, 4000, *[0] * 253) + np.full(4000, 60000, "<u2").tobytes(),
    "faulty.toml": b"trials = ",
    "unknown.toml": b"trails = 3",
    "outside.toml": b"width = 32\ntokens = 4096",
    "inside.toml": b"[model]\ntrials = 3",
    "section.toml": b"[modle]\nwidth = 32",
    "type.toml": b'trials = "many"',
    "value.toml": b"[model]\nwidth = 40",
    "space.toml": b"[space]\nlr = [0.1, 0.01]",
    "model.toml": b"model = 64",
    "latin.toml": "data = 'Größe'".encode("latin-1"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder with `FILES` and a recipe; nothing else may be in it at the end."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "shards").mkdir()
    tuned = Hyperparameters(lr=0.02, weight_decay=0.4, huber_c=2.0)
    horizon = Horizon(batch_tokens=1024, tokens=10240)
    Recipe(hyperparameters=tuned, proxy=GPTConfig(width=32, context=64), horizon=horizon).save("recipe.json")
    before = sorted(tmp_path.rglob("*"))
    yield tmp_path
    assert sorted(tmp_path.rglob("*")) == before


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def refused(message: str) -> tuple[int, str, str]:
    return 2, "", f"widthwise: error: {message}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--trials 0", "trials: must be >= 1, got 0"),
        ("--trials 1.5", "trials: must be a whole number, got '1.5'"),
        ("--seeds 0", "seeds: must be >= 1, got 0"),
        ("--finalists -1", "finalists: must be >= 1, got -1"),
        ("--seed -1", "seed: must be >= 0, got -1"),
        ("--concurrency 0", "concurrency: must be >= 1, got 0"),
        ("--gpus-per-trial -1", "gpus_per_trial: must be >= 0, got -1.0"),
        ("--width 65", "model.width: must be a multiple of head_dim = 16, got 65"),
        ("--width 0", "model.width: must be >= 1, got 0"),
        ("--width abc", "width: must be a whole number, got 'abc'"),
        ("--seed 4294967296", "seed: must be < 4294967296, got 4294967296"),
        ("--depth 0", "model.depth: must be >= 1, got 0"),
        ("--head-dim 15", "model.head_dim: must be even for rotary positions, got 15"),
        ("--vocab-size 1", "model.vocab_size: must be >= 2, got 1"),
        ("--tokens 100", "horizon.tokens: must be >= batch_tokens = 1024, got 100"),
        ("--batch-tokens 1000", "batch_tokens: must be a multiple of context = 64, got 1000"),
        ("--widht 32", "--widht: unknown option; did you mean '--width'?"),
    ],
)
def test_an_impossible_sweep_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert run(capsys, f"sweep {SMALL} --data text.txt {options}") == refused(message)


USE = "use 'python', a text file, a .bin shard or a folder of them"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data missing.txt", f"data: no such file or folder: missing.txt; {USE}"),
        ("--data pyhton", f"data: no such file or folder: pyhton; {USE}; did you mean 'python'?"),
        ("--data empty.txt", "data: empty.txt: the file is empty"),
        ("--data shards", "data: shards: a folder must hold .bin shards, got none"),
        (
            "--data short.txt",
            "data: {folder}/short.txt: the training split must hold at least context + 1 = 65 tokens, got 6",
        ),
        (
            "--data text.txt --batch-tokens 65536 --tokens 65536",
            "data: {folder}/text.txt: the training split must hold at least batch_size * context + 1 = "
            "1024 * 64 + 1 = 65537 tokens, got 40850",
        ),
        (
            "--data truncated.bin",
            "data: truncated.bin: header says 1000 tokens, the file holds 0 (truncated?)",
        ),
        ("--data old.bin", "data: old.bin: header version must be 1 (uint16 tokens), got 7"),
        (
            "--data wide.bin",
            "data: wide.bin: token 60000 is beyond the vocabulary: vocab_size must be > 60000, got 50257",
        ),
        (
            "--data text.txt --vocab-size 100",
            "data: {folder}/text.txt: token 120 is beyond the vocabulary: vocab_size must be > 120, got 100",
        ),
    ],
)
def test_data_that_do_not_fit_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert run(capsys, f"sweep {SMALL} {options}") == refused(message.format(folder=folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.toml", "config: no such file: missing.toml"),
        ("shards", "config: shards cannot be read as TOML: [Errno 21] Is a directory: 'shards'"),
        (
            "faulty.toml",
            "config: faulty.toml cannot be read as TOML: Invalid value (at end of document)",
        ),
        (
            "latin.toml",
            "config: latin.toml cannot be read as TOML: 'utf-8' codec can't decode byte 0xf6 in position 10: "
            "invalid start byte",
        ),
        ("unknown.toml", "trails: unknown field; did you mean 'trials'?"),
        ("outside.toml", "width: unknown field; did you mean 'model.width'? (and 1 more)"),
        (
            "inside.toml",
            "model.trials: unknown field; did you mean 'trials' at the top level?",
        ),
        ("section.toml", "modle: unknown field; did you mean 'model'?"),
        ("type.toml", "trials: must be a whole number, got 'many'"),
        ("value.toml", "model.width: must be a multiple of head_dim = 16, got 40"),
        ("space.toml", "space.lr: 0 < low <= high must hold, got low=0.1, high=0.01"),
        ("model.toml", "model: must be an object, got 64"),
    ],
)
def test_a_faulty_configuration_file_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert run(capsys, f"sweep --data text.txt --out sweep --config {name}") == refused(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out text.txt/sweep", "out: text.txt/sweep cannot be written (Not a directory)"),
        ("--out text.txt", "out: text.txt cannot be written (Not a directory)"),
        ("--out shards --resume", "out: shards holds no sweep to resume"),
        ("--out nowhere --resume", "out: nowhere holds no sweep to resume"),
    ],
)
def test_a_folder_that_does_not_suit_a_sweep_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert run(capsys, f"sweep {SMALL} --data text.txt {options}") == refused(message)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray answers at '127.0.0.1:1' ([Errno 111] Connection refused)"),
        ("nowhere", "must be host:port or 'auto', got 'nowhere'"),
        ("127.0.0.1:port", "must be host:port or 'auto', got '127.0.0.1:port'"),
        (":6379", "must be host:port or 'auto', got ':6379'"),
        ("ray://127.0.0.1:1", "must be host:port or 'auto', got 'ray://127.0.0.1:1'"),
        ("127.0.0.1:65536", "must be host:port or 'auto', got '127.0.0.1:65536'"),
    ],
)
def test_an_address_without_a_ray_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], address: str, message: str
) -> None:
    for command in (f"sweep {SMALL}", "launch recipe.json --width 64 --out run"):
        done = run(capsys, f"{command} --data text.txt --address {address}")
        assert done == refused(f"address: {message}")


def test_an_address_that_never_answers_is_one_line_within_20_seconds(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        done = run(capsys, f"sweep {SMALL} --data text.txt --address {address}")
        assert time.monotonic() - started < 20
    assert done == refused(f"address: no Ray answered within 8 s at {address!r}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "width: is required"),
        ("--width 0", "width: must be >= 1, got 0"),
        ("--width 40", "width: must be a multiple of head_dim = 16, got 40"),
        ("--width 64 --tokens 10", "tokens: must be >= batch_tokens = 1024, got 10"),
        ("--width 64 --batch-tokens 100", "batch_tokens: must be a multiple of context = 64, got 100"),
        ("--width 64 --workers 0", "workers: must be >= 1, got 0"),
        ("--width 64 --workers 3", "workers: must divide the 16 sequences of a batch, got 3"),
        (
            "--width 64 --workers 2 --accumulate 3",
            "accumulate: must divide the 8 sequences of a worker's share of a batch, got 3",
        ),
        ("--width 64 --keep 0", "keep: must be >= 1, got 0"),
        ("--width 64 --evaluations 0", "evaluations: must be >= 1, got 0"),
        ("--width 64 --checkpoint-every 0", "checkpoint_every: must be >= 1, got 0"),
        ("--width 64 --seed -1", "seed: must be >= 0, got -1"),
        ("--width 64 --data missing.txt", f"data: no such file or folder: missing.txt; {USE}"),
        (
            "--width 64 --data wide.bin",
            "data: wide.bin: token 60000 is beyond the vocabulary: vocab_size must be > 60000, got 256",
        ),
        (
            "--width 64 --data short.txt",
            "data: short.txt: the training split must hold at least context + 1 = 65 tokens, got 6",
        ),
        ("--width 64 --resume", "out: {folder}/run holds no target run to resume"),
        ("--width 64 --out text.txt/run", "out: {folder}/text.txt/run cannot be written (Not a directory)"),
        ("--width 64 --out text.txt", "out: {folder}/text.txt cannot be written (File exists)"),
    ],
)
def test_an_impossible_target_run_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    done = run(capsys, f"launch recipe.json --data text.txt --out run {options}")
    assert done == refused(message.format(folder=folder))


def test_an_unknown_rule_is_one_line_of_launch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, said = run(capsys, "launch recipe.json --width 64 --rule sq --data text.txt --out run")
    assert (status, printed) == (2, "")
    assert said.startswith("widthwise: error: rule: must be one of fan-sqrt, sp, ")
    assert said.endswith(", got 'sq'\n")
    assert said.count("\n") == 1


def test_data_writes_shards_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes(b"ab" * 450)
    Path("b.txt").write_bytes(b"c" * 100)
    options = "--shard-tokens 500 --validation-fraction 0.1 --json"
    short = (
        "the longest validation shard holds 100 tokens: a context of up to 99 fits, the usual 128 does not"
    )
    paths = [f"shards/{name}.bin" for name in ("train_000000", "train_000001", "val_000000")]
    assert run(capsys, f"data a.txt b.txt --out shards {options}") == (
        0,
        json.dumps({"shards": paths}) + "\n",
        f"widthwise: {short}\n",
    )
    assert [len(read_shard(path)) for path in paths] == [500, 400, 100]
    status, printed, said = run(capsys, "data a.txt --out more")
    assert (status, printed) == (0, "more/train_000000.bin\nmore/val_000000.bin\n")
    assert said.startswith("widthwise: the longest validation shard holds 45 tokens: ")
    message = "out: must hold no .bin files, got 3 in shards (train_000000.bin)"
    assert run(capsys, "data a.txt --out shards") == refused(message)
    assert run(capsys, "data --out other") == refused("data: must name at least one file, got none")
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt", "more", "shards"]


def test_doctor_says_what_this_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed, said = run(capsys, "doctor --json")
    assert (status, said) == (0, "")
    findings = {one["what"]: one for one in json.loads(printed)["findings"]}
    assert findings["torch"]["found"] == version("torch")
    assert findings["ray"] == {"what": "ray", "found": version("ray"), "advice": None}
    assert {"machine", "device", "kernel back end", "disk"} <= findings.keys()
    status, printed, said = run(capsys, "doctor")
    assert (status, said) == (0, "")
    assert all(name in printed for name in findings)


@pytest.mark.parametrize(("name", "content"), [("study.db", "a sweep"), ("runs.db", "a check")])
def test_a_target_is_not_trained_in_the_folder_of_something_else(
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    content: str,
) -> None:
    out = tmp_path_factory.mktemp("other")
    (out / name).touch()
    told = f"widthwise: error: out: {out} holds {content}; name another folder\n"
    assert run(capsys, f"launch recipe.json --width 64 --data text.txt --out {out}") == (2, "", told)
    assert [path.name for path in out.iterdir()] == [name]
