"""How many runs a device has memory for: the estimate, and what becomes of a wrong one. A CPU plays a small device."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import pytest

from omarl_jax import algorithms, load_dataset, placement
from omarl_jax.data.dataset import Dataset
from omarl_jax.grid import make_grid
from omarl_jax.placement import Placement, plan, widest
from omarl_jax.sweep import sweep
from omarl_jax.training import Trainer

SMALL = {"hidden": (16,), "batch_size": 64}
RUNS = 4


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("matrix/xor", "random", size=2_000)


@pytest.fixture
def as_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """One device, which takes all runs side by side unless told otherwise."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    usual = Placement.default
    monkeypatch.setattr(Placement, "default", staticmethod(lambda runs, most=None: usual(runs, most or runs)))


def test_as_many_runs_fit_as_a_line_says() -> None:
    assert widest(fixed=100, per_run=10, free=150) == 5
    assert widest(fixed=100, per_run=10, free=149.9) == 4
    assert widest(fixed=100, per_run=10, free=50) == 1


def test_the_memory_of_a_program_is_a_line_in_the_number_of_its_runs(dataset: Dataset) -> None:
    method = algorithms.find("bc")
    config = method.configure(dataset.spec, SMALL)

    def needed(runs: int) -> int:
        trainer = Trainer(method, [config] * runs, range(runs), [dataset], [0] * runs, None, Placement(runs, 1))
        memory = trainer.compile(3)
        assert memory is not None
        assert "runs" not in vars(trainer)  # nothing was put on the device
        if runs == 2:  # the compiled program is the one that trains
            trainer._program = None  # type: ignore[assignment, method-assign]
            trainer.advance(3)
            assert trainer.runs.updates.tolist() == [3, 3]
            states.extend(jax.tree.leaves(trainer.runs))
        return memory

    states: list[jax.Array] = []
    two, three, five = needed(2), needed(3), needed(5)
    per_run = (five - three) / 2
    fixed = five - 5 * per_run
    assert two == pytest.approx(fixed + 2 * per_run, rel=0.05)
    assert fixed > sum(x.nbytes for x in jax.tree.leaves(dataset.rows))
    assert per_run > sum(x.nbytes for x in states) / 2


class Program:
    """Needs 100 bytes and 10 for each run, except that `jump` are added from 8 runs on."""

    compiled: ClassVar[list[int]] = []

    def __init__(self, placement: Placement, jump: int = 0):
        self.placement, self.jump = placement, jump

    def compile(self, updates: int) -> int:
        width = self.placement.side_by_side
        self.compiled.append(width)
        return 100 + 10 * width + (self.jump if width >= 8 else 0)


@pytest.mark.parametrize(
    ("free", "jump", "tried"),
    [
        (None, 0, [24]),  # as CPUs, which do not say
        (340, 0, [24]),
        (339, 0, [24, 12]),
        (219, 0, [24, 12, 8]),  # room for eleven: three batches of eight
        (149, 0, [24, 12, 4]),  # room for four
        (1, 0, [24, 12, 1]),  # it is tried
        (219, 100, [24, 12, 1]),  # the line of 24 and 12 is too high, so fewer are tried than would fit
    ],
)
def test_the_largest_equal_batches_are_found_with_few_compilations(
    free: int | None, jump: int, tried: list[int], monkeypatch: pytest.MonkeyPatch, as_an_accelerator: None
) -> None:
    monkeypatch.setattr(placement, "SHARE", 1.0)
    monkeypatch.setattr(placement, "free_memory", lambda: free)
    monkeypatch.setattr(Program, "compiled", [])
    found, needed = plan(lambda placement: Program(placement, jump), n_runs=24, updates=1)
    assert Program.compiled == tried
    assert found.placement == Placement(tried[-1], 1)
    assert needed == 100 + 10 * tried[-1] + (jump if tried[-1] >= 8 else 0)


