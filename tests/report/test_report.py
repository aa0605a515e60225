"""Reports on run folders whose numbers were worked out by hand."""

import csv
import html
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from omarl_jax.errors import UserError
from omarl_jax.report import figures, plots, print_table, write_report
from omarl_jax.report.load import load_runs, without_folders
from omarl_jax.report.summarise import Row, summarise, violation_rate
from omarl_jax.report.tables import cells, improvements

REFERENCE = {"random": 100.0, "expert": 300.0, "source": "made up"}  # a return of 200 is a score of 50
TEN = np.arange(10.0)  # mean 4.5, lowest tenth 0


def write_run(
    folder: Path,
    final_returns: Any,
    *,
    returns: Any = ((100.0, 100.0), (180.0, 220.0)),
    record: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    done: bool = True,
    logged: Sequence[dict[str, Any]] = (),
    metrics: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    folder.mkdir(parents=True)
    if logged:
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in logged))
    full: dict[str, Any] = {
        "format": 2,
        "algorithm": "omar",
        "base": "omar",
        "task": "particle/spread",
        "dataset": "medium",
        "seed": 0,
        "data_seed": 0,
    }
    full |= {
        "updates": 9,
        "config": {"omar_coe": 1.0, "layers": [64]},
        "config_hash": "0123456789abcdef",
        "options": {},
        "task_defaults": {"n_agents": 3, "time_limit_is_terminal": False},
        "as_published": True,
        "default_size": 5,
    }
    full["data"] = {"mean_score": 30.0, "mean_return": 160.0, "comparable": True, "size": 5, "hash": "x"} | (data or {})
    full |= {"reference": REFERENCE} | config
    (folder / "config.json").write_text(json.dumps(full))
    result = {"status": "finished", "diverged_at": None, "reason": None, "versions": {"jax": "1"}, "device": "cpu"}
    (folder / "run.json").write_text(json.dumps(result | (record or {})))
    np.savez_compressed(
        folder / "evaluations.npz",
        updates=np.arange(len(returns)) * 9,
        returns=np.array(returns, dtype=float),
        final_returns=np.array(final_returns, dtype=float),
        final_collisions=np.full(len(final_returns), 2.0 + full["seed"]),
        **{f"final_{name}": np.array(values) for name, values in (metrics or {}).items()},
    )
    if done:
        (folder / "DONE").touch()


def only_row(folder: Path) -> Row:
    (row,) = summarise(load_runs(folder)[0])
    return row


def printed(rows: list[Row]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        print_table(rows, console)
    return capture.get()


DIVERGED = {"status": "diverged", "diverged_at": 400, "reason": "critic loss is not finite"}


def test_a_row_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "0", 200 + 2 * TEN, seed=0, returns=[[100, 200], [260, 300], [240, 240]])
    write_run(tmp_path / "1", 220 + 2 * TEN, seed=1, returns=[[300, 300], [100, 100], [0, 0]])
    write_run(tmp_path / "2", 260 + 2 * TEN, seed=2, returns=[[100, 100], [100, 100], [100, 100]])
    row = only_row(tmp_path)
    np.testing.assert_allclose(row.finals, [54.5, 64.5, 84.5])
    assert row.mean == pytest.approx(203.5 / 3)
    assert row.sd == pytest.approx(np.sqrt(700 / 3))  # sample variance of 0, 10, 30
    assert row.iqm == pytest.approx(203.5 / 3)  # of three runs none is left out
    assert row.best == pytest.approx((90 + 100 + 0) / 3)  # best means over episodes: returns 280, 300, 100
    assert row.tails[0.1] == pytest.approx((50 + 60 + 80) / 3)  # lowest of ten episodes
    assert 54.5 <= row.interval.low < row.iqm < row.interval.high <= 84.5
    assert row.paper is not None
    assert (row.paper.mean, row.paper.sd) == (47.9, 18.9)
    assert (row.method, row.config_hash, row.started, row.data_mean) == ("omar", "01234567", 3, 30.0)
    assert row.metrics == {"collisions": pytest.approx(3.0)}
    text = printed([row])
    for cell in ("67.8 ± 15.3", "47.9 ± 18.9", "30.0", "63.3", "01234567"):
        assert cell in text
    assert "†" not in text
    assert "‡" not in text


