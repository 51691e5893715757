"""What a device could do at most, for the model FLOPs utilisation: dense bf16 with fp32 sums, by its data sheet."""

import re

# 10¹² floating-point operations a second. The name must hold all of the words; the first row that fits counts.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250.0),
    (("H200",), 989.4),
    (("GH200",), 989.4),
    (("H100", "NVL"), 835.5),
    (("H100", "PCIE"), 756.5),
    (("H100",), 989.4),
    (("A100",), 312.0),
    (("L40S",), 362.0),
    (("L4",), 121.0),
    (("A10",), 125.0),
    (("4090",), 165.2),
)


def peak_tflops(name: str) -> float | None:
    """Return the peak of the device that torch gives this name, or None where it is not in the table."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    return next((peak for needed, peak in _PEAKS if words.issuperset(needed)), None)
