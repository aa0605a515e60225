"""What the README shows is what happens."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from omarl_jax import load_policy, open_dataset

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_runs(tmp_path: pathlib.Path) -> None:
    example, _ = EXAMPLES
    assert 10 <= len(example.strip().splitlines()) <= 25
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *scores = done.stdout.splitlines()
    assert re.fullmatch(r"100,000 transitions, mean score \d\d\.\d", first)
    assert [re.sub(r"-?\d+\.\d$", "…", line) for line in scores] == [
        f"cql_alpha {alpha}, seed {seed}: score …" for alpha in (1.0, 5.0) for seed in (0, 1, 2)
    ]
    team = load_policy(tmp_path / "team.npz")
    assert (team.algorithm, team.config.cql_alpha, team.count) == ("omar", 1.0, None)
    assert team.act(np.zeros((3, 18), np.float32)).shape == (3, 2)


def test_a_log_becomes_a_dataset(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, example = EXAMPLES
    exec(example, {})
    dataset = open_dataset(tmp_path / "data" / "our-log")
    assert (dataset.size, dataset.metadata["behaviour"]) == (40 * 25, "our pilots")
    assert dataset.whole_episodes.all()


def table(first_cells: str) -> list[list[str]]:
    """The cells of the README's table whose head begins so, without bold type."""
    _, _, after = README.read_text().partition(f"\n{first_cells}")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def results(name: str) -> list[dict[str, str]]:
    with (ROOT / "experiments" / "results" / name / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_particle_table_is_that_of_the_results() -> None:
    rows = {(row["task"], row["dataset"], row["algorithm"]): row for row in results("omar_particle")}
    shown, task = 0, ""
    for name, dataset, data, *methods in table("| | dataset | mean of the data |"):
        task = name or task
        for algorithm, cell in zip(("bc", "td3_bc", "icq", "cql", "omar"), methods, strict=True):
            row = rows[f"particle/{task}", dataset, algorithm]
            ours = f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}"
            paper = f" ({float(row['paper_mean']):.1f} ± {float(row['paper_sd']):.1f})" if row["paper_mean"] else ""
            assert cell.replace("**", "") == ours + paper
            assert data == f"{round(float(row['data_mean']), 1) + 0.0:.1f}"  # no -0.0
            shown += 1
    assert shown == 60


def test_the_table_of_larger_teams_is_that_of_the_results() -> None:
    rows = {(json.loads(row["hyperparameters"])["n_agents"], row["algorithm"]): row for row in results("omar_agents")}
    lines = table("| agents | mean of the data |")
    assert [line[0] for line in lines] == ["2", "3", "5", "8"]
    for agents, data, *methods in lines:
        of = [rows[int(agents), algorithm] for algorithm in ("cql", "omar")]
        assert data == f"{float(of[1]['data_mean']):.1f}"
        assert methods == [f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}" for row in of]


def test_the_table_of_ten_models_is_that_of_the_results() -> None:
    rows = {row["algorithm"]: row for row in results("macqr_models")}
    models = {
        "DQN": ("diqn", "dcqn"),
        "CQL": ("ciql", "ccql"),
        "QR-DQN": ("qr-diqn", "qr-dcqn"),
        "CQR": ("ciqr", "ccqr"),
        "CQR, CVaR at 0.15": ("ciqr-cvar", "ccqr-cvar"),
    }
    lines = table("| | independent | centralised |")
    assert [line[0] for line in lines] == list(models)
    for name, *returns, risks in lines:
        of = [rows[model] for model in models[name]]
        assert returns == [f"{float(row['mean']):.0f} ± {float(row['sd']):.0f}" for row in of]
        shares = [float(row["final_risk"]) / float(row["final_length"]) / 2 for row in of]  # of two UAVs
        assert risks == ", ".join(f"{100 * share:.1f} %" for share in shares)


