"""Name the cffi build scripts; everything else about the build is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["drivers/_btrfs_build.py:ffibuilder"])
