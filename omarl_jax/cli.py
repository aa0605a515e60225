"""The command line. Each verb is a function here; its arguments and its help come from its signature.

A mistake of the user ends with one sentence and exit code 1; so does a sweep in which runs failed or none has a
result, after its report.
Everything that needs JAX is imported by the verb that needs it, so that `--help` is quick.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from omarl_jax.errors import UserError, check_seeds, unknown
from omarl_jax.files import require_writable

if TYPE_CHECKING:
    from omarl_jax.sweep import Grid

_EPISODES_AT_ONCE = 10_000
_console = Console(markup=False)  # brackets in what is printed are no markup
_errors = Console(stderr=True, markup=False)


def main() -> None:
    """Runs the command line and exits."""
    try:
        code = _run(sys.argv[1:])
    except UserError as error:
        _complain("error", str(error))
        code = 1
    except KeyboardInterrupt:
        _errors.print("Stopped. Sweeps and trainings continue where they were when they are started again.")
        code = 130
    sys.exit(code or 0)


def _run(arguments: Sequence[str]) -> int | None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    _check_verb(verb, _VERBS, "omarl")
    if verb == "data":
        _check_verb(rest[0] if rest else "--help", _DATA_VERBS, "omarl data")
        return tyro.extras.subcommand_cli_from_dict(_DATA_VERBS, prog="omarl data", args=rest or ["--help"])
    if verb == "train" and rest and not rest[0].startswith("-"):
        return _train(rest[0], rest[1:])
    about = "Offline multi-agent reinforcement learning in JAX."
    return tyro.extras.subcommand_cli_from_dict(_VERBS, prog="omarl", description=about, args=arguments or ["--help"])


def _check_verb(verb: str, verbs: dict[str, Any], program: str) -> None:
    if verb not in verbs and not verb.startswith("-"):
        raise unknown(f"verb of {program}", verb, verbs)


def list_names() -> None:
    """Lists the algorithms, the tasks and the datasets."""
    import omarl_envs

    from omarl_jax import algorithms
    from omarl_jax.data.recipes import QUALITIES

    table = Table("algorithms", "tasks", "datasets", box=None, header_style="bold")
    table.add_row("\n".join(algorithms.methods()), "\n".join(omarl_envs.task_names()), "\n".join(QUALITIES))
    _console.print(table)


def collect(
    task: tyro.conf.Positional[str],
    dataset: tyro.conf.Positional[str],
    out: pathlib.Path,
    seed: int = 0,
    size: int | None = None,
    option: tuple[str, ...] = (),
) -> None:
    """Makes a dataset by its recipe and writes it to disk, with its card.

    Args:
        task: for example particle/spread.
        dataset: which recipe, for example medium; `omarl list` lists them.
        out: folder to write; it must not exist yet.
        seed: of the rollouts.
        size: transitions; by default the published number.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.data import card, storage
    from omarl_jax.data.recipes import load_dataset

    storage.require_new(out)
    with _console.status("Making the data (a log of learning takes a minute or more)"):
        made = load_dataset(task, dataset, seed, size, **_pairs(option))
    storage.save(made, out)
    card.write(card.card(made), out)
    _console.print(f"{made.size:,} transitions, mean return {made.metadata['mean_return']:.1f} -> {out}")


def train() -> None:
    """Trains one algorithm: omarl train ALGORITHM --help tells its arguments.

    Several seeds, and several values of float hyperparameters, are trained in one program.
    """
    from omarl_jax import algorithms

    _console.print("usage: omarl train ALGORITHM TASK DATASET [options]")
    _console.print("ALGORITHM is one of " + ", ".join(algorithms.methods()) + "; with --help it tells its options.")


