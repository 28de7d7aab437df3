"""What a verb of the ``fsd`` command is made of; the verbs themselves are in :mod:`fsd.cli_verbs`.

Nothing here imports anything, and the module of a verb is imported when the verb runs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

IMAGE, CONTAINER, LAYER, OBJECT = "image", "container", "layer", "object"
SOURCE, SNAPSHOT, TRASH, ORPHAN, VERB, FILE = "source", "snapshot", "trash", "orphan", "verb", "file"
"""What an argument can be completed with."""


class Argument:
    """A positional argument; ``many`` is how often it comes: ``""`` once, ``?``, ``*`` or ``+``."""

    __slots__ = ("choices", "complete", "help", "many", "name")

    def __init__(
        self, name: str, help: str, many: str = "", complete: str = "", choices: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.help = help
        self.many = many
        self.complete = complete
        self.choices = choices

    @property
    def key(self) -> str:
        """The attribute its value is kept in."""
        return self.name.partition("[")[0].lower().replace("-", "_")

    @property
    def shown(self) -> str:
        """How usage lines show it."""
        dots = f"{self.name}…" if self.many in ("*", "+") else self.name
        return f"[{dots}]" if self.many in ("?", "*") else dots


class Option:
    """An option; without ``metavar`` it takes no value, and with ``many`` it may be repeated."""

    __slots__ = ("choices", "complete", "default", "help", "many", "metavar", "names")

    def __init__(
        self,
        names: str,
        help: str,
        metavar: str = "",
        *,
        many: bool = False,
        choices: tuple[str, ...] = (),
        complete: str = "",
        default: Any = None,
    ) -> None:
        self.names = tuple(names.split())
        self.help = help
        self.metavar = metavar or ("|".join(choices) if choices else "")
        self.many = many
        self.choices = choices
        self.complete = complete
        self.default = default

    @property
    def key(self) -> str:
        """The attribute its value is kept in: the first long name."""
        long = next(name for name in self.names if name.startswith("--"))
        return long[2:].replace("-", "_")

    @property
    def shown(self) -> str:
        """How lists of options show it."""
        return ", ".join(self.names) + (f" {self.metavar}" if self.metavar else "")


class Verb:
    """One verb.

    Attributes:
        names: its name, then its other names.
        where: ``module.function`` below ``fsd``; it takes the parsed arguments and returns the exit code.
        question: whether "there is no such thing" is an answer (exit code 1) and not a failure.
    """

    __slots__ = ("details", "group", "names", "parameters", "question", "summary", "where")

    def __init__(
        self,
        names: str,
        group: str,
        where: str,
        summary: str,
        *parameters: Argument | Option,
        question: bool = False,
        details: str = "",
    ) -> None:
        self.names = tuple(names.split())
        self.group = group
        self.where = where
        self.summary = summary
        self.parameters = parameters
        self.question = question
        self.details = details

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The positional arguments."""
        return tuple(one for one in self.parameters if isinstance(one, Argument))

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of this verb alone."""
        return tuple(one for one in self.parameters if isinstance(one, Option))

    def function(self) -> Callable[[Any], int]:
        """What does it; imports its module."""
        module, _, name = self.where.partition(".")
        found: Callable[[Any], int] = getattr(__import__(f"fsd.{module}", fromlist=[name]), name)
        return found


GLOBAL = (
    Option("-g --graph --root", "graphroot: persistent state of the store", "DIR", complete=FILE),
    Option("-R --run --runroot", "runroot: state lost at reboot", "DIR", complete=FILE),
    Option("--imagestore", "split image store: images and their layers", "DIR", complete=FILE),
    Option("-s --storage-driver", "graph driver", "NAME", choices=()),
    Option("--storage-opt", "driver option (repeatable)", "OPT", many=True),
    Option("--json", "print JSON"),
    Option("-D --debug", "log every step to standard error"),
    Option("-h --help", "say what the command does and takes"),
)
"""Options every verb takes, before or after its name, spelt as containers/storage and podman do."""
