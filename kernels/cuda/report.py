"""What the compiler makes of the kernels for an architecture; no device is needed."""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from widthwise.kernels.cuda.compiler import Nvrtc

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_NUMBERS = {  # of the assembler's messages
    "registers": re.compile(r"Used (\d+) registers"),
    "stack_bytes": re.compile(r"(\d+) bytes stack frame"),
    "spill_store_bytes": re.compile(r"(\d+) bytes spill stores"),
    "spill_load_bytes": re.compile(r"(\d+) bytes spill loads"),
    "shared_bytes": re.compile(r"(\d+) bytes smem"),
}
_ACCESS = re.compile(r"\b(LDG|STG|LDL|STL|LD|ST)\.E?\S*")


def report(compiler: Nvrtc, architecture: str) -> dict[str, Any]:
    """Return the cubin's size and, per kernel, registers, spills and memory accesses (None: no nvdisasm).

    Raises:
        BuildError: if the compiler does not know the architecture.
    """
    cubin, log = compiler.compile(architecture)
    assembly = disassemble(cubin)
    kernels = usage(log)
    for name, numbers in kernels.items():
        numbers |= accesses(assembly.get(name, "")) if assembly else dict.fromkeys(accesses(""))
    return {"bytes": len(cubin), "kernels": kernels}


def usage(log: str) -> dict[str, dict[str, int | None]]:
    """Return what the assembler says of each kernel's registers, stack, spills and shared memory."""
    parts = _ENTRY.split(log)
    return {
        name: {
            what: int(found[1]) if (found := number.search(text)) else 0 for what, number in _NUMBERS.items()
        }
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def accesses(assembly: str) -> dict[str, int | None]:
    """Count the instructions of a kernel that read and write global memory, 128 bits wide or not, and local."""
    found = [(match[1], ".128" in match[0]) for match in _ACCESS.finditer(assembly)]
    counts = Counter(found)
    return {
        "global_loads_128": counts["LDG", True],
        "global_stores_128": counts["STG", True],
        "global_loads_other": counts["LDG", False],
        "global_stores_other": counts["STG", False],
        "generic_accesses": sum(counts[kind, wide] for kind in ("LD", "ST") for wide in (True, False)),
        "local_accesses": sum(counts[kind, wide] for kind in ("LDL", "STL") for wide in (True, False)),
    }


def disassemble(cubin: bytes) -> dict[str, str]:
    """Return each kernel's assembly; empty where nvdisasm is not at hand."""
    tool = _nvdisasm()
    if tool is None:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-c", file.name], check=True, capture_output=True, text=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.(\w+)", listing, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _nvdisasm() -> str | None:
    """Find the disassembler: NVIDIA's package, or CUDA's toolkit."""
    packages = find_spec("nvidia")
    for folder in [] if packages is None else packages.submodule_search_locations or []:
        for path in Path(folder).glob("*/bin/nvdisasm"):
            return str(path)
    return shutil.which("nvdisasm")