def evaluate(
    policy: tyro.conf.Positional[pathlib.Path],
    episodes: int = 1000,
    seed: int = 0,
    risk: float = 0.1,
    gif: pathlib.Path | None = None,
    map: pathlib.Path | None = None,
    quantiles: pathlib.Path | None = None,
    at: tuple[int, ...] = (),
    option: tuple[str, ...] = (),
) -> None:
    """Plays episodes with a trained policy and prints their returns.

    Args:
        policy: the folder of a run, or a policy file.
        episodes: how many.
        seed: of the episodes.
        risk: share of the worst episodes that CVaR is the mean of.
        gif: also write one episode as a GIF.
        map: also write the paths of one episode on a map, as a PNG (uav tasks).
        quantiles: also draw the quantiles of the chosen actions' values in one episode, as a PNG (ciqr and ccqr).
        at: steps of that episode to draw them at; by default four, evenly spread.
        option: constructor arguments of the task, as name=value.
    """
    import jax
    import numpy as np

    from omarl_jax import evaluation, pictures, statistics
    from omarl_jax.data.recipes import make_env
    from omarl_jax.export import load_policy

    if episodes < 1:
        raise UserError(f"episodes must be at least 1, not {episodes}.")
    if not 0 < risk <= 1:
        raise UserError(f"risk must lie in (0, 1], not {risk}.")
    check_seeds([seed])
    saved = load_policy(policy / "policy.npz" if policy.is_dir() else policy)
    env = make_env(saved.spec.name, **(saved.metadata.get("options", {}) | _pairs(option)))
    if saved.count is not None:
        raise UserError(f"'{policy}' holds {saved.count} policies, not one.")
    if env.task_spec != saved.spec:
        raise UserError(f"This policy was trained on another form of '{saved.spec.name}'; give its --option values.")
    act, carry = saved.functions
    parts = [min(_EPISODES_AT_ONCE, episodes - n) for n in range(0, episodes, _EPISODES_AT_ONCE)]
    play = jax.jit(lambda key, n: evaluation.evaluate(env, act, carry, saved.params, key, n), static_argnums=1)
    keys = jax.random.split(jax.random.key(seed), len(parts))
    played = [play(key, n) for key, n in zip(keys, parts, strict=True)]
    rows = {name: np.concatenate([part[name] for part in played]) for name in ("return", *env.metric_names, "length")}
    table = Table("", "mean", "sd", "min", "max", f"CVaR {risk:g}", "episodes not 0", box=None, header_style="bold")
    if env.reference is not None:
        rows = {"score": env.reference.normalise(rows["return"])} | rows
    for name, values in rows.items():
        numbers = [values.mean(), values.std(), values.min(), values.max()]
        tail = f"{statistics.cvar(values, risk):.2f}" if name in ("score", "return") else ""
        exposed = f"{(values != 0).mean():.1%}" if name.startswith("risk") else ""
        table.add_row(name, *(f"{number:.2f}" for number in numbers), tail, exposed)
    _console.print(table)
    at_steps = functools.partial(pictures.write_quantiles, at=at)
    drawings = ((pictures.write_gif, gif), (pictures.write_map, map), (at_steps, quantiles))
    for draw, path in drawings:
        if path is not None:
            draw(env, saved, path, seed)
            _console.print(f"{path}", highlight=False, soft_wrap=True)


def sweep(grid: tyro.conf.Positional[pathlib.Path], out: pathlib.Path | None = None, wandb: str | None = None) -> int:
    """Trains all runs of a grid, continues those that were killed, and writes the report.

    Args:
        grid: a TOML file, for example experiments/omar_particle.toml.
        out: folder for the runs; by default results/NAME OF THE GRID.
        wandb: a Weights & Biases project to log to; offline where there is no key.
    """
    from omarl_jax.sweep import read_grid

    return _sweep(read_grid(grid), out or pathlib.Path("results") / grid.stem, wandb)


def report(runs: tyro.conf.Positional[pathlib.Path], out: pathlib.Path | None = None, pictures: bool = False) -> None:
    """Makes tables, curves and an HTML page of finished runs.

    Args:
        runs: a folder with runs in it, at any depth.
        out: folder to write to; by default RUNS/report.
        pictures: also play an episode with the first run of each method, to draw its paths on a map and the quantiles
            it has learned, where the task has a map and the method quantiles.
    """
    from omarl_jax import report, results

    finished = results.load_runs(runs)
    if not finished:
        raise UserError(f"There are no finished runs in '{runs}'.")
    paths = report.write_report(finished, out or runs / "report", results.unfinished(runs), pictures)
    report.print_table(results.table(finished), _console)
    for name, path in paths.items():
        _console.print(f"{name}: {path}", highlight=False, soft_wrap=True)


