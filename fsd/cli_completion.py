"""Shell completion: scripts made of the verbs, and the names that complete arguments.

A script knows verbs and options itself and asks ``fsd __complete KIND`` for the names of objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsd.cli_table import (
    CONTAINER,
    FILE,
    GLOBAL,
    IMAGE,
    LAYER,
    OBJECT,
    ORPHAN,
    SNAPSHOT,
    SOURCE,
    TRASH,
    VERB,
    Argument,
    Option,
    Verb,
)
from fsd.cli_verbs import BY_NAME, VERBS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator

    from fsd.cli_store import Session
    from store.catalog import Catalog


def print_script(args: argparse.Namespace) -> int:
    """``fsd completion SHELL``."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](), end="")
    return 0


# -- names -----------------------------------------------------------------------------------------


def complete(args: argparse.Namespace) -> int:
    """``fsd __complete KIND [WORD…]``: candidates, one a line; none where nothing can be said."""
    try:
        print("".join(f"{name}\n" for name in names(args, args.kind, args.word)), end="")
    except Exception:
        return 1  # a shell has no use for the reason
    return 0


def names(args: argparse.Namespace, kind: str, words: list[str]) -> Iterable[str]:
    """What can stand where an argument of that kind is wanted."""
    if kind == VERB:
        return BY_NAME
    from fsd.cli_store import at_a_glance, open_reading, open_session, store_options

    if kind in (TRASH, ORPHAN, SNAPSHOT, SOURCE):
        with open_session(args) as session:
            return list(_state_names(session, kind, words))
    glance = at_a_glance(store_options(args), _tables(kind))
    if glance is not None:
        records = (record for table in _tables(kind) for record in glance.tables[table])
        return [name for record in records for name in record.get("names") or [record["id"][:12]]]
    with open_reading(args) as store:
        return list(_table_names(store.catalog(), kind))


def _tables(kind: str) -> tuple[str, ...]:
    return {IMAGE: ("images",), CONTAINER: ("containers",), LAYER: ("layers",)}.get(
        kind, ("images", "containers")
    )


def _table_names(catalog: Catalog, kind: str) -> Iterator[str]:
    for table in _tables(kind):
        for record in getattr(catalog, table):
            yield from record.names or (record.id[:12],)


def _state_names(session: Session, kind: str, words: list[str]) -> Iterator[str]:
    if kind == TRASH:
        yield from (entry.id for entry in session.trash.list())
    elif kind == ORPHAN:
        yield from (orphan.id for orphan in session.orphans.list())
    elif kind == SNAPSHOT:
        yield from (one.name for one in session.history.list(words[0] if words else ""))
    else:
        yield from _table_names(session.store.catalog(), OBJECT)
        for container in session.store.catalog().containers:
            label = container.names[0] if container.names else container.id[:12]
            yield from (f"{label}@{one.name}" for one in session.history.list(container.id))


# -- scripts ---------------------------------------------------------------------------------------


def _options(verb: Verb | None) -> list[Option]:
    return [*GLOBAL, *(verb.options if verb else ())]


def _last(verb: Verb) -> str:
    return "1" if verb.arguments and verb.arguments[-1].many in ("*", "+") else ""


def _kind(argument: Argument) -> str:
    """``=a b`` for choices, else what the argument is completed with."""
    return f"={' '.join(argument.choices)}" if argument.choices else argument.complete


def _spellings(options: Iterable[Option], wanted: Callable[[Option], bool] = lambda option: True) -> str:
    return " ".join(name for option in options if wanted(option) for name in option.names)


def bash() -> str:
    """The script for bash."""
    cases = []
    for verb in VERBS:
        kinds = " ".join(f"'{_kind(argument)}'" for argument in verb.arguments)
        options = _spellings(_options(verb))
        cases.append(
            f"    {'|'.join(verb.names)}) kinds=({kinds}) many='{_last(verb)}' options='{options}' ;;"
        )
    every = [option for verb in VERBS for option in verb.options]
    takes = sorted(set(_spellings([*GLOBAL, *every], lambda option: bool(option.metavar)).split()))
    files = sorted(set(_spellings([*GLOBAL, *every], lambda option: option.complete == FILE).split()))
    return _BASH.format(
        cases="\n".join(cases),
        verbs=" ".join(BY_NAME),
        options=_spellings(GLOBAL),
        takes="|".join(takes),
        files="|".join(files),
    )