def test_unfinished_and_damaged_runs_are_named_and_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 200 + TEN, seed=0)
    write_run(tmp_path / "b", 900 + TEN, seed=1, done=False)
    write_run(tmp_path / "c", 900 + TEN, seed=2, record={"status": "lost"})
    finished, others = load_runs(tmp_path)
    assert [run.seed for run in finished] == [0]
    assert list(others) == [tmp_path / "b", tmp_path / "c"]
    assert others[tmp_path / "b"] == ""
    assert "run.json' is damaged, or was changed by hand: status: invalid enum value 'lost'" in others[tmp_path / "c"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"record": DIVERGED, "final_returns": 900 + TEN}, "diverged at update 400: critic loss is not finite"),
        ({"final_returns": np.where(TEN == 3, np.nan, 900)}, "returns are not finite"),
        ({"final_returns": 900 + TEN, "returns": [[np.inf, 0]]}, "returns are not finite"),
    ],
)
def test_failed_runs_are_counted_and_listed_but_in_no_number(tmp_path: Path, broken: dict[str, Any], why: str) -> None:
    write_run(tmp_path / "runs" / "a", np.full(10, 200), seed=0)
    write_run(tmp_path / "runs" / "b", np.full(10, 240), seed=1)
    write_run(tmp_path / "runs" / "c", seed=2, **broken)
    row = only_row(tmp_path / "runs")
    assert (row.mean, row.tails[0.1], row.best, row.started) == (60, 60, 50, 3)
    assert "2 of 3" in printed([row])
    paths = write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")
    page = paths["report.html"].read_text()
    assert why in paths["runs.csv"].read_text()
    assert html.escape(why) in page
    assert "<td>c</td>" in page


