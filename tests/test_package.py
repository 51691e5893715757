"""The package as users get it: public names, what importing costs, the wheel, and the documentation's examples."""

import json
import re
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

from .conftest import ROOT

FOLDERS = ("kernels", "proxies", "search", "transfer")
RECIPE = {
    "schema": "widthwise/recipe/1",
    "hyperparameters": {"lr": 0.02, "weight_decay": 0.4, "huber_c": 2.0},
    "proxy": {"width": 64, "depth": 2, "head_dim": 16, "context": 128, "vocab_size": 256},
    "horizon": {"batch_tokens": 2048, "tokens": 409600},
}


def run(code: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("kernels", {"AdamHC", "SGDC"}),
        (
            "proxies",
            {
                "GPT",
                "GPTConfig",
                "ParameterEntry",
                "ParameterTable",
                "parameter_table",
                "open_tokens",
                "train",
                "AlphaDecay",
                "AWD",
                "AdaDecay",
                "Coordinates",
                "Diagnostics",
                "Recorder",
            },
        ),
        ("search", {"SearchSpace", "Storage", "SweepConfig", "sweep"}),
        (
            "transfer",
            {"Recipe", "Plan", "Rule", "rule", "rules", "launch", "report", "hill_alpha", "decay_scales"},
        ),
    ],
)
def test_public_names_exist_and_belong_to_us(package: str, names: set[str]) -> None:
    module = import_module(f"widthwise.{package}")
    assert names <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module 'widthwise.{package}' has no attribute 'nonsense'"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize(
    ("imports", "banned"),
    [
        ("widthwise.kernels", {"ray", "optuna", "mup", "pandas", "matplotlib", "plotly"}),
        ("widthwise.proxies.training, widthwise.proxies.shapes", {"ray", "optuna", "pandas", "matplotlib"}),
        ("widthwise.transfer, widthwise.transfer.plan, widthwise.transfer.cli", {"torch", "ray", "optuna", "mup"}),
    ],
)  # fmt: skip
def test_importing_a_folder_does_not_import_what_it_must_not(
    imports: str, banned: set[str], tmp_path: Path
) -> None:
    loaded = run(f"import {imports}, sys; print(*sys.modules)", tmp_path).split()
    assert banned.isdisjoint(loaded)


def test_folders_import_only_from_their_left() -> None:
    for place, folder in enumerate(FOLDERS):
        for file in (ROOT / folder).rglob("*.py"):
            found = set(re.findall(r"(?:from|import) widthwise\.(\w+)", file.read_text()))
            assert found <= set(FOLDERS[: place + 1]), file


def test_the_wheel_holds_every_module_of_the_tree(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(copy(tmp_path)),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("widthwise/")}
    tree = {
        f"widthwise/{file.relative_to(ROOT)}" for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")
    }
    sources = {f"widthwise/{file.relative_to(ROOT)}" for file in (ROOT / "kernels" / "csrc").iterdir()}
    markers = {f"widthwise/{folder}/py.typed" for folder in FOLDERS}
    assert packed == tree | sources | markers


def copy(folder: Path) -> Path:
    """Copy what a wheel is built from, because building writes into the tree."""
    import shutil

    target = folder / "source"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/own-model.md",
        "docs/concepts.md",
        "docs/module-decay.md",
        "docs/diagnostics.md",
        "docs/hugging-face.md",
        pytest.param("docs/check.md", marks=pytest.mark.slow),  # trains nine proxies
    ],
)
def test_the_examples_of_the_documentation_run(page: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    # mup installs torchvision, which need not fit torch; transformers imports it where it is there.
    hidden = "import sys; sys.modules['torchvision'] = None\n" if page == "docs/hugging-face.md" else ""
    for block in blocks:
        run(hidden + block, tmp_path)


def test_the_links_of_the_documentation_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
