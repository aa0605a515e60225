"""What the verbs share: their positional arguments, where they print, and how name=value is read."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from omarl_jax.errors import UserError

# tyro names positional arguments after their type, unless it has a metavar.
TaskName = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TASK")]]
DatasetName = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DATASET")]]
DatasetFolder = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DATASET")]]

_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - set(b"\n\t"), "\ufffd")


class _Terminal(Console):
    """Shows texts of files, which may hold brackets and what terminals take as orders, as nothing but text."""

    def __init__(self, stderr: bool = False):
        super().__init__(stderr=stderr, markup=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=segment.text.translate(_CONTROLS))


console = _Terminal()
errors = _Terminal(stderr=True)

WHOLE_NUMBERS = tyro.constructors.ConstructorRegistry()


@WHOLE_NUMBERS.primitive_rule
def _whole_number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Integers may be written as 1e3, too."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec[int](
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _integer(texts[0]),
        is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        if not (number := float(text)).is_integer():
            raise
        return int(number)


def print_paths(paths: Mapping[str, Path]) -> None:
    """Says where files lie, each on one line that can be copied."""
    for name, path in paths.items():
        console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def complain(what: str, message: str) -> None:
    """One line on stderr."""
    errors.print(Text.assemble((f"{what}:", "bold red"), " ", " ".join(message.split())), soft_wrap=True)


def pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`n_agents=5` -> {"n_agents": 5}; any other text than true, false or a Python value is a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"Options are written name=value, not '{pair}'.")
        try:
            options[name] = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            options[name] = value
    return options