def test_a_method_whose_runs_all_failed_still_has_its_row(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", TEN, record=DIVERGED)
    write_run(tmp_path / "runs" / "b", TEN, algorithm="cql")
    rows = {row.algorithm: row for row in summarise(load_runs(tmp_path / "runs")[0])}
    assert np.isnan(rows["omar"].mean)
    assert "0 of 1" in printed([rows["omar"]])
    assert write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")["report.html"].exists()


def test_without_reference_numbers_are_raw_and_nothing_published_stands_beside(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 200 + TEN, reference=None)
    row = only_row(tmp_path)
    assert (row.mean, row.tails[0.1], row.best, row.data_mean, row.paper) == (204.5, 200, 200, 160, None)
    assert "204.5 ‡" in printed([row])
    assert "‡ raw returns" in printed([row])


def test_a_saturated_policy_is_marked(tmp_path: Path) -> None:
    """The last chunk counts, and one run is enough."""

    def logged(*saturations: float) -> list[dict[str, Any]]:
        return [{"updates": i + 1, "saturation": value} for i, value in enumerate(saturations)]

    write_run(tmp_path / "0", TEN, seed=0, logged=logged(0.1, 0.95))
    write_run(tmp_path / "1", TEN, seed=1, logged=logged(0.95, 0.2))
    row = only_row(tmp_path)
    assert row.saturation == 0.95
    assert " §" in printed([row]) and "§ no result: more than 90 %" in printed([row])
    write_run(tmp_path / "other" / "0", TEN, seed=0, logged=logged(0.99, 0.9))
    assert "§" not in printed([only_row(tmp_path / "other")])


def test_own_data_are_marked(tmp_path: Path) -> None:
    write_run(tmp_path / "a", TEN, task="particle/tag", data={"comparable": False})
    text = printed([only_row(tmp_path)])
    assert "66.7 ± 23.2 †" in text
    assert "not comparable with the paper" in text


def test_a_variant_is_a_method_with_a_published_score_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", TEN, algorithm="omar_cem", base="omar")
    row = only_row(tmp_path)
    assert row.method == "omar_cem"
    assert row.paper is not None
    assert row.paper.mean == 45.0


@pytest.mark.parametrize(
    ("changed", "as_published"),
    [({}, True), ({"as_published": False}, False), ({"data": {"size": 6}}, False), ({"default_size": 6}, False)],
)
def test_a_paper_s_number_for_something_else_is_marked(
    tmp_path: Path, changed: dict[str, Any], as_published: bool
) -> None:
    write_run(tmp_path / "a", TEN, **changed)
    row = only_row(tmp_path)
    assert row.as_published == as_published
    assert ("¶ other hyperparameters" in printed([row])) != as_published


def test_rows_of_a_grid_show_what_differs(tmp_path: Path) -> None:
    for value in (10.0, 0.5, 2.0):
        config = {"omar_coe": value, "tau": 0.01}
        write_run(tmp_path / f"{value}", 100 + value + TEN, config=config, config_hash=f"hash-{value}")
    write_run(tmp_path / "other", TEN, algorithm="cql", config={"tau": 0.5})
    write_run(tmp_path / "long", 999 + TEN, updates=90, config={"omar_coe": 2.0, "tau": 0.01}, config_hash="hash-2.0")
    assert [row.method for row in summarise(load_runs(tmp_path)[0])] == [
        "cql",
        "omar (updates=9, omar_coe=0.5)",
        "omar (updates=9, omar_coe=2)",
        "omar (updates=9, omar_coe=10)",
        "omar (updates=90, omar_coe=2)",
    ]


def test_rows_of_equal_configs_are_told_apart_by_their_hash(tmp_path: Path) -> None:
    write_run(tmp_path / "a", TEN, config_hash="aaaaaaaaaa")
    write_run(tmp_path / "b", TEN, config_hash="bbbbbbbbbb")
    assert [row.method for row in summarise(load_runs(tmp_path)[0])] == ["omar (hash=aaaaaaaa)", "omar (hash=bbbbbbbb)"]


def test_a_narrow_terminal_hides_no_number(tmp_path: Path) -> None:
    for value in ("[bold]", "[red]"):
        write_run(tmp_path / value, TEN, config={"mode": value}, config_hash=f"hash-of-{value}")
    rows = summarise(load_runs(tmp_path)[0])
    assert "omar (mode=[bold])" in printed(rows)
    console = Console(width=80)
    with console.capture() as capture:
        print_table(rows, console)
    assert "…" not in capture.get()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_word_and_no_number_is_broken_in_a_narrow_terminal(tmp_path: Path, width: int) -> None:
    for dataset in ("medium-replay", "expert"):
        for seed, coefficient in enumerate((0.5, 1.0, 0.5, 1.0)):
            config = {"config": {"omar_coe": coefficient}, "config_hash": f"{coefficient}1234567"}
            run = config | {"dataset": dataset, "seed": seed, "algorithm": "omar_random_shooting"}
            write_run(tmp_path / f"{dataset}-{seed}", 400 + 9 * seed + 2 * TEN, returns=[[100, 200]], **run)
    rows = summarise(load_runs(tmp_path)[0])
    console = Console(width=width)
    with console.capture() as capture:
        print_table(rows, console)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    for row in cells(rows):
        for name, cell in row.items():
            assert all(any(word in line.split() for line in lines) for word in name.split())
            parts = cell.split() if name == "method" else [cell]
            assert all(any(f" {part} " in line for line in lines) for part in parts), cell
    widest = [line for line in lines if "omar_random_shooting" in line and "medium-replay" in line]
    assert len(widest) == 2 * {60: 5, 80: 3, 100: 2, 160: 1}[width]  # tables, with a line for each row


def test_what_methods_share_is_named_in_words(tmp_path: Path) -> None:
    for algorithm in ("omar", "cql"):
        write_run(tmp_path / f"{algorithm}-0", TEN, algorithm=algorithm, dataset="expert")
        write_run(tmp_path / f"{algorithm}-1", TEN, algorithm=algorithm, options={"n_agents": 5, "prey": "learner"})
    page = write_report(load_runs(tmp_path)[0], tmp_path / "report")["report.html"].read_text()
    (sentence,) = re.findall("<p>Scores of all seeds on the datasets that every method learned: (.*?).</p>", page)
    assert sentence.split("; ") == [
        "particle/spread expert",
        "particle/spread medium with n_agents=5, prey=learner",
    ]


def test_datasets_stand_in_the_order_of_their_quality(tmp_path: Path) -> None:
    for dataset in ("expert", "medium", "medium-replay", "own", "random"):
        write_run(tmp_path / dataset, TEN, dataset=dataset)
    rows = summarise(load_runs(tmp_path)[0])
    assert [row.dataset for row in rows] == ["random", "medium-replay", "medium", "expert", "own"]


def test_the_mean_of_the_data_counts_each_dataset_once(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN, seed=0, data={"hash": "x", "mean_score": 10.0})
    write_run(tmp_path / "1", TEN, seed=1, data={"hash": "x", "mean_score": 10.0})
    write_run(tmp_path / "2", TEN, seed=2, data_seed=1, data={"hash": "y", "mean_score": 40.0})
    for seed, risk in ((0, 1.0), (1, 1.0), (2, 4.0)):
        metrics = {"hash": "xxy"[seed], "metrics": {"collisions": risk}}
        write_run(tmp_path / "risk" / str(seed), TEN, seed=seed, dataset="expert", data=metrics)
    scores, quantities = summarise(load_runs(tmp_path)[0])
    assert scores.data_mean == 25
    assert quantities.data_metrics == {"collisions": 2.5}


def test_what_is_not_given_has_its_default(tmp_path: Path) -> None:
    """Of what varies between runs; `n_agents` of spread is 3."""
    write_run(tmp_path / "0", TEN)
    write_run(tmp_path / "1", TEN, options={"n_agents": 5}, config_hash="other")
    assert [row.differs for row in summarise(load_runs(tmp_path)[0])] == [{"n_agents": 3}, {"n_agents": 5}]


def test_only_what_learned_the_same_is_compared(tmp_path: Path) -> None:
    forms = ("n_agents=3, size=5", "n_agents=5, size=5", "n_agents=5, size=9")
    for algorithm, (n, size) in itertools.product(("cql", "omar"), ((3, 5), (5, 5), (5, 9))):
        form: dict[str, Any] = {"options": {"n_agents": n}, "data": {"size": size}, "config_hash": f"{n}-{size}"}
        write_run(tmp_path / f"{algorithm}-{n}-{size}", TEN, algorithm=algorithm, **form)
    found = {(line["method"], line["over"]) for line in improvements(summarise(load_runs(tmp_path)[0]))}
    assert {frozenset(re.findall(r"\w+=\d+", f"{one} {other}")) for one, other in found} == {
        frozenset(form.split(", ")) for form in forms
    }
    assert len(found) == 3


def test_the_same_run_twice_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "first", TEN)
    write_run(tmp_path / "second", TEN)
    with pytest.raises(UserError, match=r"first.*second"):
        summarise(load_runs(tmp_path)[0])


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no finished run"):
        write_report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_run(tmp_path / "cut", TEN)
    sound = (tmp_path / "cut" / "evaluations.npz").read_bytes()
    middle = len(sound) // 2
    for damaged in (b"PK\x03\x04", sound[:middle], sound[:middle] + b"!" + sound[middle + 1 :]):
        (tmp_path / "cut" / "evaluations.npz").write_bytes(damaged)
        assert list(load_runs(tmp_path)[1]) == [tmp_path / "cut"]


