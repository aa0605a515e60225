"""The command line. Each verb is a function; its arguments and its help come from its signature.

A mistake of the user ends with one sentence and exit code 1; missing or invalid arguments exit with 2. A sweep in which
runs failed, or none has a result, exits with 1 after its report.
Everything that needs JAX is imported by the verb that needs it, so that `--help` is quick.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tyro

import omarl_jax
from omarl_jax.cli import data, play, sweep, train
from omarl_jax.cli.terminal import WHOLE_NUMBERS, complain, console, errors
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
    sys.path.append(os.getcwd())  # tasks and methods of the user's own, named as modules
    warnings.showwarning = _show_warning
    try:
        with WHOLE_NUMBERS:
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
    except Exception:
        if (reason := _without_devices()) is None:
            raise
        complain("error", reason)
        code = 1
    sys.exit(code or 0)


def _without_devices() -> str | None:
    """Why JAX has no device to compute on, or None if it has; it says so in many ways, whatever touches it first."""
    import jax

    try:
        jax.devices()
    except Exception as error:
        asked, detail = os.environ.get("JAX_PLATFORMS", ""), str(error).partition("\n")[0].rstrip(".")
        return f"JAX finds no device with JAX_PLATFORMS='{asked}'; without it, JAX takes what there is. {detail}"
    return None


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


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Shows what a person has to know on one line, and all else as Python does."""
    if category is UserWarning:
        complain("warning", str(message))
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _check_verb(verb: str, verbs: dict[str, Any], program: str) -> None:
    if verb not in verbs and not verb.startswith("-"):
        raise unknown(f"verb of {program}", verb, verbs)
