"""The command line. Each verb is a function; its arguments and its help come from its signature.

A mistake of the user ends with one sentence and exit code 1; missing or invalid arguments exit with 2. A sweep in which
runs failed, or none has a result, exits with 1 after its report.
Everything that needs JAX is imported by the verb that needs it, so that `--help` is quick.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

import tyro

import omarl_jax
from omarl_jax.cli import data, play, sweep, train
from omarl_jax.cli.terminal import complain, console, errors
from omarl_jax.errors import UserError, unknown

_VERBS: dict[str, Any] = {
    "list": play.list_names,
    "collect": data.collect,
    "train": train.train,
    "evaluate": play.evaluate,
    "sweep": sweep.sweep,
    "report": play.report,
    "data": lambda: None,
    "behaviour": data.behaviour,
    "prey": data.prey,
    "demo": sweep.demo,
}
_VERBS["data"].__doc__ = "Lists, describes, verifies, imports and exports datasets: omarl data --help."
_DATA_VERBS: dict[str, Any] = {
    "list": data.list_,
    "card": data.card,
    "verify": data.verify,
    "import": data.import_,
    "export": data.export,
}


def main() -> None:
    """Runs the command line and exits."""
    # GPUs and TPUs would multiply float32 matrices with less; values of returns in the thousands need it all.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
    try:
        code = _run(sys.argv[1:])
    except UserError as error:
        complain("error", str(error))
        code = 1
    except KeyboardInterrupt:
        errors.print("Stopped. Sweeps and trainings continue from their last checkpoint when started again.")
        code = 130
    except BrokenPipeError:  # the program that reads the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def _run(arguments: Sequence[str]) -> int | None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb == "--version":
        console.print(f"omarl_jax {omarl_jax.__version__}", highlight=False)
        return 0
    _check_verb(verb, _VERBS, "omarl")
    if verb == "data":
        _check_verb(rest[0] if rest else "--help", _DATA_VERBS, "omarl data")
        return tyro.extras.subcommand_cli_from_dict(_DATA_VERBS, prog="omarl data", args=rest or ["--help"])
    if verb == "train" and rest and not rest[0].startswith("-"):
        return train.train_with(rest[0], rest[1:])
    about = "Offline multi-agent reinforcement learning in JAX. omarl --version prints the version."
    return tyro.extras.subcommand_cli_from_dict(_VERBS, prog="omarl", description=about, args=arguments or ["--help"])


def _check_verb(verb: str, verbs: dict[str, Any], program: str) -> None:
    if verb not in verbs and not verb.startswith("-"):
        raise unknown(f"verb of {program}", verb, verbs)
