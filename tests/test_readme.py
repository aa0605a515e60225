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


def test_a_log_of_a_task_of_ones_own_becomes_a_policy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Carts that copy what was logged close in by a fifth with each step: of 0.9 remains 0.01 after twenty."""
    monkeypatch.chdir(tmp_path)
    _, example = examples(README)
    lines = [line for line in example.splitlines() if line and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 15
    exec(example, {})
    dataset = open_dataset(tmp_path / "data" / "meet")
    assert (dataset.spec.name, dataset.size, dataset.metadata["behaviour"]) == ("own/meet", 10_000, "our drivers")
    assert dataset.whole_episodes.all()
    gaps = dataset.rows.obs[:, 0, 0].reshape(500, 21)
    np.testing.assert_allclose(gaps[:, 1:], 0.8 * gaps[:, :-1], rtol=1e-6)
    assert "- behaviour: our drivers" in (tmp_path / "data" / "meet" / "card.md").read_text()
    assert load_policy(tmp_path / "meet.npz").act(np.array([[0.5], [-0.3]])) == pytest.approx(
        np.array([[0.5], [-0.3]]), abs=0.03
    )
    (distance,) = re.fullmatch(r"The carts are (-?0\.\d\d) apart\.\n", capsys.readouterr().out).groups()
    assert abs(float(distance) - 0.9 * 0.8**20) < 0.05


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
    found = json.loads((ROOT / "experiments" / "results" / "bench.json").read_text())
    expected = []
    for method in ("omar", "omiga", "ciqr"):
        rates, share = found[method]["updates_per_second"], found[method]["share"]
        for runs in ("5", "20"):
            shares = f"{100 * share[runs]:.0f} %, {100 * share['torch']:.0f} %"
            expected.append([f"{rates[runs] / rates['torch']:.1f}", shares])
    steps, uav = found["environments"]["steps_per_second"], found["uav"]
    ratios = [steps["omarl_jax spread"] / steps[other] for other in ("NumPy spread", "omarl_jax naive spread")]
    ratios += [steps[f"omarl_jax {task}"] / steps[f"NumPy {task}"] for task in ("tag", "world")]
    expected += [[f"{ratio:.1f}", ""] for ratio in [*ratios, uav["omarl_jax"] / uav["naive JAX"]]]
    assert [line[1:] for line in table(RESULTS, "| | ratio | of the matmul rate |")] == expected


def test_the_tables_of_omiga_are_those_of_the_results() -> None:
    rows = results("omiga")
    of_spread = {row["dataset"]: row for row in rows if row["task"] == "particle/spread"}
    lines = table(RESULTS, "| dataset | mean of the data | `omiga` | reported elsewhere |")
    assert [line[0] for line in lines] == ["random", "medium-replay", "medium", "expert"] == list(of_spread)
    for dataset, data, ours, _ in lines:
        row = of_spread[dataset]
        assert ours == f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}"
        assert data == f"{round(float(row['data_mean']), 1) + 0.0:.1f}"
    alphas = {json.loads(row["hyperparameters"])["alpha"]: row for row in rows if row["task"] == "uav/iot"}
    lines = table(RESULTS, "| α | return |")
    assert lines == [[f"{alpha:g}", printed(row)] for alpha, row in alphas.items()]
    assert len(lines) == 3


def scores_of(rows: list[dict[str, str]], task: str, dataset: str, algorithm: str, d_tot: float | None = None) -> str:
    """A cell: mean and standard deviation of a method, in a scan of d_tot with this one."""
    wanted = (task, dataset, algorithm)
    of = [row for row in rows if (row["task"], row["dataset"], row["algorithm"]) == wanted]
    if len(of) > 1:
        of = [row for row in of if json.loads(row["hyperparameters"])["d_tot"] == d_tot]
    (row,) = of
    return f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}"


def test_the_tables_of_omcda_on_spread_are_those_of_the_results() -> None:
    rows, task = results("omcda_spread"), "particle/spread"
    names = ["omcda", "omcda_wo_cda", "omcda_rd_once", "omcda_wo_dq"]
    scan = [0.1, 0.3, 1.2, 3.0, 10.0]
    expected = [[f"{d:g}", *(scores_of(rows, task, "medium", name, d) for name in names)] for d in scan]
    assert table(RESULTS, "| d_tot, spread |") == expected
    lines = table(RESULTS, "| spread | score of the data | `bc` |")
    assert [line[0] for line in lines] == ["random", "medium-replay", "medium", "expert"]
    for dataset, mean, *scores in lines:
        assert scores == [scores_of(rows, task, dataset, name, 1.2) for name in ("bc", "omiga", "omcda")]
        data = next(row["data_mean"] for row in rows if (row["task"], row["dataset"]) == (task, dataset))
        assert mean == f"{float(data):.1f}"
    assert f"OMAR has {scores_of(rows, task, 'medium', 'omar')} on the medium data" in RESULTS.read_text()
    uav = {row["algorithm"]: (float(row["mean"]), float(row["sd"])) for row in rows if row["task"] == "uav/iot"}
    for name, text in {
        "omcda": "-2,088 ± 853",
        "omiga": "-1,840 ± 1,249",
        "bc": "-991 ± 63",
        "ciqr": "-936 ± 134",
    }.items():
        assert text == f"{uav[name][0]:,.0f} ± {uav[name][1]:,.0f}"
        assert text in RESULTS.read_text()


def test_the_table_of_mazes_is_that_of_the_results() -> None:
    rows = {(row["task"], row["algorithm"]): row for row in results("omar_maze2d")}
    lines = table(RESULTS, "| maze | mean of the data |")
    assert [line[0] for line in lines] == ["umaze", "medium", "large"]
    for maze, data, *scores in lines:
        of = [rows[f"maze2d/{maze}", name] for name in ("td3_bc", "icq", "cql", "omar")]
        pairs = [(float(row["mean"]), float(row["sd"]), float(row["paper_mean"]), float(row["paper_sd"])) for row in of]
        assert scores == [f"{a:.1f} ± {b:.1f} ({c:.1f} ± {d:.1f})" for a, b, c, d in pairs]
        assert data == f"{float(of[0]['data_mean']):.1f}"


def test_the_table_of_a_robot_is_that_of_the_results() -> None:
    bc, omar, faster = results("halfcheetah")
    expected = [f"{float(row['mean']):.1f} ± {float(row['sd']):.1f}" for row in (bc, omar)]
    expected[1] += f" ({float(omar['paper_mean']):.1f} ± {float(omar['paper_sd']):.1f})"
    assert table(RESULTS, "| data | mean of the data | `bc` | `omar` |") == [
        ["medium", f"{float(bc['data_mean']):.1f}", *expected]
    ]
    setting = ", ".join(f"{name}={value}" for name, value in json.loads(faster["hyperparameters"]).items())
    assert f"(`{setting}`) gave {float(faster['mean']):.1f} ± {float(faster['sd']):.1f}" in RESULTS.read_text()


def test_the_table_of_growth_is_that_of_the_results() -> None:
    page = ROOT / "docs" / "many_machines.md"
    measured = json.loads((ROOT / "experiments" / "results" / "growth" / "growth.json").read_text())
    expected = []
    for row in measured["runs"]:
        runs, rate = row["runs"], row["updates_per_second"]
        expected.append([str(runs), f"{rate:,.0f}", f"{1000 * runs / rate:.1f}", f"{row['peak_mb']:.0f}"])
    assert table(page, "| runs | updates of all runs") == expected
    one, two = (row["seconds"] for row in measured["workers"])
    said = " ".join(page.read_text().split())
    assert f"took {one:.0f} s with one worker and {two:.0f} s with two" in said


def test_the_scores_of_other_target_rates_are_those_of_the_results() -> None:
    text = " ".join(RESULTS.read_text().split())
    best: dict[str, list[tuple[float, float, float]]] = {}  # mean, τ, learning rate, from the best on
    for row in results("omar_maze2d_tries"):
        setting = json.loads(row["hyperparameters"])
        best.setdefault(row["algorithm"], []).append((float(row["mean"]), setting["tau"], setting["lr"]))
    best = {name: sorted(of, reverse=True) for name, of in best.items()}
    assert all(len(of) == 8 for of in best.values())
    (first, tau, lr), (second, same_tau, other_lr), (third, published_tau, _), *_ = best["omar"]
    assert tau == same_tau and published_tau == 0.005
    said = f"OMAR scores {first:.1f} with τ = {tau:g} and lr = {lr:g} and {second:.1f} with lr = {other_lr:g}"
    assert f"{said}, where its best before was {third:.1f}" in text
    for name, label in {"cql": "CQL comes to", "td3_bc": "TD3+BC to"}.items():
        mean, tau, lr = best[name][0]
        assert f"{label} {mean:.1f} (τ = {tau:g}, lr = {lr:g})" in text
    assert f"ICQ to {best['icq'][0][0]:.1f}." in text


def test_the_tables_of_levers_are_those_of_the_results() -> None:
    rows = results("omcda_lever")
    names = ["omcda", "omcda_wo_cda", "omcda_rd_once", "omcda_wo_dq"]
    scans = {
        "discrete": ("matrix/lever", [0.1, 0.6, 1.8, 3.0, 10.0]),
        "continuous": ("matrix/lever-continuous", [0.1, 0.3, 1.2, 3.0, 10.0]),
    }
    for kind, (task, scan) in scans.items():
        expected = [[f"{d:g}", *(scores_of(rows, task, "medium", name, d) for name in names)] for d in scan]
        assert table(RESULTS, f"| d_tot, {kind} |") == expected
    lines = table(RESULTS, "| levers | data | score of the data |")
    assert len(lines) == 6
    for kind, dataset, mean, *scores in lines:
        task, scan = scans[kind]
        assert scores == [scores_of(rows, task, dataset, name, scan[2]) for name in ("bc", "omiga", *names[:3])]
        data = next(row["data_mean"] for row in rows if (row["task"], row["dataset"]) == (task, dataset))
        assert mean == f"{float(data) + 0.0:.1f}"


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
