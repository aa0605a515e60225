"""What the documentation shows is what happens."""

import csv
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from omarl_jax import UserError, load_dataset, load_policy, open_dataset, train

ROOT = pathlib.Path(__file__).parent.parent
README, RESULTS, CONTRIBUTING = ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, RESULTS, CONTRIBUTING, ROOT / "SECURITY.md", *(ROOT / "experiments").glob("results/**/README.md")]


def examples(page: pathlib.Path) -> list[str]:
    """The Python examples of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_example_runs(tmp_path: pathlib.Path) -> None:
    example, _ = examples(README)
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
    _, example = examples(README)
    exec(example, {})
    dataset = open_dataset(tmp_path / "data" / "our-log")
    assert (dataset.size, dataset.metadata["behaviour"]) == (40 * 25, "our pilots")
    assert dataset.whole_episodes.all()


def table(page: pathlib.Path, first_cells: str) -> list[list[str]]:
    """The cells of the table on a page whose head begins so, without bold type."""
    _, _, after = page.read_text().partition(f"\n{first_cells}")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def results(name: str) -> list[dict[str, str]]:
    with (ROOT / "experiments" / "results" / name / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


PARTICLE = "| | dataset | mean of the data |"
METHODS = ("bc", "td3_bc", "icq", "cql", "omar")


@pytest.mark.parametrize(("page", "lines"), [(README, 5), (RESULTS, 12)])
def test_the_particle_table_is_that_of_the_results(page: pathlib.Path, lines: int) -> None:
    rows = {(row["task"], row["dataset"], row["algorithm"]): row for row in results("omar_particle")}
    shown, task = set(), ""
    for name, dataset, data, *methods in table(page, PARTICLE):
        task = name or task
        for algorithm, cell in zip(METHODS, methods, strict=True):
            row = rows[f"particle/{task}", dataset, algorithm]
            ours = f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}"
            paper = f" ({float(row['paper_mean']):.1f} ± {float(row['paper_sd']):.1f})" if row["paper_mean"] else ""
            assert cell.replace("**", "") == ours + paper
            assert data == f"{round(float(row['data_mean']), 1) + 0.0:.1f}"  # no -0.0
        shown.add((task, dataset))
    assert len(shown) == lines


def test_what_the_readme_says_of_the_particle_table() -> None:
    rows = {(row["task"], row["dataset"], row["algorithm"]): float(row["mean"]) for row in results("omar_particle")}
    cells = sorted({cell[:2] for cell in rows})
    leads = {cell: rows[*cell, "omar"] - max(rows[*cell, name] for name in METHODS[:-1]) for cell in cells}
    assert (len(cells), sum(lead > 0 for lead in leads.values())) == (12, 7)
    assert min(leads, key=lambda cell: leads[cell]) == ("particle/world", "medium")
    assert all(rows[*cell, "omar"] > rows[*cell, "cql"] for cell in cells)


def test_the_table_of_larger_teams_is_that_of_the_results() -> None:
    rows = {(json.loads(row["hyperparameters"])["n_agents"], row["algorithm"]): row for row in results("omar_agents")}
    lines = table(RESULTS, "| agents | mean of the data |")
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
    lines = table(RESULTS, "| | independent | centralised |")
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
    assert [line[1:] for line in table(RESULTS, "| | Xeon, 2.5 GHz | EPYC |")] == [
        list(line) for line in zip(*expected, strict=True)
    ]


def printed(row: dict[str, str]) -> str:
    return f"{float(row['mean']):.0f} ± {float(row['sd']):.0f}"


def test_the_tables_of_studies_are_those_of_their_results() -> None:
    lines = (ROOT / "experiments" / "results" / "README.md").read_text().splitlines()
    family = ("ciql", "ccql", "ciqr", "ccqr")

    amounts = {(json.loads(row["hyperparameters"])["size"], row["algorithm"]): row for row in results("macqr_data")}
    for size in (1_200, 2_400, 4_800, 9_600, 15_000):
        rows = [amounts.get((size, name)) for name in ("ciqr", "ccqr", "ciqr-fast", "ciql", "ccql")]
        assert (
            f"| {size:,} | {' | '.join(printed(row) if row else '' for row in rows)} |".replace("|  |", "| |") in lines
        )
    assert len(amounts) == 23

    behaviours = {(row["dataset"], row["algorithm"]): row for row in results("macqr_behaviour")}
    for data in ("random", "early", "middle", "late", "mixed"):
        rows = [behaviours[data, name] for name in family]
        assert f"| {data} | {float(rows[0]['data_mean']):.0f} | {' | '.join(map(printed, rows))} |" in lines

    weights = {
        (row["dataset"], json.loads(row["hyperparameters"])["cql_alpha"], row["algorithm"]): row
        for row in results("macqr_alpha")
    }
    for dataset in ("middle", "random"):
        for alpha in (0.0, 0.1, 1.0, 10.0):
            rows = [weights[dataset, alpha, name] for name in family]
            assert f"| {dataset}, {alpha:g} | {' | '.join(map(printed, rows))} |" in lines

    penalties = {
        (row["algorithm"], json.loads(row["hyperparameters"])["risk_penalty"]): row for row in results("macqr_penalty")
    }
    means = [f"{float(penalties['ciqr', penalty]['data_mean']):.0f}" for penalty in (100, 300, 500)]
    assert f"| mean of the data | {' | '.join(means)} |" in lines
    for name in ("ciqr", "ciqr-cvar", "ccqr", "ccqr-cvar"):
        rows = [penalties[name, penalty] for penalty in (100, 300, 500)]
        cells = [f"{printed(row)}, {50 * float(row['final_risk']) / float(row['final_length']):.1f} %" for row in rows]
        head = f"`{name.removesuffix('-cvar')}`" + ", ξ = 0.15" * name.endswith("-cvar")
        assert f"| {head} | {' | '.join(cells)} |" in lines

    codes = {row["algorithm"]: row for row in results("macqr_published")}
    for name in (*family, "ciqr-cvar", "ccqr-cvar"):
        head = f"`{name.removesuffix('-cvar')}`" + ", ξ = 0.15" * name.endswith("-cvar")
        assert f"| {head} | {printed(codes[name])} | {printed(codes[f'{name}-published'])} |" in lines
    for mistake, name in (
        ("corrected", "ccql"),
        ("with Adam reset at every update", "ccql-adam"),
        ("with action indices in the penalty", "ccql-penalty"),
        ("with the published initial targets", "ccql-targets"),
        ("all three", "ccql-published"),
    ):
        assert f"| {mistake} | {printed(codes[name])} |" in lines


def test_the_numbers_in_the_text_on_studies_are_those_of_their_results() -> None:
    found = results("macqr_alpha") + results("macqr_data") + results("macqr_published") + results("macqr_risk")
    known = {printed(row) for row in found + results("macqr_rates")}
    _, _, claims = RESULTS.read_text().partition("The paper's claims:")
    claims = claims.partition("## Speed")[0]
    quoted = re.findall(r"-\d+ ± \d+", claims)
    assert len(quoted) > 8
    assert set(quoted) <= known


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    links = re.findall(r'\]\(([^)#]+)|src="([^"]+)"', page.read_text())
    for link in filter(None, (first or second for first, second in links)):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.fixture
def my_method(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The method of CONTRIBUTING.md as a module of another package."""
    (text,) = examples(CONTRIBUTING)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_method.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_package.my_method"
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.parametrize("sharing", ["separate", "shared"])
def test_the_method_of_the_guide_clones_what_paid_most(my_method: str, sharing: str) -> None:
    """Weights exp(payoff) of the climbing game are almost all on its best cell, 11; all cells are equally frequent."""
    climbing = load_dataset("matrix/climbing", "random", size=2_000)
    result = train(my_method, climbing, updates=200, evaluations=1, sharing=sharing, temperature=1.0, hidden=(16,))
    assert result.returns[-1] == pytest.approx(11.0)


def test_the_method_of_the_guide_learns_continuous_actions_and_is_saved(my_method: str, tmp_path: pathlib.Path) -> None:
    data = load_dataset("particle/spread", "expert", size=5_000)
    result = train(my_method, data, updates=300, evaluations=1, hidden=(32,), temperature=1e6)  # cloning
    assert result.scores is not None
    assert result.scores[-1] > 40  # 100 is the expert, 0 uniform actions
    result.save_policy(0, tmp_path / "team.npz")
    assert load_policy(tmp_path / "team.npz").act(np.zeros((3, 18), np.float32)).shape == (3, 2)
    with pytest.raises(UserError, match="temperature must be positive"):
        train(my_method, data, temperature=0.0)
