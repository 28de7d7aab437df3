"""What the code must look like: who imports whom, how long things get, what a command may load."""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fsd", "store", "drivers")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
UPPER = {"fsd": {"tests"}, "store": {"tests", "fsd"}, "drivers": {"tests", "fsd", "store"}}
"""What a package must not import."""
COMPILED = sorted(path.name.removesuffix("_build.py") for path in (ROOT / "drivers").glob("_*_build.py"))
"""Names of the modules that cffi compiles: ``_btrfs`` …"""
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 500, 50, 10


def name(path):
    return str(path.relative_to(ROOT))


class Facts(NamedTuple):
    """What the tests ask of a file, found in one go: parsing all files takes a second each time."""

    imported: frozenset[str]
    """Every module it imports, also inside functions; ``from a import b`` gives ``a`` and ``a.b``."""
    functions: dict[str, int]
    """Lines of every function, signature and docstring included."""
    told_by_name: list[str]
    """Where a driver's name is compared with a text."""
    docstring: str | None


@functools.cache
def facts(path):
    """The facts of a Python file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules, lengths, compared = set(), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            modules.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{name(path)}:{node.lineno} {node.name}"
            lengths[where] = node.end_lineno - node.lineno + 1
        elif isinstance(node, ast.Compare) and compares_driver_name([node.left, *node.comparators]):
            compared.append(f"{name(path)}:{node.lineno}")
    return Facts(frozenset(modules), lengths, compared, ast.get_docstring(tree))


def imported(path):
    """Every module a file imports."""
    return facts(path).imported


def test_imports_point_downward():
    wrong = [
        f"{name(path)} imports {module}"
        for path in SOURCES
        for module in imported(path)
        if module.split(".")[0] in UPPER[path.relative_to(ROOT).parts[0]]
    ]
    assert not wrong


def test_trio_and_pyfuse3_stay_in_fsd():
    lower = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "fsd"]
    wrong = [name(p) for p in lower if {m.split(".")[0] for m in imported(p)} & {"trio", "pyfuse3"}]
    assert not wrong


@pytest.mark.parametrize("module", COMPILED)
def test_compiled_module_has_one_importer(module):
    importers = [name(path) for path in SOURCES if f"drivers.{module}" in imported(path)]
    assert len(importers) == 1


def test_btrfs_ioctls_are_called_in_one_file():
    importers = {name(path) for path in SOURCES if "drivers._btrfs" in imported(path)}
    assert importers == {"drivers/btrfs_ioctl.py"}


def test_files_are_short_enough():
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES + TESTS}
    assert not {file: lines for file, lines in lengths.items() if lines > FILE_LINES}


def test_functions_are_short_enough():
    lengths = functions(SOURCES)
    assert not {
        where: lines for where, lines in (lengths | functions(TESTS)).items() if lines > FUNCTION_LINES
    }
    assert statistics.median(lengths.values()) <= MEDIAN_LINES


def functions(paths):
    """Lines of every function of these files."""
    return {where: lines for path in paths for where, lines in facts(path).functions.items()}


def test_no_driver_is_told_by_its_name():
    """A capability decides, never ``driver_name == "btrfs"``."""
    assert not [where for path in SOURCES for where in facts(path).told_by_name]


def compares_driver_name(sides):
    attributes = {side.attr for side in sides if isinstance(side, ast.Attribute)}
    literal = any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in sides)
    return literal and "driver_name" in attributes


def test_every_module_has_a_docstring():
    assert not [name(path) for path in SOURCES if not facts(path).docstring]


@pytest.mark.parametrize("package", PACKAGES)
def test_map_of_a_package_names_every_module(package):
    drawn = facts(ROOT / package / "__init__.py").docstring
    names = set(re.findall(r"\w+\*?", drawn))
    groups = tuple(word[:-1] for word in names if word.endswith("_*"))
    modules = {path.stem for path in (ROOT / package).glob("*.py") if not path.stem.startswith("_")}
    assert not {module for module in modules - names if not module.startswith(groups)}


def test_cited_sections_of_the_format_are_there():
    code = [path for path in ROOT.rglob("*.[ch]") if path.parts[len(ROOT.parts)] in PACKAGES]
    cited = {
        number for path in (*SOURCES, *code) for number in re.findall(r"FORMAT ([\d.]*\d)", path.read_text())
    }
    headings = re.findall(
        r"^##+ ([\d.]*\d)", (ROOT / "store/FORMAT.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert cited
    assert cited <= set(headings)


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


def test_installed_packages_are_the_declared_ones():
    """A wheel must not take other top-level names than these three, nor leave a part out."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'packages = ["fsd", "fsd.plane", "drivers", "store"]' in text
    packages = {path.parent for path in SOURCES}
    assert packages == {ROOT / package for package in (*PACKAGES, "fsd/plane")}