def test_a_report_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    finals = {"bc": (100, 110, 120), "cql": (115, 130, 140), "omar": (150, 160, 170)}
    for algorithm, values in finals.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / "runs" / f"{algorithm}{seed}", np.full(10, value), algorithm=algorithm, seed=seed)
    write_run(tmp_path / "runs" / "stopped", TEN, seed=9, done=False)
    paths = write_report(
        load_runs(tmp_path / "runs")[0], tmp_path / "out", dict.fromkeys(load_runs(tmp_path / "runs")[1], "no room")
    )
    page = paths["report.html"].read_text()
    assert "<script" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3  # curves, histogram, profiles
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<td>stopped</td><td>no room</td>" in page
    assert "in none of the numbers: 1 of the runs" in paths["table.md"].read_text()
    for name in ("curves-particle-spread", "returns-particle-spread-medium", "profiles"):
        assert paths[name].read_bytes().startswith(b"\x89PNG")

    lines = [re.findall(r"<td>(.*?)</td>", line) for line in page.splitlines() if line.startswith("<tr")]
    better = {(cells[0], cells[1]): cells[2:] for cells in lines if len(cells) == 4 and "[" in cells[2]}
    assert better.keys() == {("cql", "bc"), ("omar", "bc"), ("bc", "cql"), ("omar", "cql")}
    assert better["omar", "bc"] == ["1.00 [1.00, 1.00]", "1"]
    assert better["cql", "bc"][0].startswith("0.89 [")  # 8 of 9 pairs
    assert better["bc", "cql"][0].startswith("0.11 [")

    with paths["table.csv"].open(newline="") as file:
        records = {record["algorithm"]: record for record in csv.DictReader(file)}
    assert float(records["omar"]["mean"]) == pytest.approx(30.0)
    assert float(records["omar"]["sd"]) == pytest.approx(5.0)
    assert (records["omar"]["unit"], records["omar"]["paper_mean"], records["bc"]["paper_mean"]) == (
        "score",
        "47.9",
        "",
    )
    written = paths["table.md"].read_text()
    assert "| medium | omar | 30.0 ± 5.0 |" in written
    assert "Lower tails: CVaR of the last policies at several levels:\n\n| dataset | method | CVaR 0.05 |" in written
    with paths["runs.csv"].open(newline="") as file:
        lines = [record for record in csv.DictReader(file) if record["algorithm"] == "omar"]
    assert [(line["seed"], float(line["mean"]), float(line["return"])) for line in lines] == [
        ("0", 25.0, 150.0),
        ("1", 30.0, 160.0),
        ("2", 35.0, 170.0),
    ]
    with paths["curves.csv"].open(newline="") as file:
        lines = [record for record in csv.DictReader(file) if record["algorithm"] == "omar" and record["seed"] == "1"]
    points = [tuple(float(line[name]) for name in ("updates", "return", "score")) for line in lines]
    assert points == [(0, 100, 0), (9, 200, 50)]


def test_a_setting_that_varies_gets_a_picture_and_risk_its_shares(tmp_path: Path) -> None:
    for number, level in enumerate((1.0, 0.1, 0.5)):
        for seed in range(2):
            risk = {"risk": [0.0, 5.0 * level, 0.0, 5.0 * level], "length": [10.0] * 4}
            write_run(
                tmp_path / "runs" / f"{level}-{seed}",
                100 + 10 * level + seed + np.arange(4),
                seed=seed,
                config={"risk": level},
                config_hash=f"{number}",
                metrics=risk,
            )
    rows = summarise(load_runs(tmp_path / "runs")[0])
    assert [row.differs for row in rows] == [{"risk": 0.1}, {"risk": 0.5}, {"risk": 1.0}]
    assert rows[1].violating == {"risk": 0.5}
    assert rows[1].metrics["risk"] == 1.25
    assert rows[1].tails[0.25] == pytest.approx(2.75)  # the lowest of four: 105 and 106, which score 2.5 and 3
    paths = write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")
    assert paths["grid-particle-spread-medium-risk"].read_bytes().startswith(b"\x89PNG")
    page = paths["report.html"].read_text()
    assert "<td>12.5 %</td>" in page  # of the steps
    assert "<td>50 %</td>" in page
    finals = [np.array([1.0, 3.0]), np.array([4.0, 6.0])]
    line = plots.Line([0.1, 1.0], finals, [0.0, 2.0], [0.2, 0.4], [None, 0.0])
    figure = plots.grid({"omar": line}, "risk", "score", 0.1)
    left, right = figure.axes
    np.testing.assert_allclose(np.asarray(left.lines[0].get_xydata()), [[0, 2], [1, 5]])
    np.testing.assert_allclose(np.asarray(left.lines[1].get_xydata()), [[0, 0], [1, 2]])
    np.testing.assert_allclose(np.asarray(left.lines[2].get_xydata()), [[1, 0]])  # where the data's mean is known
    np.testing.assert_allclose(np.asarray(right.lines[0].get_xydata()), [[0.2, 2], [0.4, 5]])
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.1", "1"]


