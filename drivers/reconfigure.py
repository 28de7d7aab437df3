"""Other options for a driver that is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


IMAGEROOT: Final = "imageroot"
"""Key of the one option every driver has, which says where its layers are and does not change."""


class Reconfigurable:
    """The part of :class:`drivers.base.Driver` that takes new options.

    Attributes:
        options: those in force, by key.
    """

    live_options: ClassVar[frozenset[str]] = frozenset()
    """Keys of options that can change while the driver is open."""

    options: dict[str, str]

    def reconfigure(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Let ``options`` be in force, as far as that is possible without opening the driver anew.

        Returns:
            keys whose values stay what they were.

        Raises:
            BadOption, NotSupported: a driver cannot be opened with these options; nothing changed.
            OSError
        """
        options = {key: value for key, value in options.items() if key != IMAGEROOT}
        self.take_options(options)
        changed = {k for k in {*self.options, *options} if self.options.get(k) != options.get(k)}
        kept = {key: value for key, value in self.options.items() if key not in self.live_options}
        self.options = kept | {key: options[key] for key in options if key in self.live_options}
        return tuple(sorted(changed - self.live_options))

    def take_options(self, options: Mapping[str, str]) -> None:
        """Check all ``options``, then use those of :attr:`live_options`. Raises as :meth:`reconfigure`."""