def test_the_table_of_speeds_is_that_of_the_benchmarks() -> None:
    expected = []
    for file in ("bench.json", "bench-epyc.json"):
        found = json.loads((ROOT / "experiments" / "results" / file).read_text())
        omar, ciqr = found["omar"]["updates_per_second"], found["ciqr"]["updates_per_second"]
        steps, uav = found["environments"]["steps_per_second"], found["uav"]
        ratios = [omar["5"] / omar["torch"], omar["20"] / omar["torch"], ciqr["5"] / ciqr["torch"]]
        ratios += [steps["omarl_jax spread"] / steps[other] for other in ("NumPy spread", "omarl_jax naive spread")]
        ratios += [steps[f"omarl_jax {task}"] / steps[f"NumPy {task}"] for task in ("tag", "world")]
        expected.append([f"{ratio:.1f}" for ratio in [*ratios, uav["omarl_jax"] / uav["naive JAX"]]])
    assert [line[1:] for line in table("| | Xeon, 2.5 GHz | EPYC |")] == [
        list(line) for line in zip(*expected, strict=True)
    ]


def told(row: dict[str, str]) -> str:
    return f"{float(row['mean']):.0f} ± {float(row['sd']):.0f}"


def test_the_tables_of_studies_are_those_of_their_results() -> None:
    lines = (ROOT / "experiments" / "results" / "README.md").read_text().splitlines()
    family = ("ciql", "ccql", "ciqr", "ccqr")

    amounts = {(json.loads(row["hyperparameters"])["size"], row["algorithm"]): row for row in results("macqr_data")}
    for size in (1_200, 2_400, 4_800, 9_600, 15_000):
        rows = [amounts.get((size, name)) for name in ("ciqr", "ccqr", "ciqr-fast", "ciql", "ccql")]
        assert f"| {size:,} | {' | '.join(told(row) if row else '' for row in rows)} |".replace("|  |", "| |") in lines
    assert len(amounts) == 23

    behaviours = {(row["dataset"], row["algorithm"]): row for row in results("macqr_behaviour")}
    for data in ("random", "early", "middle", "late", "mixed"):
        rows = [behaviours[data, name] for name in family]
        assert f"| {data} | {float(rows[0]['data_mean']):.0f} | {' | '.join(map(told, rows))} |" in lines

    weights = {
        (row["dataset"], json.loads(row["hyperparameters"])["cql_alpha"], row["algorithm"]): row
        for row in results("macqr_alpha")
    }
    for dataset in ("middle", "random"):
        for alpha in (0.0, 0.1, 1.0, 10.0):
            rows = [weights[dataset, alpha, name] for name in family]
            assert f"| {dataset}, {alpha:g} | {' | '.join(map(told, rows))} |" in lines

    penalties = {
        (row["algorithm"], json.loads(row["hyperparameters"])["risk_penalty"]): row for row in results("macqr_penalty")
    }
    means = [f"{float(penalties['ciqr', penalty]['data_mean']):.0f}" for penalty in (100, 300, 500)]
    assert f"| mean of the data | {' | '.join(means)} |" in lines
    for name in ("ciqr", "ciqr-cvar", "ccqr", "ccqr-cvar"):
        rows = [penalties[name, penalty] for penalty in (100, 300, 500)]
        cells = [f"{told(row)}, {50 * float(row['final_risk']) / float(row['final_length']):.1f} %" for row in rows]
        head = f"`{name.removesuffix('-cvar')}`" + ", ξ = 0.15" * name.endswith("-cvar")
        assert f"| {head} | {' | '.join(cells)} |" in lines

    codes = {row["algorithm"]: row for row in results("macqr_published")}
    for name in (*family, "ciqr-cvar", "ccqr-cvar"):
        head = f"`{name.removesuffix('-cvar')}`" + ", ξ = 0.15" * name.endswith("-cvar")
        assert f"| {head} | {told(codes[name])} | {told(codes[f'{name}-published'])} |" in lines
    for mistake, name in (
        ("corrected", "ccql"),
        ("with Adam afresh", "ccql-adam"),
        ("with the actions' numbers in the penalty", "ccql-penalty"),
        ("with targets from elsewhere", "ccql-targets"),
        ("all three", "ccql-published"),
    ):
        assert f"| {mistake} | {told(codes[name])} |" in lines


def test_the_numbers_in_the_text_on_studies_are_those_of_their_results() -> None:
    found = results("macqr_alpha") + results("macqr_data") + results("macqr_published") + results("macqr_risk")
    known = {told(row) for row in found + results("macqr_rates")}
    _, _, claims = README.read_text().partition("Of the paper's claims:")
    claims = claims.partition("Speed as a ratio")[0]
    quoted = re.findall(r"-\d+ ± \d+", claims)
    assert len(quoted) > 8
    assert set(quoted) <= known