def test_quantiles_are_drawn_over_their_fractions() -> None:
    quantiles = np.arange(12.0).reshape(2, 2, 3)  # (times, panels, Q)
    figure = plots.quantiles(quantiles, np.array([0.1, 0.5, 0.9]), ["step 0", "step 9"], ["agent 0", "agent 1"])
    for i, axes in enumerate(figure.axes):
        assert axes.get_title(loc="left") == f"agent {i}"
        for t, line in enumerate(axes.lines):
            np.testing.assert_allclose(np.asarray(line.get_xydata()).T, [[0.1, 0.5, 0.9], quantiles[t, i]])


def test_what_the_data_did_stands_beside_what_policies_do(tmp_path: Path) -> None:
    metrics = {"risk": [8.0, 8.0], "risk_0": [2.0, 2.0], "risk_1": [6.0, 6.0], "length": [20.0, 20.0]}
    data = {"metrics": {"return": 160.0, "risk": 1.0, "risk_0": 1.0, "risk_1": 0.0, "length": 10.0}}
    write_run(tmp_path / "runs" / "0", np.array([150.0, 170.0]), metrics=metrics, data=data)
    page = write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")["report.html"].read_text()
    assert re.search(r"the data</td>.*<td>5 %</td><td>10 %</td><td>0 %</td>", page)
    assert re.search(r"omar</td>.*<td>20 %</td><td>10 %</td><td>30 %</td>", page)


def test_how_soon_runs_are_above_their_data(tmp_path: Path) -> None:
    returns = {0: [(150, 150), (150, 172), (100, 100)], 1: [(0, 0), (0, 0), (165, 165)], 2: [(160, 160)] * 3}
    for seed, values in returns.items():
        write_run(tmp_path / "runs" / f"{seed}", TEN, returns=values, seed=seed)
    row = only_row(tmp_path / "runs")
    assert row.updates_to_data.tolist() == [9, 18, np.inf]  # the data have 160
    paths = write_report([*row.runs], tmp_path / "out")
    assert "<td>14</td><td>2 of 3</td>" in paths["report.html"].read_text()
    assert "| medium | omar | 14 | 2 of 3 |" in paths["table.md"].read_text()


def test_one_config_on_several_datasets_gets_a_picture_of_them(tmp_path: Path) -> None:
    for dataset in ("late", "early", "middle"):
        write_run(tmp_path / "runs" / dataset, TEN, dataset=dataset, algorithm="ciqr", task="uav/iot")
        write_run(tmp_path / "runs" / f"bc-{dataset}", TEN, dataset=dataset, algorithm="bc", config={"lr": dataset})
    runs = load_runs(tmp_path / "runs")[0]
    assert figures._over_datasets(summarise(runs))["ciqr"].values == ["early", "middle", "late"]
    assert list(figures._over_datasets(summarise(runs))) == ["ciqr"]
    paths = write_report(runs, tmp_path / "out")
    assert "grid-uav-iot-dataset" in paths
    assert "grid-particle-spread-dataset" not in paths


def test_options_of_the_task_and_the_size_of_the_data_tell_rows_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN, options={"risk_penalty": 100.0}, config_hash="a")
    write_run(tmp_path / "1", TEN, options={"risk_penalty": 300.0}, config_hash="b")
    write_run(tmp_path / "2", TEN, dataset="random", data={"size": 10}, config_hash="c")
    write_run(tmp_path / "3", TEN, dataset="random", data={"size": 20}, config_hash="d")
    names = [row.method for row in summarise(load_runs(tmp_path)[0])]
    assert names == ["omar (size=10)", "omar (size=20)", "omar (risk_penalty=100)", "omar (risk_penalty=300)"]


def test_returns_that_are_all_but_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", np.float32([1000.0, np.nextafter(np.float32(1000), np.float32(2000))]))
    assert write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")["report.html"].exists()


