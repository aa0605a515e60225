"""The command line, as a user meets it."""

import dataclasses
import inspect
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings

import jax
import numpy as np
import pytest
from omarl_envs import make
from rich.console import Console

import omarl_jax.sweep
from omarl_jax import cli, grid, load_dataset, rollout, save_dataset, train
from omarl_jax.cli import sweep as cli_sweep
from omarl_jax.cli import terminal
from omarl_jax.cli import train as cli_train
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.importers.macqr_csv import write_csv
from omarl_jax.export import load_policy
from omarl_jax.rollout import collect, uniform_act
from omarl_jax.sweep import Progress as Report

SHORT = ("--episodes", "5", "--final-episodes", "5")  # as many both times, so that it is compiled once


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["omarl", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


@pytest.mark.parametrize(
    "verb",
    [
        "list",
        "collect",
        "train",
        "train omar",
        "evaluate",
        "sweep",
        "report",
        "behaviour",
        "prey",
        "demo",
        "data card",
        "data import",
    ],
)
def test_every_verb_explains_itself(monkeypatch, capsys, verb):
    code, out, _ = run(monkeypatch, capsys, *verb.split(), "--help")
    assert code == 0
    assert "usage" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "omr", "particle/spread", "random"], "'omar'"),
        (["train", "bc", "particle/spred", "random"], "'particle/spread'"),
        (["train", "bc", "particle/spread", "randm"], "'random'"),
        (["train", "cql", "matrix/xor", "random"], "needs continuous actions"),
        (["train", "ciqr", "particle/spread", "random"], "needs discrete actions"),
        (["train", "bc", "particle/spread", "random", "--lr", "-1"], "lr must be positive"),
        (
            ["train", "ccqr", "uav/iot", "random", "--mixer", "none"],
            "'ccqr' is 'ciqr' with mixer=vdn; to train with mixer=none, name 'ciqr'.",
        ),
        (["colect"], "'collect'"),
        (["data", "lst"], "'list'"),
        (["collect", "particle/spread", "mediun", "--out", "data"], "'medium'"),
        (["data", "card", "particle/spread", "mediun"], "'medium'"),
        (["collect", "uav/iot", "middle", "--size", "15001", "--out", "data"], "holds 15,000 transitions, not 15,001"),
        (["collect", "uav/iot", "random", "--out", "x", "--option", "devices=[(3, 10)]"], "outside the grid"),
        (
            [
                "collect",
                "uav/iot",
                "random",
                "--out",
                "x",
                "--option",
                "side=2",
                "devices=[(0, 0)]",
                "risk_region=[(0, 0), (0, 1), (1, 0), (1, 1)]",
            ],
            "no cell free",
        ),
        (["train", "ciqr", "uav/iot", "random", "--cvar-level", "1.5"], "cvar_level must lie in (0, 1]"),
        (["data", "import", "nowhere.csv", "--out", "data"], "cannot be read"),
        (["sweep", "nowhere.toml"], "There is no grid file"),
        (["evaluate", "nowhere.npz"], "There is no policy"),
        (["report", "nowhere"], "nowhere"),
        (["prey", "particle/spread", "--out", "prey.npz"], "prey"),
        (["prey", "particle/tag", "--out", "/proc/prey.npz"], "cannot be written"),
        (["behaviour", "particle/tag", "--out", "/proc/x.npz", "--medium", "1", "--expert", "2"], "cannot be written"),
        (["behaviour", "particle/tag", "--out", "x.npz", "--medium", "1", "--expert", "2", "--every", "7"], "multiple"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_help_names_arguments_and_says_what_holds_by_default(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "train", "omar", "--help")
    out = " ".join(out.replace("│", " ").split())
    assert "TASK DATASET" in out
    assert "Adam's learning rate, of policies and critics. (default: 0.01, or what was published)" in out
    assert "(default: 64 64, or what was published)" in out
    assert "default: None" not in out
    _, out, _ = run(monkeypatch, capsys, "train", "ccqr", "--help")
    out = " ".join(out.replace("│", " ").split())
    assert "MA-CCQR: conservative quantile regression with value decomposition" in out
    assert "(default: 0.0001, or what was published)" in out
    assert "(default: vdn, fixed by ccqr)" in out


def test_the_time_left_is_shown_however_long_a_chunk_takes_and_narrow_the_terminal(monkeypatch, tmp_path):
    """Of three groups the first was done before; chunks of the second take 83 seconds."""
    now, bars, screen = 0.0, [], Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(cli_sweep, "console", screen)

    class Watched(cli_sweep.Progress):
        def __init__(self, *columns, **options):
            super().__init__(*columns, **options, get_time=lambda: now)
            bars.append(self)

    def sweep(grid, out, show, wandb):
        nonlocal now
        show(0, Report(1000))
        for chunk in range(1, 4):
            now += 83.0
            show(1, Report(100 * chunk, 18.0, "score", 3.0))
        everything, _, second, third = bars[0].tasks
        assert second.time_remaining == 7 * 83
        assert everything.time_remaining == 17 * 83
        assert third.start_time is None
        return {}

    monkeypatch.setattr(cli_sweep, "Progress", Watched)
    monkeypatch.setattr(omarl_jax.sweep, "sweep", sweep)
    block = {"tasks": ["particle/spread"], "datasets": ["random"], "algorithms": ["bc", "cql", "omar"], "updates": 1000}
    assert cli_sweep.train_grid(grid.make_grid({"seeds": [0, 1], "block": [block]}), tmp_path) == 1
    shown = screen.file.getvalue()
    for whole in ("600/4000", "0:23:31", "300/1000", "0:09:41", "18 updates/s", "score 3.0"):
        assert whole in shown


def test_in_a_notebook_progress_is_one_line_that_moves(monkeypatch, tmp_path):
    """`!omarl` writes to what looks like a terminal, but a notebook does not move up to earlier lines."""
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr(cli_sweep, "console", screen)
    monkeypatch.setenv("JPY_PARENT_PID", "1")

    def sweep(grid, out, show, wandb):
        show(1, Report(500, 18.0, "score", 3.0))
        return {}

    monkeypatch.setattr(omarl_jax.sweep, "sweep", sweep)
    block = {"tasks": ["particle/spread"], "datasets": ["random"], "algorithms": ["bc", "cql"], "updates": 1000}
    assert cli_sweep.train_grid(grid.make_grid({"block": [block]}), tmp_path) == 1
    shown = screen.file.getvalue()
    assert "500/2000" in shown
    assert shown.count("\n") == 1
    assert "\x1b[1A" not in shown  # the cursor moves up
    monkeypatch.delenv("JPY_PARENT_PID")
    assert cli_sweep.train_grid(grid.make_grid({"block": [block]}), tmp_path) == 1
    assert "\x1b[1A" in screen.file.getvalue()


def test_training_to_a_gif(monkeypatch, capsys, tmp_path):
    arguments = "train bc particle/spread random --seeds 0 1 --lr 0.01 0.001 --updates 4 --size 500 --evaluations 1"
    arguments += f" --batch-size 16 --hidden 8 --out {tmp_path}"
    code, _, err = run(monkeypatch, capsys, *arguments.split(), *SHORT)
    assert code == 0, err
    runs = sorted((tmp_path / "runs").iterdir())
    assert len(runs) == 4
    assert "ling-pan/OMAR" in json.loads((runs[0] / "config.json").read_text())["preset"]
    assert (tmp_path / "report" / "report.html").exists()
    gif, asked = tmp_path / "team.gif", ["--episodes", "5", "--seed", "3", "--risk", "0.4"]
    code, out, err = run(monkeypatch, capsys, "evaluate", str(runs[0]), *asked, "--gif", str(gif))
    assert code == 0, err
    assert gif.read_bytes().startswith(b"GIF")
    saved, env = load_policy(runs[0] / "policy.npz"), make("particle/spread")
    play = jax.jit(lambda key: rollout.evaluate(env, *saved.functions, saved.params, key, 5))
    returns = np.sort(play(jax.random.key(3))["return"])
    tables = {"return": returns, "score": 100 * (returns - 159.8) / (516.8 - 159.8), "length": np.full(5, 25.0)}
    for name, values in tables.items():
        worst = [values[:2].mean()] if name != "length" else []  # two of five are the share of 0.4
        expected = [values.mean(), np.sqrt(np.mean((values - values.mean()) ** 2)), values[0], values[-1], *worst]
        (printed,) = re.findall(rf"^ *{name} +(.*)$", out, re.MULTILINE)
        np.testing.assert_allclose([float(number) for number in printed.split()], expected, atol=0.02)


@pytest.mark.parametrize("preset", [True, False])
def test_train_and_the_command_line_give_the_same_numbers(monkeypatch, capsys, tmp_path, preset):
    """Of a method and a dataset whose presets are not the defaults, in two run groups, with all else as it comes."""
    words = {"size": 500, "evaluations": 2, "episodes": 3, "updates": 4, "cql_samples": 2}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in words.items())
    arguments = f"train cql particle/spread expert {options} --lr 0.01 0.002 --hidden 8 --final-episodes 2"
    arguments += f" --batch-size 16 8 {'' if preset else '--no-preset'} --out {tmp_path}"
    code, _, err = run(monkeypatch, capsys, *arguments.split())
    assert code == 0, err
    data = load_dataset("particle/spread", "expert", size=words.pop("size"))
    ours = train("cql", data, preset=preset, lr=[0.01, 0.002], hidden=(8,), batch_size=[16, 8], **words)
    assert [config.cql_alpha for config in ours.configs] == [5.0 if preset else 1.0] * 4
    by_config = {json.dumps(dataclasses.asdict(config)): i for i, config in enumerate(ours.configs)}
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 4
    for folder in folders:
        written = json.loads((folder / "config.json").read_text())
        i = by_config.pop(json.dumps(written["config"]))
        assert (written["updates"], written["seed"]) == (4, ours.seeds[i])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert {name for row in rows for name in row} == {*ours.metrics, "updates", "updates_per_second", "return"}
        assert [row["updates"] for row in rows] == list(ours.updates)
        for name, values in ours.metrics.items():
            np.testing.assert_array_equal([row[name] for row in rows], values[:, i])
        with np.load(folder / "evaluations.npz") as evaluations:
            np.testing.assert_array_equal(evaluations["updates"], ours.updates)
            np.testing.assert_array_equal(evaluations["returns"].mean(axis=1), ours.returns[:, i])


