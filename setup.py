"""Name the cffi build scripts; everything else about the build is in pyproject.toml."""

from glob import glob

from setuptools import setup

setup(
    cffi_modules=[
        f"{script}:ffibuilder"
        for script in sorted(glob("drivers/_*_build.py") + glob("fsd/plane/_*_build.py"))
    ]
)
