"""Maps the top-level folders to the namespace ``widthwise``; everything else stands in pyproject.toml.

The list of packages is computed, so that a new sub-package cannot be forgotten in the wheel.
"""

from setuptools import find_packages, setup

FOLDERS = ("kernels", "proxies", "search", "transfer")

setup(
    package_dir={f"widthwise.{folder}": folder for folder in FOLDERS},
    packages=[
        f"widthwise.{name}"
        for folder in FOLDERS
        for name in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))
    ],
    package_data={f"widthwise.{folder}": ["py.typed", "csrc/*"] for folder in FOLDERS},
)