def behaviour(
    task: tyro.conf.Positional[str],
    out: pathlib.Path,
    medium: float,
    expert: float,
    replay: float | None = None,
    algorithm: str = "matd3",
    seeds: tuple[int, ...] = (0,),
    rounds: int = 30_000,
    every: int = 250,
    set: tuple[str, ...] = (),
    option: tuple[str, ...] = (),
) -> None:
    """Trains the behaviour policies that datasets are made of, online, and writes their snapshots.

    Args:
        task: for example particle/spread.
        out: file to write, an .npz.
        medium: normalised score that the medium data should have.
        expert: the same for the expert data.
        replay: the same for the mean of medium-replay; by default whatever training up to medium gives.
        algorithm: an online method.
        seeds: of training; each quality is taken from the one that meets it best.
        rounds: learning rounds, each after 100 environment steps.
        every: rounds between snapshots.
        set: hyperparameters that differ from the method's defaults, as name=value.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.data import behaviour
    from omarl_jax.data.recipes import make_env

    require_writable(out)
    env = make_env(task, **_pairs(option))
    if env.reference is None:
        raise UserError(f"'{task}' in this form has no reference returns to score snapshots with.")
    overrides = _pairs(set)
    snapshots = behaviour.train(env, algorithm, overrides, seeds, rounds, every)
    chosen = behaviour.choose(env, snapshots, medium, expert, replay)
    behaviour.save(out, env, algorithm, overrides, snapshots, chosen)
    for quality, numbers in chosen.items():
        rounds_scores = [(snapshots[i]["round"], env.reference.normalise(snapshots[i]["explored"])) for i in numbers]
        told = ", ".join(f"{number}: {score:.1f}" for number, score in rounds_scores)
        _console.print(f"{quality} (seed {snapshots[numbers[0]]['seed']}, round: score) {told}")


def prey(task: tyro.conf.Positional[str], out: pathlib.Path, seed: int = 0, rounds: int = 2_000) -> None:
    """Trains a prey together with the predators that hunt it, by MATD3. It is loaded with the task's `prey=FILE`.

    Args:
        task: particle/tag or particle/world.
        out: file to write, an .npz.
        seed: of training.
        rounds: learning rounds, each after 100 environment steps. Of the prey that ship, that of tag had 2,000, that of
            world 4,000.
    """
    from omarl_jax.data import behaviour
    from omarl_jax.data.recipes import make_env

    require_writable(out)
    env = make_env(task, prey="learner")
    *_, last = behaviour.train(env, "matd3", {}, [seed], rounds, every=rounds, final_lr=1.0)
    behaviour.save_prey(out, env, last["policy"])
    _console.print(f"{out}")


def demo(out: pathlib.Path = pathlib.Path("results/demo"), seeds: int = 3) -> int:
    """Makes data of cooperative navigation, trains OMAR, MA-CQL and BC, and prints how they compare.

    Args:
        out: folder for everything it makes.
        seeds: runs of each method.
    """
    from omarl_jax.data.recipes import make_env
    from omarl_jax.export import load_policy
    from omarl_jax.pictures import write_gif
    from omarl_jax.sweep import make_grid

    block = {
        "tasks": ["particle/spread"],
        "datasets": ["medium-replay"],
        "algorithms": ["omar", "cql", "bc"],
        "hyperparameters": {"batch_size": [256]},  # a quarter of the published one, so that two CPU cores need minutes
    }
    grid = make_grid({"seeds": list(range(seeds)), "evaluations": 10, "episodes": 64, "block": [block]})
    code = _sweep(grid, out, None)
    if code == 0:
        team = load_policy(out / "runs" / grid.runs[0].name / "policy.npz")
        gif = out / "report" / "omar.gif"
        write_gif(make_env(team.spec.name), team, gif, seed=0)
        _console.print(f"trained team: {gif}", highlight=False, soft_wrap=True)
    return code


def data_list() -> None:
    """Lists what can be made by recipe: tasks, qualities, sizes and behaviour policies."""
    from omarl_jax.data import recipes

    table = Table("task", "dataset", "transitions", "score", box=None, header_style="bold")
    for row in recipes.catalogue():
        table.add_row(row.task, row.quality, f"{row.size:,}", "" if row.score is None else f"{row.score:.1f}")
    _console.print(table)


def data_card(
    dataset: tyro.conf.Positional[str],
    quality: tyro.conf.Positional[str | None] = None,
    out: pathlib.Path | None = None,
    seed: int = 0,
    size: int | None = None,
    option: tuple[str, ...] = (),
) -> None:
    """Prints the card of a dataset: returns, episodes, actions, reference scores.

    Args:
        dataset: a folder on disk, or a task.
        quality: of a task, which recipe, for example medium.
        out: folder to write card.md and card.png to.
        seed: of the rollouts, for a recipe.
        size: transitions, for a recipe.
        option: constructor arguments of the task, as name=value.
    """
    from rich.markdown import Markdown

    from omarl_jax.data import card, storage
    from omarl_jax.data.recipes import load_dataset

    opened = storage.load(dataset) if quality is None else load_dataset(dataset, quality, seed, size, **_pairs(option))
    made = card.card(opened)
    _console.print(Markdown(made.markdown()))
    if out is not None:
        card.write(made, out)


def data_verify(dataset: tyro.conf.Positional[pathlib.Path]) -> None:
    """Checks that a dataset on disk is whole, unchanged and sensible.

    Args:
        dataset: its folder.
    """
    from omarl_jax.data import storage

    storage.verify(dataset)
    _console.print(f"{dataset} is whole.")


def data_import(file: tyro.conf.Positional[pathlib.Path], out: pathlib.Path, option: tuple[str, ...] = ()) -> None:
    """Makes a dataset of uav/iot out of a log in the layout of MA-CQR (CSV), with its card.

    Args:
        file: the log.
        out: folder to write; it must not exist yet.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.data import card, importers, storage

    storage.require_new(out)
    made = importers.read_csv(file, **_pairs(option))
    storage.save(made, out)
    card.write(card.card(made), out)
    _console.print(f"{made.size:,} transitions, mean return {made.metadata['mean_return']:.1f} -> {out}")