def test_a_run_whose_evaluations_were_lost_still_counts(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", 200 + TEN, returns=())
    assert only_row(tmp_path / "runs").mean == 52.25
    assert write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out")["report.html"].exists()


def test_other_risks_of_a_task_are_no_agents(tmp_path: Path) -> None:
    assert violation_rate({"risk": 5.0, "risk_zone": 1.0, "length": 10.0}) == 0.5
    assert violation_rate({"risk": 5.0, "risk_0": 1.0, "risk_1": 4.0, "length": 10.0}) == 0.25


def test_scores_and_returns_never_stand_in_one_cell(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN, options={"n_agents": 3}, config_hash="a")
    write_run(tmp_path / "1", TEN, options={"n_agents": 5}, config_hash="b", reference=None, data={"hash": "y"})
    write_run(tmp_path / "2", TEN, dataset="random", config_hash="c")
    rows = summarise(load_runs(tmp_path)[0])
    assert [row.normalised for row in rows] == [True, False, False]
    assert rows[1].mean == rows[2].mean == 4.5
    assert figures._units(rows) == "score or return"


def test_data_of_several_settings_have_no_common_mean(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN, options={"risk_penalty": 100.0}, config_hash="a")
    assert "data" in figures._panel(summarise(load_runs(tmp_path)[0])).levels
    write_run(
        tmp_path / "1", TEN, options={"risk_penalty": 300.0}, config_hash="b", data={"hash": "y", "mean_score": 9}
    )
    assert "data" not in figures._panel(summarise(load_runs(tmp_path)[0])).levels


def test_an_unwritable_report_is_one_sentence(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(load_runs(tmp_path)[0], tmp_path / "file" / "report")


def test_curves_show_the_mean_over_runs_and_labels_that_do_not_touch() -> None:
    values = np.array([[0.0, 10.0], [20.0, 60.0], [30.0, 70.0]])
    levels: dict[str, tuple[float, str | None]] = {f"level {i}": (49 + 0.2 * i, None) for i in range(6)}
    panel = plots.Panel("medium", {"omar": plots.Curve(np.array([0, 5, 9]), values)}, levels)
    figure = plots.learning_curves([panel] * 3, ["bc", "omar"], "score")
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xydata()), [[0, 5], [5, 40], [9, 50]])
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(upper.y0 >= lower.y1 for lower, upper in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) > axes.bbox.x1


def test_many_variants_have_a_panel_for_each_algorithm(tmp_path: Path) -> None:
    for i in range(6):
        write_run(tmp_path / f"omar{i}", TEN, config={"lr": i}, config_hash=f"a{i}")
    for i in range(3):
        write_run(tmp_path / f"bc{i}", TEN, algorithm="bc", config={"lr": i}, config_hash=f"b{i}")
    rows = summarise(load_runs(tmp_path)[0])
    assert [panel.title for panel in figures._panels(rows)] == ["medium"]  # there are colours for nine
    write_run(tmp_path / "bc3", TEN, algorithm="bc", config={"lr": 3}, config_hash="b3")
    rows = summarise(load_runs(tmp_path)[0])
    panels = figures._panels(rows)
    assert {panel.title: list(panel.curves) for panel in panels} == {
        "bc on medium": [f"bc (lr={i})" for i in range(4)],
        "omar on medium": [f"omar (lr={i})" for i in range(6)],
    }
    ((picture, figure), *_) = figures.draw(rows)
    assert picture.kind == "curves"
    shown = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes]
    assert shown == [list(panel.curves) for panel in panels]
    assert not figure.legends


def agents_logged(updates: Sequence[int], seed: int = 0) -> list[dict[str, Any]]:
    """Metrics of two agents. In seed 1 agent 1 is never at a bound, and influence and KL/d are larger by ten."""
    return [
        {
            "updates": update,
            "critic_loss": 1.0,
            "at_bound": [1.0, 0.5 * (1 - seed)] if update <= 2 else [0.0, 0.0],
            "influence": [update + 10.0 * seed, -update + 10.0 * seed],
            "kl_over_budget": [0.25 * update + 10 * seed, 0.5 * update + 10 * seed],
            "v_r": [100.0 * update, 200.0 * update],
        }
        for update in updates
    ]


