"""What the code must look like: who imports whom, how long things get, what a command may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fsd", "store", "drivers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
LOWER = {"fsd": PACKAGES, "store": ("store", "drivers"), "drivers": ("drivers",)}
COMPILED = sorted(path.name.removesuffix("_build.py") for path in (ROOT / "drivers").glob("_*_build.py"))
"""Names of the modules that cffi compiles: ``_btrfs`` …"""
FILE_LINES, FUNCTION_LINES = 500, 50


def name(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Every module a file imports, also inside functions; ``from a import b`` gives ``a`` and ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_point_downward(path):
    allowed = LOWER[path.relative_to(ROOT).parts[0]]
    tops = {module.split(".")[0] for module in imported(path)}
    assert not tops & (set(PACKAGES) - set(allowed))
    assert "tests" not in tops


@pytest.mark.parametrize("path", [p for p in SOURCES if p.relative_to(ROOT).parts[0] != "fsd"], ids=name)
def test_trio_and_pyfuse3_stay_in_fsd(path):
    assert not {module.split(".")[0] for module in imported(path)} & {"trio", "pyfuse3"}


@pytest.mark.parametrize("module", COMPILED)
def test_compiled_module_has_one_importer(module):
    importers = [name(path) for path in SOURCES if f"drivers.{module}" in imported(path)]
    assert len(importers) == 1


def test_btrfs_ioctls_are_called_in_one_file():
    importers = {name(path) for path in SOURCES if "drivers._btrfs" in imported(path)}
    assert importers == {"drivers/btrfs_ioctl.py"}


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_file_is_short_enough(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_functions_are_short_enough(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_driver_is_told_by_its_name(path):
    """A capability decides, never ``driver.name == "btrfs"``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            compared = {side.attr for side in sides if isinstance(side, ast.Attribute)}
            literal = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
            assert not (compared & {"driver_name"} and literal), f"line {node.lineno}"


COMMANDS = [
    ["--help"],
    ["--version"],
    ["status"],
    ["down"],
    ["images"],
    ["layers", "--json"],
    ["health"],
    ["doctor"],
    ["import", "/nonexistent", "x"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_command_without_mounting_loads_no_fuse(argv, btrfs_dir):
    code = (
        "import sys\n"
        "from fsd.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "loaded = {'trio', 'pyfuse3', 'fsd.daemon'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    flags = ["-g", str(btrfs_dir / "g"), "-R", str(btrfs_dir / "r")]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, *argv], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_module_has_a_docstring():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), name(path)


def test_installed_packages_are_the_declared_ones():
    """A wheel must not take other top-level names than these three."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["fsd", "store", "drivers"]' in text
    packages = {path.parent for path in SOURCES}
    assert packages == {ROOT / package for package in PACKAGES}
