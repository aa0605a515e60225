"""What SECURITY.md promises: opening a file runs no code that it holds or names."""

import ast
import pathlib
from collections.abc import Iterator

import numpy as np
import omarl_envs
import pytest

import omarl_jax
from omarl_jax import UserError, load_policy, make_env
from omarl_jax.files import read_arrays

ROOTS = [pathlib.Path(next(iter(package.__path__))).resolve() for package in (omarl_jax, omarl_envs)]
FILES = {f"{root.name}/{file.relative_to(root)}": file for root in ROOTS for file in root.rglob("*.py")}
RUN_CODE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "yaml"}
IMPORT_BY_NAME = {
    "omarl_jax/__init__.py",  # names of this package
    "omarl_jax/report/__init__.py",
    "omarl_jax/algorithms/__init__.py",  # of methods: what the user typed, or after `require_trusted`
    "omarl_envs/registry.py",  # of tasks: what the user typed, or after `require_trusted_task`
    "omarl_jax/cli/play.py",  # with --trust
}


def nodes(name: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_reader_runs_code(name: str) -> None:
    for node in nodes(name):
        match node:
            case ast.Import(names=names):
                assert RUN_CODE.isdisjoint(alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                assert module.partition(".")[0] not in RUN_CODE
            case ast.Call(func=ast.Name(id=function)):
                assert function not in ("eval", "exec", "compile", "__import__")
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="load"), keywords=given):
                assert {one.arg: ast.literal_eval(one.value) for one in given} == {"allow_pickle": False}


def test_modules_are_imported_by_name_in_few_places() -> None:
    found = {
        name
        for name in FILES
        for node in nodes(name)
        if isinstance(node, ast.Attribute) and node.attr in ("import_module", "exec_module", "run_module", "run_path")
    }
    assert found == IMPORT_BY_NAME


class Trap:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, sprung: pathlib.Path):
        self.sprung = sprung

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.sprung,)


@pytest.mark.parametrize("read", [load_policy, read_arrays, lambda path: make_env("particle/tag", prey=str(path))])
def test_no_archive_is_unpickled(tmp_path: pathlib.Path, read) -> None:
    names = ("header", "updates", "bn_scale", "w1")
    np.savez(tmp_path / "trap.npz", **dict.fromkeys(names, np.array([Trap(tmp_path / "sprung")], object)))
    with np.load(tmp_path / "trap.npz", allow_pickle=True) as archive:
        assert archive["w1"] is not None
    assert (tmp_path / "sprung").exists()  # so the trap works
    (tmp_path / "sprung").unlink()
    with pytest.raises(UserError, match=r"trap\.npz"):
        read(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()