def test_a_method_that_allocates_has_its_bounds_and_budgets_in_the_table(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "bc", TEN, algorithm="bc")
    for seed in range(2):
        write_run(tmp_path / "runs" / f"{seed}", TEN, seed=seed, logged=agents_logged((2, 8), seed))
    runs = load_runs(tmp_path / "runs")[0]
    plain, row = summarise(runs)
    assert row.at_bound == pytest.approx((0.75 * 2 / 8 + 0.5 * 2 / 8) / 2)  # in two updates of eight
    assert row.kl_over_budget == pytest.approx([7.0, 9.0])  # after the last: 2 and 4, and ten more
    assert (plain.at_bound, plain.kl_over_budget, plain.per_agent) == (None, None, {})
    header = ["CVaR 0.1", "α at a bound", "KL/d", "seeds", "config"]
    assert [list(line)[-5:] for line in cells([plain, row])] == [header] * 2
    assert [list(line.values())[-4:-2] for line in cells([plain, row])] == [["–", "–"], ["15.6 %", "7 to 9"]]  # noqa: RUF001
    assert "KL/d" not in cells([plain])[0] and "KL/d" not in printed([plain])
    assert "KL/d: divergence over budget" in printed([row])

    paths = write_report(runs, tmp_path / "out")
    assert "| 15.6 % | 7 to 9 | 2 |" in paths["table.md"].read_text()
    assert "<td>15.6 %</td><td>7 to 9</td>" in paths["report.html"].read_text()
    with paths["table.csv"].open(newline="") as file:
        without, record = csv.DictReader(file)
    assert without["at_bound"] == without["kl_over_budget_highest"] == ""
    assert [float(record[f"kl_over_budget_{end}"]) for end in ("lowest", "highest")] == [7, 9]
    assert float(record["at_bound"]) == 0.15625
    with paths["agents.csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["algorithm"], line["seed"], line["agent"]) for line in lines] == [
        ("omar", seed, agent) for seed in "01" for agent in "01"
    ]
    assert [float(line["final_influence"]) for line in lines] == [8, -8, 18, 2]
    assert [float(line["final_v_r"]) for line in lines] == [800, 1600] * 2
    assert "final_critic_loss" not in lines[0]


def test_what_is_logged_for_each_agent_is_drawn_with_a_line_for_each(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", TEN, logged=agents_logged((2, 4, 8)))
    write_run(tmp_path / "runs" / "1", TEN, seed=1, logged=agents_logged((2, 8), seed=1))  # not logged after 4
    write_run(tmp_path / "runs" / "bc", TEN, algorithm="bc")
    runs = load_runs(tmp_path / "runs")[0]
    drawn = {picture.name: figure for picture, figure in figures.draw(summarise(runs))}
    names = [f"{kind}-particle-spread-medium-omar" for kind in ("agents", "influence")]
    assert [name for name in drawn if name.startswith(("agents", "influence"))] == names
    over_training, influence = (drawn[name] for name in names)
    titles = [axes.get_title(loc="left") for axes in over_training.axes]
    assert titles == ["at_bound", "influence", "kl_over_budget", "v_r"]
    lines = [np.asarray(line.get_xydata()).tolist() for line in over_training.axes[1].lines]
    assert lines == [[[2, 7], [8, 13]], [[2, 3], [8, -3]]]
    assert [text.get_text() for text in over_training.legends[0].get_texts()] == ["agent 0", "agent 1"]

    (axes,) = influence.axes
    assert [np.asarray(line.get_xydata()).tolist() for line in axes.lines if line.get_marker() == "None"] == [
        [[200, 2], [800, 8]],  # agent 0 in both runs
        [[200, 12], [800, 18]],
        [[400, -2], [1600, -8]],  # agent 1
        [[400, 8], [1600, 2]],
    ]
    ends = [line for line in axes.lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_xydata()).tolist() for line in ends] == [
        [[800, 8]], [[800, 18]], [[1600, -8]], [[1600, 2]],
    ]  # fmt: skip
    assert len({line.get_color() for line in ends}) == 2

    paths = write_report(runs, tmp_path / "out")
    page = paths["report.html"].read_text()
    assert all(paths[name].read_bytes().startswith(b"\x89PNG") for name in names)
    assert page.count('alt="omar on medium"') == 2
    write_run(tmp_path / "other" / "bc", TEN, algorithm="bc")
    assert "agents.csv" not in write_report(load_runs(tmp_path / "other")[0], tmp_path / "out2")


def test_a_metric_that_is_not_finite_or_not_of_all_runs_is_not_drawn(tmp_path: Path) -> None:
    lines = agents_logged((2, 8))
    lines[0]["kl_over_budget"] = [None, 1.0]
    write_run(tmp_path / "0", TEN, logged=lines)
    write_run(tmp_path / "1", TEN, seed=1, logged=[{k: v for k, v in line.items() if k != "v_r"} for line in lines])
    row = only_row(tmp_path)
    assert list(row.per_agent) == ["at_bound", "influence"]
    assert row.kl_over_budget is None
    assert list(figures._agents(row)) == ["agents"]
    write_run(tmp_path / "2", TEN, seed=2)
    assert only_row(tmp_path).per_agent == {}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"updates": 8, "kl": [1.0, 2.0, 3.0]}, "its lines do not fit each other"),
        ({"updates": 8, "kl": 1.0}, "its lines do not fit each other"),
        ({"updates": 8}, "its lines do not fit each other"),
        ({"updates": 8, "kl": [1.0, 2.0], "share": [1.0, 0.0]}, "its lines do not fit each other"),
        ({"updates": 2, "kl": [1.0, 2.0]}, "its lines do not fit each other"),
        ({"updates": 8, "kl": []}, "expected `array` of length >= 1"),
        ({"updates": 8, "kl": [[1.0], 2.0]}, "got `array`"),
        ({"updates": 8, "kl": "much"}, "got `str`"),
        ({"kl": [1.0, 2.0]}, "missing required field `updates`"),
    ],
)
def test_damaged_metrics_are_refused(tmp_path: Path, line: dict[str, Any], why: str) -> None:
    write_run(tmp_path / "0", TEN, logged=[{"updates": 2, "kl": [1.0, 2.0]}, line])
    ((path, reason),) = load_runs(tmp_path)[1].items()
    assert path == tmp_path / "0"
    assert "metrics.jsonl' is damaged" in reason and why in reason


