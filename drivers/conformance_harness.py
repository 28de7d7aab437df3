"""The machinery of the conformance checks: how they are collected, and what each is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drivers.base import Capabilities, Driver, MountOptions
from drivers.conformance_trees import EPOCH, Census, Step, census, difference, settle
from drivers.idmap import IDMap, IDMappings

Factory = Callable[[Path, Mapping[str, str]], Driver]

BASE, CHILD = "b" * 64, "c" * 64
SHIFTED = IDMappings((IDMap(0, 200000, 65536),), (IDMap(0, 300000, 65536),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check: its name, the capability it needs (empty: none), and the function."""

    name: str
    needs: str
    run: Callable[[Harness], None]

    def applies(self, capabilities: Capabilities) -> bool:
        """Whether a driver with these capabilities has to pass."""
        return not self.needs or bool(getattr(capabilities, self.needs))


CHECKS: list[Check] = []


def check(needs: str = "") -> Callable[[Callable[[Harness], None]], Callable[[Harness], None]]:
    """Collect a check; ``needs`` names a field of :class:`~drivers.base.Capabilities`."""

    def collect(function: Callable[[Harness], None]) -> Callable[[Harness], None]:
        CHECKS.append(Check(name=function.__name__, needs=needs, run=function))
        return function

    return collect


class Harness:
    """One driver in an empty directory, and an oracle beside it."""

    def __init__(self, factory: Factory, place: Path) -> None:
        self._factory = factory
        self.graphroot = place / "graphroot"
        self.graphroot.mkdir(mode=0o700)
        self.oracle = place / "oracle"
        self.oracle.mkdir()
        self.oracle.chmod(0o555)
        self.driver = self.open()

    def open(self, options: Mapping[str, str] | None = None) -> Driver:
        """Another driver object over the same layers."""
        return self._factory(self.graphroot, options or {})

    def apply(self, layer_id: str, *steps: Step, when: int = EPOCH) -> None:
        """Run steps in a layer and in the oracle, and give everything in both the time ``when``."""
        with self.driver.mounted(layer_id) as root:
            for step in steps:
                step(root)
                step(self.oracle)
            settle(root, when)
            settle(self.oracle, when)

    def census(self, layer_id: str) -> Census:
        """What a layer looks like through its mount."""
        with self.driver.mounted(layer_id, MountOptions(options=("ro",))) as root:
            return census(root)

    def same(self, layer_id: str, wanted: Census | None = None) -> None:
        """Fail unless the layer equals ``wanted``, else the oracle as it is now."""
        found = difference(self.census(layer_id), census(self.oracle) if wanted is None else wanted)
        assert not found, f"layer {layer_id[:12]}:\n{found}"


@contextmanager
def raises(*kinds: type[BaseException], names: str = "") -> Iterator[None]:
    """Fail unless the block raises one of ``kinds`` with a text that contains ``names``."""
    try:
        yield
    except kinds as error:
        if names not in str(error):
            raise AssertionError(f"{error!r} does not name {names!r}") from error
    else:
        raise AssertionError(f"nothing raised, expected {' or '.join(kind.__name__ for kind in kinds)}")
