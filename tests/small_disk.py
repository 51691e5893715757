"""A command on a disk that is too small for it, and once more on a larger one."""

from string import Template

# In a mount namespace of its own, which needs no privileges where users may have one.
_SCRIPT = Template("""
import os, subprocess, sys
out = sys.argv[sys.argv.index("--out") + 1]
if "--inside" not in sys.argv:
    os.makedirs(out)
    again = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", sys.orig_argv[2], *sys.argv[1:]]
    os.execvp("unshare", [*again, "--inside"])
from widthwise.transfer.cli import main
mount = ["mount", "-t", "tmpfs", "none", out, "-o"]
subprocess.run([*mount, "size=$size"], check=True)
for more in ([], ["--resume"]):
    try:
        main([*sys.argv[1:-1], *more])
    except SystemExit as stop:
        print("status", stop.code)
        print("kept", sorted(os.listdir(f"{out}/$folder")), flush=True)
        subprocess.run([*mount, "remount,size=20m"], check=True)
""")


def on_a_small_disk(size: str, folder: str) -> str:
    """Return a program that runs ``widthwise`` with its arguments, and again with ``--resume``.

    The folder of ``--out`` is a disk of its own, that is larger the second time. It says of each run ``status N`` and
    ``kept [...]``, the names in a folder there.

    Args:
        size: the disk's at first, as ``mount`` has it.
        folder: below that of ``--out``.
    """
    return _SCRIPT.substitute(size=size, folder=folder)