def test_all_metrics_of_agents_have_equally_many(tmp_path: Path) -> None:
    write_run(tmp_path / "0", TEN, logged=[{"updates": i, "kl": [1.0, 2.0], "share": [1.0]} for i in (2, 8)])
    assert "its lines do not fit each other" in load_runs(tmp_path)[1][tmp_path / "0"]


HOSTILE = "=1|<script>alert(1)</script>"


def test_names_stay_inside_their_cells(tmp_path: Path) -> None:
    """In HTML no name becomes markup, in Markdown none opens a cell, in a spreadsheet none becomes a formula."""
    write_run(tmp_path / "runs" / "0", TEN, algorithm=HOSTILE, dataset="@data|set\n# no heading")
    write_run(tmp_path / "runs" / "1", TEN, algorithm=HOSTILE, seed=1, record=DIVERGED | {"reason": "-<b>|\n+"})
    paths = write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out", {tmp_path / "<i>": "<u>"})
    page = paths["report.html"].read_text()
    assert html.escape(HOSTILE) in page
    assert not re.findall(r"<(?:script|b|i|u)\b", page)

    tables = [line for line in paths["table.md"].read_text().splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in tables]
    assert {len(line) for line in cells} == {10, 3, 4, 8}  # of the four tables
    assert [line for line in cells if "=1\\|<script>" in line[1]]
    assert "\n# no heading" not in paths["table.md"].read_text()

    for name in ("table.csv", "runs.csv"):
        with paths[name].open(newline="") as file:
            for record in csv.DictReader(file):
                assert record["algorithm"] == f"'{HOSTILE}"
                assert record["dataset"][0] in "'m"
                assert record["mean"] in ("-47.75", "nan", "")  # a negative number needs no apostrophe
    assert "'=1" not in paths["table.md"].read_text()


def test_no_folder_of_this_computer_is_shown(tmp_path: Path) -> None:
    folder = str(tmp_path)
    write_run(tmp_path / "runs" / "0", TEN, dataset=f"{folder}/logs/pilots", options={"prey": f"{folder}/prey.npz"})
    write_run(tmp_path / "runs" / "1", TEN, dataset=f"{folder}/logs/pilots", config_hash="y")
    write_run(tmp_path / "runs" / "2", TEN, seed=1, record=DIVERGED | {"reason": f"see '{folder}/error.txt'"})
    reason = f"OSError: (see '{folder}/groups/1/error.txt')"
    paths = write_report(load_runs(tmp_path / "runs")[0], tmp_path / "out", {tmp_path / "runs" / "9": reason})
    texts = {name: path.read_text() for name, path in paths.items() if path.suffix != ".png"}
    for text in texts.values():
        assert folder not in text
    assert "omar (prey=prey.npz)" in texts["table.md"] and "| pilots |" in texts["table.md"]
    assert "see &#x27;error.txt&#x27;" in texts["report.html"]
    assert "(see &#x27;error.txt&#x27;)" in texts["report.html"]
    assert without_folders("particle/spread, https://a.org/b/c, 1/2, results/x") == (
        "particle/spread, https://a.org/b/c, 1/2, results/x"
    )


def test_only_folders_of_runs_are_read(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", TEN)
    for place in ("runs/0/files", "runs/0/wandb/run", "groups/a/checkpoints/7", "wandb/run"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
    assert [run.folder for run in load_runs(tmp_path)[0]] == [tmp_path / "runs" / "0"]
    assert load_runs(tmp_path)[1] == {}


ALONE = """
import sys
from pathlib import Path
from rich.console import Console
import omarl_jax.report.published
from omarl_jax.report import print_table, write_report
from omarl_jax.report.load import load_runs
from omarl_jax.report.summarise import summarise

runs = load_runs(Path(sys.argv[1]))[0]
paths = write_report(runs, Path(sys.argv[2]))
print_table(summarise(runs), Console())
assert paths["report.html"].exists()
print(sorted(sys.modules.keys() & {"jax", "jumanji", "flax", "omarl_envs.base", "omarl_jax.export", "omarl_jax.types"}))
"""


def test_results_are_read_without_jax_and_environments(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", TEN)
    write_run(tmp_path / "runs" / "1", TEN, options={"n_agents": 5}, config_hash="b")
    arguments = [sys.executable, "-c", ALONE, str(tmp_path / "runs"), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
