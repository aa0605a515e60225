"""Verbs that make data, behaviour policies and prey: `collect`, `behaviour`, `prey`, and `omarl data`."""

import pathlib
from typing import Annotated

import tyro
from rich.table import Table

from omarl_jax.cli.terminal import DatasetFolder, DatasetName, TaskName, console, pairs
from omarl_jax.errors import UserError


def collect(
    task: TaskName,
    dataset: DatasetName,
    out: pathlib.Path,
    seed: int = 0,
    size: int | None = None,
    option: tuple[str, ...] = (),
) -> None:
    """Makes a dataset by its recipe and writes it to disk, with its card.

    Args:
        task: for example particle/spread.
        dataset: which recipe, for example medium; `omarl data list` lists them.
        out: folder to write; it must not exist yet.
        seed: of the rollouts.
        size: transitions; by default the published number.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.data import card, storage
    from omarl_jax.datasets.catalogue import load_dataset

    storage.require_new(out)
    with console.status("Making the data (replay data take a minute or more)"):
        made = load_dataset(task, dataset, seed, size, **pairs(option))
    storage.save(made, out, lambda partial: card.write(card.card(made), partial))
    console.print(f"{made.size:,} transitions, mean return {made.metadata['mean_return']:.1f} -> {out}")


def behaviour(
    task: TaskName,
    out: pathlib.Path,
    medium: float,
    expert: float | None = None,
    replay: float | None = None,
    algorithm: str = "matd3",
    seeds: tuple[int, ...] = (0,),
    updates: int = 30_000,
    every: int = 250,
    set: tuple[str, ...] = (),
    option: tuple[str, ...] = (),
) -> None:
    """Trains behaviour policies for datasets online, and writes their snapshots.

    Args:
        task: for example particle/spread.
        out: file to write, an .npz.
        medium: normalised score that the medium data should have.
        expert: normalised score that the expert data should have; by default none are made.
        replay: mean normalised score of medium-replay; by default it spans training up to medium.
        algorithm: an online method.
        seeds: of training; each quality is taken from the seed that meets it best.
        updates: one after each 100 environment steps.
        every: updates between snapshots.
        set: hyperparameters that differ from the method's defaults, as name=value.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.datasets import behaviour
    from omarl_jax.files import require_writable
    from omarl_jax.tasks import make_env

    require_writable(out)
    env = make_env(task, **pairs(option))
    if env.reference is None:
        raise UserError(f"'{task}' in this form has no reference returns to score snapshots with.")
    overrides = pairs(set)
    snapshots = behaviour.train(env, algorithm, overrides, seeds, updates, every)
    chosen = behaviour.choose(env, snapshots, medium, expert, replay)
    behaviour.save(out, env, algorithm, overrides, snapshots, chosen)
    for quality, numbers in chosen.items():
        scores = [(snapshots[i]["updates"], env.reference.normalise(snapshots[i]["explored"])) for i in numbers]
        listed = ", ".join(f"{made}: {score:.1f}" for made, score in scores)
        console.print(f"{quality} (seed {snapshots[numbers[0]]['seed']}, updates: score) {listed}")


def prey(task: TaskName, out: pathlib.Path, seed: int = 0, updates: int = 2_000) -> None:
    """Trains a prey together with the predators that hunt it, by MATD3. It is loaded with the task's `prey=FILE`.

    Args:
        task: particle/tag or particle/world.
        out: file to write, an .npz.
        seed: of training.
        updates: one after each 100 environment steps. The bundled prey had 2,000 (tag) and 4,000 (world).
    """
    from omarl_jax.datasets import behaviour
    from omarl_jax.files import require_writable
    from omarl_jax.tasks import make_env

    require_writable(out)
    env = make_env(task, prey="learner")
    *_, last = behaviour.train(env, "matd3", {}, [seed], updates, every=updates, final_lr=1.0)
    behaviour.save_prey(out, env, last["policy"])
    console.print(f"{out}")


def list_() -> None:
    """Lists the datasets that can be made by recipe: task, name, size, and score of the behaviour."""
    from omarl_jax.datasets import catalogue

    table = Table("task", "dataset", "transitions", "score", box=None, header_style="bold")
    for row in catalogue.catalogue():
        table.add_row(row.task, row.quality, f"{row.size:,}", "" if row.score is None else f"{row.score:.1f}")
    console.print(table)


def card(
    dataset: DatasetName,
    quality: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="QUALITY")]] = None,
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
    from omarl_jax.datasets.catalogue import load_dataset

    opened = storage.load(dataset) if quality is None else load_dataset(dataset, quality, seed, size, **pairs(option))
    made = card.card(opened)
    if console.is_terminal:
        console.print(Markdown(made.markdown()))
    else:  # whole lines, for files and other programs
        console.print(made.markdown(), end="", highlight=False, soft_wrap=True)
    if out is not None:
        card.write(made, out)


def verify(dataset: DatasetFolder) -> None:
    """Checks that a dataset on disk is whole, unchanged and sensible.

    Args:
        dataset: its folder.
    """
    from omarl_jax.data import storage

    storage.verify(dataset)
    console.print(f"{dataset} is whole.", soft_wrap=True)


def import_(
    file: tyro.conf.Positional[Annotated[pathlib.Path, tyro.conf.arg(metavar="LOG")]],
    out: pathlib.Path,
    option: tuple[str, ...] = (),
) -> None:
    """Makes a dataset of uav/iot out of a log in the layout of MA-CQR (CSV), with its card.

    Args:
        file: the log.
        out: folder to write; it must not exist yet.
        option: constructor arguments of the task, as name=value.
    """
    from omarl_jax.data import card, storage
    from omarl_jax.data.importers import macqr_csv

    storage.require_new(out)
    made = macqr_csv.read_csv(file, **pairs(option))
    storage.save(made, out, lambda partial: card.write(card.card(made), partial))
    mean = made.metadata.get("mean_return")
    returns = "no whole episode" if mean is None else f"mean return {mean:.1f}"
    console.print(f"{made.size:,} transitions, {returns} -> {out}")


def export(dataset: DatasetFolder, out: pathlib.Path) -> None:
    """Writes a dataset of uav/iot as a log in the layout of MA-CQR (CSV).

    Args:
        dataset: its folder.
        out: the file.
    """
    from omarl_jax.data import storage
    from omarl_jax.data.importers import macqr_csv

    made = storage.load(dataset)
    macqr_csv.write_csv(made, out)
    console.print(f"{made.size:,} transitions -> {out}")