def data_export(dataset: tyro.conf.Positional[pathlib.Path], out: pathlib.Path) -> None:
    """Writes a dataset of uav/iot as a log in the layout of MA-CQR (CSV).

    Args:
        dataset: its folder.
        out: the file.
    """
    from omarl_jax.data import importers, storage

    made = storage.load(dataset)
    importers.write_csv(made, out)
    _console.print(f"{made.size:,} transitions -> {out}")


_VERBS: Any = {
    "list": list_names,
    "collect": collect,
    "train": train,
    "evaluate": evaluate,
    "sweep": sweep,
    "report": report,
    "data": lambda: None,
    "behaviour": behaviour,
    "prey": prey,
    "demo": demo,
}
_VERBS["data"].__doc__ = "Lists, describes, verifies, imports and exports datasets: omarl data --help."
_DATA_VERBS: Any = {
    "list": data_list,
    "card": data_card,
    "verify": data_verify,
    "import": data_import,
    "export": data_export,
}


def _train(algorithm: str, arguments: Sequence[str]) -> int:
    """`omarl train ALGORITHM`: the method's own hyperparameters are arguments, lists of floats span a grid."""
    from omarl_jax import algorithms
    from omarl_jax.sweep import make_grid

    method = algorithms.find(algorithm)
    helps = _field_docs(method.config)
    settings = [
        ("task", tyro.conf.Positional[str], dataclasses.MISSING, "For example particle/spread."),
        ("dataset", tyro.conf.Positional[str], dataclasses.MISSING, "A recipe (see omarl list) or a folder on disk."),
        ("seeds", tuple[int, ...], (0,), "Seeds of training."),
        ("data_seed", int | None, None, "Seed of the data, for all; by default each run's own seed."),
        ("rounds", int | None, None, "Learning rounds; by default those of the preset."),
        ("size", int | None, None, "Transitions of the data; by default the published number."),
        ("out", pathlib.Path, pathlib.Path("results/train"), "Folder for the runs."),
        ("evaluations", int, 20, "Evaluations during training."),
        ("episodes", int, 32, "Episodes of each of them."),
        ("final_episodes", int, 1000, "Episodes of the last policy."),
        ("option", tuple[str, ...], (), "Constructor arguments of the task, as name=value."),
        ("wandb", str | None, None, "A Weights & Biases project to log to; offline where there is no key."),
    ]
    for field in dataclasses.fields(method.config):
        kind: Any = tuple[float, ...] if field.type is float else field.type
        told = f"{helps.get(field.name, '')} Default {field.default}, or what was published for the task and dataset."
        settings.append((field.name, kind | None, None, told))
    fields = [
        (name, Annotated[kind, tyro.conf.arg(help=told)], dataclasses.field(default=default))
        for name, kind, default, told in settings
    ]
    summary = (inspect.getdoc(sys.modules[method.config.__module__]) or "").partition("\n\n")[0]
    form = dataclasses.make_dataclass("Train", fields)
    given: Any = tyro.cli(form, args=arguments, prog=f"omarl train {algorithm}", description=summary)

    chosen = {f.name: getattr(given, f.name) for f in dataclasses.fields(method.config)}
    block = {
        "tasks": [given.task],
        "datasets": [given.dataset],
        "algorithms": [algorithm],
        "hyperparameters": {
            # A tuple of floats spans a grid; any other tuple is one value.
            name: list(value) if field_type is float else [value]
            for name, value in chosen.items()
            if value is not None
            for field_type in [next(f.type for f in dataclasses.fields(method.config) if f.name == name)]
        },
        "options": _pairs(given.option),
    }
    block |= {name: value for name in ("rounds", "size") if (value := getattr(given, name)) is not None}
    grid = make_grid(
        {
            "seeds": list(given.seeds),
            "data_seed": "seed" if given.data_seed is None else given.data_seed,
            "evaluations": given.evaluations,
            "episodes": given.episodes,
            "final_episodes": given.final_episodes,
            "block": [block],
        }
    )
    return _sweep(grid, given.out, given.wandb)


