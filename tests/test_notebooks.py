"""Notebooks are built as they should be; `make notebooks` and `make wheel` run them."""

import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

import pytest

# Not a part of the installed packages.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "experiments" / "notebooks"))

import build

FIRST_STEPS = build.HERE / "first_steps.py"
ADDRESS = "https://github.com/owner/omarl_jax"


def converted(address=""):
    project = {"urls": {"Repository": address}, "dependencies": ["flax>=0.12", "jax>=0.10.2"]}
    return build.convert(FIRST_STEPS, project)


def first_cell(address=""):
    return next(cell.source for cell in converted(address).cells if cell.cell_type == "code")


def test_the_address_of_the_project_decides_about_the_badge() -> None:
    with_badge, without = converted(ADDRESS).cells, converted().cells
    place = "https://colab.research.google.com/github/owner/omarl_jax/blob/main/experiments/notebooks/first_steps.ipynb"
    assert f"({place})" in with_badge[0].source
    assert with_badge[0].source.endswith(without[0].source)
    assert not any("colab.research" in cell.source for cell in without)
    assert "colab.research" not in FIRST_STEPS.read_text()


@pytest.fixture
def runtime(monkeypatch):
    """A runtime with these packages, by name and version, and without omarl_jax; returns the calls of pip."""
    calls = []

    def with_packages(**versions):
        monkeypatch.setattr(importlib.util, "find_spec", versions.get)
        monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
        return calls

    def pip(command, check):
        assert check
        constraints = pathlib.Path(command[command.index("--constraint") + 1])
        calls.append((command[:4], constraints.read_text(), command[-1]))

    monkeypatch.setattr(subprocess, "run", pip)
    return with_packages


def test_where_omarl_jax_is_installed_the_first_cell_does_nothing(runtime) -> None:
    calls = runtime(omarl_jax="0.2.0", jax="0.1.0", jaxlib="0.1.0")
    exec(first_cell(ADDRESS), {})
    assert not calls


@pytest.mark.parametrize("found", ["0.10.2", "0.11.0", "0.100.0", "1.0"])
def test_omarl_jax_is_installed_beside_the_jax_that_is_there(runtime, found) -> None:
    calls = runtime(jax=found, jaxlib=f"{found}+cuda12")
    exec(first_cell(ADDRESS), {})
    pip = [sys.executable, "-m", "pip", "install"]
    assert calls == [(pip, f"jax=={found}\njaxlib=={found}+cuda12\n", f"git+{ADDRESS}")]


def test_where_jax_is_missing_it_is_installed(runtime) -> None:
    calls = runtime()
    exec(first_cell(ADDRESS), {})
    assert [constraints for _, constraints, _ in calls] == [""]


@pytest.mark.parametrize("found", ["0.4.38", "0.9.9", "0.10.1"])
def test_a_jax_that_is_too_old_is_told_and_not_replaced(runtime, found) -> None:
    calls = runtime(jax=found, jaxlib=found)
    with pytest.raises(
        SystemExit, match=rf"^This runtime has JAX {found}, and omarl_jax needs 0.10.2 or newer: [^.]+\.$"
    ):
        exec(first_cell(ADDRESS), {})
    assert not calls


def test_before_the_first_release_the_first_cell_says_what_to_do(runtime) -> None:
    calls = runtime(jax="0.10.2", jaxlib="0.10.2")
    with pytest.raises(SystemExit, match="not published yet"):
        exec(first_cell(), {})
    assert not calls


def test_warnings_and_floods_of_lines_are_refused() -> None:
    def printed(text, name="stdout"):
        notebook = converted()
        notebook.cells[1].outputs = [{"output_type": "stream", "name": name, "text": text}]
        return notebook

    build.require_quiet(printed("score 1\n" * 10))
    build.require_quiet(printed("\r10 updates\r20 updates\n", "stderr"))  # one line that moves
    for loud in (printed("\r10 updates\nUserWarning", "stderr"), printed("score 1\n" * 1000)):
        with pytest.raises(RuntimeError, match="should not print"):
            build.require_quiet(loud)
