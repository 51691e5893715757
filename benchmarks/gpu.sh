#!/bin/sh
# Everything that needs a CUDA device, in one go: sh benchmarks/gpu.sh FOLDER
#
# Runs the gpu tests (graph replay beside eager steps, repeatability, offsets beyond 2^31), compute-sanitizer's
# memcheck and racecheck on a small case, ncu's memory throughput, and the benchmark's tables, and writes them to
# FOLDER as Markdown and logs. Needs torch, numpy, pydantic, pytest and pytest-timeout; nothing is installed. PYTHON names another interpreter.
# Ends with 1 if a test or a check fails; a tool that is not there is noted and passed over.
set -u
if [ $# -ne 1 ]; then
    echo "usage: sh benchmarks/gpu.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1" && OUT=$(cd "$1" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD/.typing${PYTHONPATH:+:$PYTHONPATH} # the namespace, without an installation
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
if ! "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "torch has no CUDA device here" >&2
    exit 2
fi
REPORT=$OUT/gpu.md
failed=0

note() { printf '%s\n' "$*" | tee -a "$REPORT"; }

# check NAME COMMAND...: runs it, keeps its output as a log, and notes whether it went well.
check() {
    name=$1
    shift
    if "$@" >"$OUT/$name.log" 2>&1; then
        note "- $name: passed ($(tail -n 1 "$OUT/$name.log"))"
    else
        note "- $name: FAILED (see $name.log)"
        failed=1
    fi
}

: >"$REPORT"
note "# The CUDA back end on $("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(0), "with torch", torch.__version__)')"
note ""
note "\`sh benchmarks/gpu.sh FOLDER\`, $(date -u +%Y-%m-%d)"
note ""
check tests "$PYTHON" -m pytest -q -m gpu tests/kernels tests/proxies/test_refreshing.py
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        check "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" benchmarks/gpu.py --steps 2
    done
else
    note "- compute-sanitizer: not on PATH"
fi
if command -v ncu >/dev/null; then
    check ncu ncu --clock-control none --kernel-name regex:adamhc --csv \
        --metrics gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,dram__bytes.sum,sm__warps_active.avg.pct_of_peak_sustained_active \
        "$PYTHON" benchmarks/gpu.py --steps 2 --workload "1 billion"
else
    note "- ncu: not on PATH"
fi
note ""
if "$PYTHON" benchmarks/gpu.py >"$OUT/benchmark.log" 2>&1; then
    note "$(cat "$OUT/benchmark.log")"
else
    note "The benchmark FAILED (see benchmark.log)"
    failed=1
fi
if "$PYTHON" benchmarks/packing.py >"$OUT/packing.log" 2>&1; then
    note ""
    note "$(cat "$OUT/packing.log")"
else
    note "Sharing the GPU FAILED, or needs pydantic (see packing.log)"
    failed=1
fi
exit $failed