_BASH = """\
# bash completion for fsd: source it, or put it into bash-completion's completions directory as fsd
_fsd() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} verb='' kinds=() many='' options='{options}' given=() store=() at
  COMPREPLY=()
  for ((at = 1; at < COMP_CWORD; at++)); do
    case ${{COMP_WORDS[at]}} in
    -g|--graph|--root|-R|--run|--runroot|--imagestore|-s|--storage-driver|--storage-opt)
      store+=("${{COMP_WORDS[at]}}" "${{COMP_WORDS[at + 1]}}"); ((at++)) ;;
    {takes}) ((at++)) ;;
    -*) ;;
    *) if [[ -z $verb ]]; then verb=${{COMP_WORDS[at]}}; else given+=("${{COMP_WORDS[at]}}"); fi ;;
    esac
  done
  case ${{COMP_WORDS[COMP_CWORD - 1]}} in
  {files}) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
  esac
  if [[ -z $verb ]]; then
    mapfile -t COMPREPLY < <(compgen -W '{verbs} {options}' -- "$word"); return
  fi
  case $verb in
{cases}
  esac
  if [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word"); return
  fi
  local place=${{#given[@]}} kind
  if ((place >= ${{#kinds[@]}})) && [[ -n $many ]]; then place=$((${{#kinds[@]}} - 1)); fi
  kind=${{kinds[place]:-}}
  case $kind in
  '') ;;
  =*) mapfile -t COMPREPLY < <(compgen -W "${{kind#=}}" -- "$word") ;;
  file) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
  *)
    local IFS=$'\\n'
    local names
    names=$(fsd "${{store[@]}}" __complete "$kind" "${{given[@]}}" 2>/dev/null)
    mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
    if [[ $word == *:* && $COMP_WORDBREAKS == *:* ]]; then
      COMPREPLY=("${{COMPREPLY[@]#"${{word%"${{word##*:}}"}}"}}")
    fi ;;
  esac
}}
complete -F _fsd fsd
"""


def zsh() -> str:
    """The script for zsh."""
    lines = ["#compdef fsd", "", "_fsd_names() {", "  local -a found"]
    lines += ['  found=(${(f)"$(fsd __complete $1 2>/dev/null)"})', "  compadd -a found", "}", "", "_fsd() {"]
    lines += ["  local -a verbs", "  verbs=("]
    lines += [f"    '{verb.name}:{_quoted(verb.summary)}'" for verb in VERBS]
    lines += ["  )", "  local context state line", "  _arguments -C \\"]
    lines += [f"    {_zsh_option(option)} \\" for option in GLOBAL]
    lines += ["    '1:command:->verb' '*::argument:->rest'", "  case $state in"]
    lines += ["  verb) _describe command verbs ;;", "  rest) case $words[1] in"]
    for verb in VERBS:
        parts = [*(_zsh_option(o) for o in _options(verb)), *(_zsh_argument(a) for a in verb.arguments)]
        lines.append(f"    {'|'.join(verb.names)}) _arguments {' '.join(parts)} ;;")
    return "\n".join([*lines, "    esac ;;", "  esac", "}", "", '_fsd "$@"', ""])


def _quoted(text: str) -> str:
    return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _zsh_option(option: Option) -> str:
    value = (
        f":{_quoted(option.metavar)}:{_zsh_action(option.choices, option.complete)}" if option.metavar else ""
    )
    names = option.names[0] if len(option.names) == 1 else "{" + ",".join(option.names) + "}"
    star = "'*'" if option.many else ""
    return f"{star}{names}'[{_quoted(option.help)}]{value}'"


def _zsh_argument(argument: Argument) -> str:
    place = "*" if argument.many in ("*", "+") else "" if not argument.many else ":"
    start = "*:" if place == "*" else ":" if not place else "::"
    return f"'{start}{_quoted(argument.name)}:{_zsh_action(argument.choices, argument.complete)}'"


def _zsh_action(choices: tuple[str, ...], complete: str) -> str:
    if choices:
        return f"({' '.join(choices)})"
    return "_files" if complete == FILE else f"_fsd_names {complete}" if complete else " "


def fish() -> str:
    """The script for fish."""
    none = "__fish_use_subcommand"
    lines = ["complete -c fsd -f"]
    lines += [_fish_option(option, "") for option in GLOBAL]
    for verb in VERBS:
        lines.append(f"complete -c fsd -n {none} -a {verb.name} -d {_fish_text(verb.summary)}")
        condition = f"-n '__fish_seen_subcommand_from {' '.join(verb.names)}'"
        lines += [_fish_option(option, condition) for option in verb.options]
        for argument in verb.arguments:
            if argument.choices:
                lines.append(f"complete -c fsd {condition} -a '{' '.join(argument.choices)}'")
            elif argument.complete == FILE:
                lines.append(f"complete -c fsd {condition} -F")
            elif argument.complete:
                lines.append(
                    f"complete -c fsd {condition} -a '(fsd __complete {argument.complete} 2>/dev/null)'"
                )
    return "\n".join([*dict.fromkeys(lines), ""])


def _fish_option(option: Option, condition: str) -> str:
    names = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names]
    value = [] if not option.metavar else ["-r", "-F"] if option.complete == FILE else ["-x"]
    choices = [f"-a '{' '.join(option.choices)}'"] if option.choices else []
    parts = ["complete -c fsd", condition, *names, *value, *choices, f"-d {_fish_text(option.help)}"]
    return " ".join(part for part in parts if part)


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
