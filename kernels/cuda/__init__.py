"""The CUDA back end of AdamHC: compiled at run time, launched through CUDA's driver library.

python -m widthwise.kernels.cuda sm_80 sm_90 sm_100    # what the compiler makes of it, as JSON; no GPU needed
"""

from widthwise.kernels.cuda.driver import origin
from widthwise.kernels.cuda.plan import Plan, abs_means, check_not_capturing, fits
from widthwise.kernels.cuda.proof import unavailable

__all__ = ["Plan", "abs_means", "check_not_capturing", "fits", "origin", "unavailable"]