def test_defaults_of_train_and_the_command_line_agree(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("omarl_jax.cli.train.train_grid", lambda grid, out, wandb: made.append(grid) or 0)
    assert cli_train.train_with("omar", ["particle/spread", "random"]) == 0
    parameters = inspect.signature(train).parameters
    (run,) = made[0].runs
    assert (made[0].evaluations, made[0].episodes) == tuple(parameters[n].default for n in ("evaluations", "episodes"))
    assert (len(made[0].runs), run.seed, run.updates, run.config.cql_alpha) == (
        parameters["seeds"].default,
        0,
        6000,
        0.5,
    )
    assert parameters["preset"].default is True
    assert parameters["updates"].default is None


def test_from_a_recipe_to_a_dataset_that_is_whole_and_described(monkeypatch, capsys, tmp_path):
    """Of xor, in which an episode is one step, paid where the two actions differ."""
    data = tmp_path / "data"
    code, out, err = run(monkeypatch, capsys, "collect", "matrix/xor", "random", "--size", "100", "--out", str(data))
    assert code == 0, err
    actions = np.load(data / "actions.npy")[::2]  # the other rows close the episodes
    mean = (actions[:, 0] != actions[:, 1]).mean()
    assert 0.3 < mean < 0.7
    assert f"100 transitions, mean return {mean:.1f} ->" in " ".join(out.split())
    code, out, err = run(monkeypatch, capsys, "data", "verify", str(data))
    assert code == 0, err
    assert "is whole" in " ".join(out.split())
    code, out, err = run(monkeypatch, capsys, "data", "card", str(data))
    assert code == 0, err
    assert "matrix/xor: random" in out
    score = f"{100 * (mean - 0.5) / 0.5:.1f}"
    facts = {"transitions": "100", "terminal transitions": "100", "truncated transitions": "0"}
    for name, value in (facts | {"mean return": f"{mean:.4g}", "normalised mean score": score}).items():
        assert re.search(rf"^- {name}.*: {value}$", out, re.MULTILINE), name
    rewards = np.load(data / "rewards.npy")
    rewards[0] = 1.0 - rewards[0]
    np.save(data / "rewards.npy", rewards)
    code, out, err = run(monkeypatch, capsys, "data", "verify", str(data))
    assert code == 1
    assert "whole" not in out
    assert "rewards" in err


def test_data_of_a_team_that_the_task_knows_are_collected_and_learned_from(monkeypatch, capsys, tmp_path):
    data, game = tmp_path / "data", ("matrix/lever", "medium")
    collect = "collect", *game, "--size", "500", "--option", "influence=0.5", "--out", str(data)
    code, out, err = run(monkeypatch, capsys, *collect)
    assert code == 0, err
    assert "500 transitions" in " ".join(out.split())
    code, out, err = run(monkeypatch, capsys, "data", "card", str(data))
    assert code == 0, err
    assert "levers around 0 times the cue" in " ".join(out.split())
    few = "--updates", "2", "--size", "500", "--hidden", "4", "--episodes", "2", "--final-episodes", "4"
    code, _, err = run(monkeypatch, capsys, "train", "bc", *game, *few, "--out", str(tmp_path / "out"))
    assert code == 0, err


def test_data_on_disk_are_checked_before_anything_is_trained(monkeypatch, capsys, tmp_path):
    dataset = load_dataset("particle/spread", "random", size=50)
    obs = np.array(dataset.rows.obs)
    obs[30, 2, 7] = np.nan  # after the 25 steps of the first episode comes its final observation
    monkeypatch.setattr("omarl_jax.data.storage.validate", lambda dataset: None)
    save_dataset(dataclasses.replace(dataset, rows=dataset.rows._replace(obs=obs)), tmp_path / "data")
    monkeypatch.undo()
    words = ["train", "bc", "particle/spread", str(tmp_path / "data"), "--updates", "2", "--seeds", "0", "1"]
    code, _, err = run(monkeypatch, capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 1
    line = err.strip().splitlines()[-1]
    assert "and 1 more" in line and f"In '{tmp_path / 'data'}': " in line
    assert line.endswith("obs holds nan in episode 1, step 4, agent 2, entry 7 (counted from 0): it must be finite.")
    assert not list(tmp_path.glob("out/runs/*"))


def test_doubtful_ends_are_told_on_one_line(monkeypatch, capsys, tmp_path):
    dataset = load_dataset("particle/spread", "random", size=50)
    rows = dataset.rows._replace(terminal=dataset.rows.truncated[:, None].repeat(3, axis=1))
    with pytest.warns(UserWarning, match="ends as terminal"):
        save_dataset(dataclasses.replace(dataset, rows=rows), tmp_path / "data")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = run(monkeypatch, capsys, "data", "verify", str(tmp_path / "data"))
    assert code == 0 and "is whole" in out
    (line,) = err.splitlines()
    assert line.startswith("warning: Every episode of 'particle/spread' that reaches the time limit, 25 steps, ends as")


def test_lists_name_methods_tasks_and_what_data_can_be_made(monkeypatch, capsys):
    """The sizes of medium-replay are those published."""
    code, out, _ = run(monkeypatch, capsys, "list")
    assert code == 0
    assert {"omar", "ciqr", "particle/spread", "uav/iot-random", "medium-replay", "late"} <= set(out.split())
    assert re.search(r"^ *ccqr-cvar +ccqr +MA-CCQR-CVaR", out, re.MULTILINE)
    code, out, _ = run(monkeypatch, capsys, "data", "list")
    assert code == 0
    rows = {tuple(row[:2]): row[2:] for row in (line.split() for line in out.splitlines())}
    sizes = [rows[f"particle/{task}", "medium-replay"][0] for task in ("spread", "tag", "world")]
    assert sizes == ["97,500", "62,500", "80,000"]
    assert rows["matrix/xor", "random"] == ["1,000,000", "0.0"]
    assert ("matrix/xor", "medium") not in rows
    assert rows["matrix/lever", "expert"] == ["1,000,000", "99.5"]
    assert ("uav/iot", "late") in rows


def test_from_a_log_of_uavs_to_pictures_of_the_trained_team(monkeypatch, capsys, tmp_path):
    env = make("uav/iot")
    [(rows, sums)] = collect(env, uniform_act(env.task_spec), (), None, [jax.random.key(0)], episodes=2)
    write_csv(Dataset(env.task_spec, rows, {}), tmp_path / "log.csv")
    lines = (tmp_path / "log.csv").read_text().splitlines(keepends=True)
    (tmp_path / "part.csv").write_text("".join(lines[:50]))
    data = str(tmp_path / "log")
    mean = f"mean return {sums['return'].mean():.1f}"
    for name, size, message in (("part", 49, "no whole episode"), ("log", 200, mean)):
        log, folder = (str(tmp_path / f"{name}{suffix}") for suffix in (".csv", ""))
        code, out, err = run(monkeypatch, capsys, "data", "import", log, "--out", folder)
        assert code == 0, err
        assert f"{size} transitions, {message}" in " ".join(out.split())
    again = tmp_path / "again.csv"
    assert run(monkeypatch, capsys, "data", "export", data, "--out", str(again))[0] == 0
    assert again.read_bytes() == (tmp_path / "log.csv").read_bytes()
    arguments = f"train ciqr uav/iot {data} --cvar-level 0.15 1.0 --updates 2 --evaluations 1 --batch-size 8 --hidden 8"
    code, _, err = run(monkeypatch, capsys, *arguments.split(), *SHORT, "--out", str(tmp_path / "r"))
    assert code == 0, err
    report = (tmp_path / "r" / "report" / "report.html").read_text()
    assert "episodes with risk" in report
    team, pictures = sorted((tmp_path / "r" / "runs").iterdir())[0], [tmp_path / "map.png", tmp_path / "quantiles.png"]
    asked = ["--map", str(pictures[0]), "--quantiles", str(pictures[1])]
    code, out, err = run(monkeypatch, capsys, "evaluate", str(team), "--episodes", "3", "--risk", "0.3", *asked)
    assert code == 0, err
    assert "CVaR 0.3" in out
    assert re.search(r"risk_1 .* \d+\.\d%", out)
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    code, _, err = run(monkeypatch, capsys, "evaluate", str(team), "--episodes", "3", *asked, "--at", "0", "100")
    assert code == 1
    assert "has the steps 0 to 99, not 0, 100" in err
    for other in sorted((tmp_path / "r" / "runs").iterdir())[1:]:
        (other / "policy.npz").unlink()
    code, out, err = run(monkeypatch, capsys, "report", str(tmp_path / "r"), "--pictures", "--out", str(tmp_path / "p"))
    assert code == 0, err
    assert len(list((tmp_path / "p").glob("map-*.png"))) == len(list((tmp_path / "p").glob("quantiles-*.png"))) == 1
    page = (tmp_path / "p" / "report.html").read_text()
    assert all(message in page for message in ("Paths of an episode, first run", "Quantiles learned, first run"))


def test_the_demo_ends_with_a_table_and_a_film(monkeypatch, capsys, tmp_path):
    """As it is, but with one method, few updates, little data and small networks."""
    make_grid = grid.make_grid

    def smaller(content):
        (block,) = content["block"]
        assert block["algorithms"] == ["omar", "cql", "bc"]
        small = {"hidden": [[8]], "batch_size": [16]}
        shorter = {"algorithms": ["omar"], "updates": 10, "size": 500, "hyperparameters": small}
        return make_grid(content | {"final_episodes": 64, "block": [block | shorter]})

    monkeypatch.setattr(grid, "make_grid", smaller)
    code, out, err = run(monkeypatch, capsys, "demo", "--seeds", "1", "--out", str(tmp_path))
    assert code == 0, err
    table = (tmp_path / "report" / "table.md").read_text()
    assert all(message in table for message in ("| omar |", "| 37.9 ± 12.3 ¶ |"))
    for name in ("report.html", "curves-particle-spread.png", "omar.gif", "table.md"):
        assert (tmp_path / "report" / name).exists()
        assert name in out


def test_options_are_true_false_values_or_words():
    found = terminal.pairs(["a=true", "b=false", "c=2", "d=(1, 2)", "e=shipped", "f={[1]}"])
    assert found == {"a": True, "b": False, "c": 2, "d": (1, 2), "e": "shipped", "f": "{[1]}"}


def test_a_diverged_run_is_named_with_its_update(monkeypatch, capsys, tmp_path):
    arguments = f"train bc particle/spread random --lr 3e38 --updates 4 --size 500 --evaluations 2 --out {tmp_path}"
    code, _, err = run(monkeypatch, capsys, *arguments.split(), *SHORT, "--batch-size", "16", "--hidden", "8")
    assert code == 1
    assert "no result: particle-spread_random_bc" in err
    assert "diverged at update" in err


def test_a_sweep_reports_what_succeeded_and_lists_what_failed(monkeypatch, capsys, tmp_path):
    train_group = omarl_jax.sweep.train_group

    def train_or_fail(group, *others):
        if group[0].algorithm == "cql":
            raise RuntimeError("out of memory")
        train_group(group, *others)

    monkeypatch.setattr(omarl_jax.sweep, "train_group", train_or_fail)
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text("""
seeds = [0, 1]
evaluations = 1
episodes = 2
final_episodes = 2
[[block]]
tasks = ["matrix/climbing"]
datasets = ["random"]
algorithms = ["ciql"]
updates = 2
size = 100
hyperparameters = { hidden = [[8]], batch_size = 8 }
[[block]]
tasks = ["particle/spread"]
datasets = ["random"]
algorithms = ["cql"]
""")
    code, printed, err = run(monkeypatch, capsys, "sweep", str(path), "--out", str(out))
    assert code == 1
    assert re.search(r"^failed: particle-spread_random_cql_\w+_seed0 and 1 more: RuntimeError: out of memory", err)
    assert "ciql" in printed
    page = (out / "report" / "report.html").read_text()
    assert "out of memory" in page
    assert "matrix/climbing" in page


def test_run_folders_of_versions_before_are_refused(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"algorithm": "bc", "rounds": 4}')
    for name in ("policy.npz", "DONE"):
        (folder / name).touch()
    for arguments in (["evaluate", str(folder)], ["report", str(tmp_path)]):
        code, _, err = run(monkeypatch, capsys, *arguments)
        assert code == 1
        assert "config.json' was written by omarl_jax before 0.2, and that reads it." in err


@pytest.mark.parametrize(
    ("program", "light"),
    [
        ("import omarl_jax", set()),
        (
            "from omarl_jax.cli import main; main()",
            {"docstring_parser", "rich", "typeguard", "typing_extensions", "tyro"},
        ),
    ],
)
def test_importing_and_help_load_no_large_library(program, light):
    script = f"""
import sys
before = {{name.partition(".")[0] for name in sys.modules}}
sys.argv = ["omarl", "--help"]
try:
    {program}
finally:
    after = {{name.partition(".")[0] for name in sys.modules}}
    print(*sorted(after - before - sys.stdlib_module_names), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "omarl_jax" in loaded
    assert loaded - {"omarl_jax", "pygments", "markdown_it", "mdurl"} <= light


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    project = tomllib.loads((pathlib.Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert run(monkeypatch, capsys, "--version") == (0, f"omarl_jax {project['version']}\n", "")


def test_what_terminals_take_as_orders_is_shown_as_text(monkeypatch, capsys, tmp_path):
    """A dataset of somebody else says whatever it likes."""
    made = load_dataset("matrix/xor", "random", size=10)
    made.metadata["behaviour"] = "\x1b]0;owned\x07 \x9b2J \r[bold]pilots"
    save_dataset(made, tmp_path / "data")
    code, out, _ = run(monkeypatch, capsys, "data", "card", str(tmp_path / "data"))
    assert code == 0
    assert "[bold]pilots" in out
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(out)


def test_deterministic_operations_are_requested_before_the_backend_starts(tmp_path):
    """XLA reads its flags once, so each command is a process of its own; they are forked, to import JAX once."""
    grid = "[[block]]\ntasks = ['matrix/xor']\ndatasets = ['random']\nalgorithms = ['bc']\n"
    (tmp_path / "grid.toml").write_text(grid)
    program = """
import os, sys
from jax._src import xla_bridge
from omarl_jax import cli, determinism
from omarl_jax.cli import sweep, train

def request():
    print("started" if xla_bridge.backends_are_initialized() else "in time")
    determinism.request_deterministic_operations()

def train_grid(*given):
    from omarl_jax.runs import environment_record
    print(os.environ["XLA_FLAGS"], environment_record()["deterministic"])
    return 0

for module in (sweep, train):
    module.request_deterministic_operations, module.train_grid = request, train_grid
for command in ("train omiga matrix/xor random", "sweep grid.toml"):
    for options in ([], ["--deterministic"]):
        child = os.fork()
        if not child:
            sys.argv[1:] = [*command.split(), *options]
            cli.main()
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    without = ["--xla_backend_optimization_level=0 False"]
    told = ["in time", "--xla_backend_optimization_level=0 --xla_gpu_deterministic_ops=true True"]
    assert done.stdout.splitlines() == 2 * (without + told), done.stderr