def test_the_rest_of_a_devices_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, stats: dict[str, int] | None):
            self.memory_stats = lambda: stats

    def free(*stats: dict[str, int] | None) -> int | None:
        monkeypatch.setattr(jax, "local_devices", lambda: [Device(each) for each in stats])
        return placement.free_memory()

    assert free({"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 90, "bytes_in_use": 0}) == 70
    assert free(None) is None


def grid(**settings: Any) -> Any:
    block = {"tasks": ["matrix/xor"], "datasets": ["random"], "algorithms": ["bc"], "updates": 4, "size": 200}
    block |= {"hyperparameters": {"hidden": [[8]], "batch_size": 16}}
    return make_grid(
        {"seeds": list(range(RUNS)), "evaluations": 2, "episodes": 2, "final_episodes": 2, "block": [block]} | settings
    )


def state_of(out: Path) -> dict[str, Any]:
    (file,) = out.glob("groups/*/group.json")
    return dict(json.loads(file.read_text()))


def full(monkeypatch: pytest.MonkeyPatch, when: Callable[[Trainer], bool]) -> list[tuple[int, int]]:
    """Lets a device run out of memory; returns the updates and the side by side of every call so far."""
    calls: list[tuple[int, int]] = []
    advance = Trainer.advance

    def limited(trainer: Trainer, updates: int) -> Any:
        calls.append((trainer.updates, trainer.placement.side_by_side))
        if when(trainer):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")
        return advance(trainer, updates)

    monkeypatch.setattr(Trainer, "advance", limited)
    return calls


def test_a_group_is_placed_as_its_device_has_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_an_accelerator: None
) -> None:
    calls = full(monkeypatch, lambda trainer: False)
    shown: list[str] = []
    assert not sweep(grid(), tmp_path / "large", lambda group, now: shown.append(now.part))
    large = state_of(tmp_path / "large")
    assert large["placement"] == {"slots": RUNS, "devices": 1}
    assert shown[0].startswith("4 side by side, about ")
    monkeypatch.setattr(placement, "free_memory", lambda: large["memory"])  # of which a tenth is kept back
    assert not sweep(grid(), tmp_path / "small")
    assert state_of(tmp_path / "small")["placement"] == {"slots": 2, "devices": 1}
    assert state_of(tmp_path / "small")["memory"] < large["memory"]
    assert calls == [(0, 4), (2, 4), (0, 2), (2, 2)]
    assert not sweep(grid(side_by_side=4), tmp_path / "asked")  # the user knows better
    assert calls[4:] == [(0, 4), (2, 4)]


def test_runs_that_do_not_fit_are_halved_before_their_first_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_an_accelerator: None
) -> None:
    room, held = 2, 4  # runs side by side, and updates after which a device loses all its room

    def when(trainer: Trainer) -> bool:
        return trainer.placement.side_by_side > room or trainer.updates >= held

    calls = full(monkeypatch, when)
    held = 2
    (reason,) = set(sweep(grid(), tmp_path).values())
    assert calls == [(0, 4), (0, 2), (2, 2)]
    assert "began with 2 side by side on each device" in reason
    assert "start the sweep again on a device with more memory" in reason
    assert "training alone needs about 1 MB" in reason
    assert state_of(tmp_path)["placement"] == {"slots": 2, "devices": 1}

    room, held = 1, 4
    (reason,) = set(sweep(grid(), tmp_path).values())  # a smaller device does not split them
    assert calls[3:] == [(2, 2)]
    assert "began with 2" in reason
    room = 100
    assert not sweep(grid(), tmp_path)  # a larger one does not join them
    assert calls[4:] == [(2, 2)]


def test_a_state_without_room_is_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_an_accelerator: None
) -> None:
    """Else the newest checkpoint would be left out and deleted."""
    full(monkeypatch, lambda trainer: trainer.updates >= 2)
    sweep(grid(), tmp_path)
    before = sorted(tmp_path.glob("groups/*/checkpoints/*"))
    assert [path.name for path in before] == ["2"]

    def crowded(*given: Any, **options: Any) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", crowded)
    (reason,) = set(sweep(grid(), tmp_path).values())
    assert "began with 4" in reason
    assert sorted(tmp_path.glob("groups/*/checkpoints/*")) == before


@pytest.mark.parametrize(
    ("settings", "message", "tried"),
    [
        ({}, "too small for a single one of these runs", [4, 2, 1]),
        ({"side_by_side": 2}, "too small for 2 of these runs side by side; training alone needs about 1 MB: give", [2]),
    ],
)
def test_no_room_at_all_is_one_sentence(
    settings: dict[str, int],
    message: str,
    tried: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_an_accelerator: None,
) -> None:
    calls = full(monkeypatch, lambda trainer: True)
    (reason,) = set(sweep(grid(**settings), tmp_path).values())
    assert message in reason
    assert [side_by_side for _, side_by_side in calls] == tried
