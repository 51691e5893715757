"""Prints what NVRTC makes of the kernels, as JSON: ``python -m widthwise.kernels.cuda sm_80 sm_90 sm_100``."""

import argparse
import json
import sys

import torch

from widthwise.kernels.cuda.compiler import FLAGS, nvrtc
from widthwise.kernels.cuda.report import report
from widthwise.kernels.library import BuildError


def main() -> int:
    """Compile for each architecture; return 0, or 2 where that cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m widthwise.kernels.cuda", description=__doc__)
    parser.add_argument("architectures", nargs="+", metavar="ARCHITECTURE", help="such as sm_90")
    try:
        compiler = nvrtc(torch.version.cuda)
        found = {name: report(compiler, name) for name in parser.parse_args().architectures}
    except BuildError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"nvrtc": compiler.name, "flags": FLAGS, "architectures": found}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