def _sweep(grid: "Grid", out: pathlib.Path, wandb: str | None) -> int:
    from omarl_jax import report as reports
    from omarl_jax import results
    from omarl_jax import sweep as sweeps

    grouped = sweeps.packs(grid.runs)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[score]}"),
    )
    with Progress(*columns, console=_console) as progress:
        bars = [
            progress.add_task(_title(pack), total=pack[0].rounds, rate="", score="", start=False) for pack in grouped
        ]

        def tell(told: "sweeps.Progress") -> None:
            progress.start_task(bars[told.pack])
            progress.update(
                bars[told.pack],
                completed=told.round,
                rate=f"{told.updates_per_second:,.0f} updates/s",
                score=f"{told.unit} {told.value:.1f}",
            )

        failed = sweeps.sweep(grid, out, tell, wandb)
    names = {run.name for run in grid.runs}
    there = results.load_runs(out / "runs") if (out / "runs").is_dir() else []
    finished = [run for run in there if run.folder.name in names]
    if finished:
        paths = reports.write_report(finished, out / "report")
        reports.print_table(results.table(finished), _console)
        for name, path in paths.items():
            _console.print(f"{name}: {path}", highlight=False, soft_wrap=True)
    for run in finished:
        if run.failure is not None:
            _complain("no result", f"{run.folder.name}: {run.failure}")
    for name, reason in failed.items():
        _complain("failed", f"{name}: {reason}")
    return 0 if any(run.failure is None for run in finished) and not failed else 1


def _complain(what: str, message: str) -> None:
    """One line on stderr."""
    _errors.print(Text.assemble((f"{what}:", "bold red"), " ", " ".join(message.split())), soft_wrap=True)


def _title(pack: list[Any]) -> str:
    run = pack[0]
    return f"{run.variant or run.algorithm} on {run.task} {run.dataset}, {len(pack)} runs"


def _pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """`n_agents=5` -> {"n_agents": 5}; what is neither true, false nor a Python value is a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"What is set is written name=value, not '{pair}'.")
        try:
            options[name] = ast.literal_eval(value.title() if value in ("true", "false") else value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _field_docs(cls: type) -> dict[str, str]:
    """The strings that stand below the fields of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for part in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.getsource(part).lstrip()).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(told))):
                    docs[name] = told
    return docs


if __name__ == "__main__":
    main()
