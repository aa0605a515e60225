"""Short forms of `chaos.py`: commands that are killed at random and started again end with the same numbers."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("chaos.py")


def chaos(out, kills, *kinds):
    command = [sys.executable, str(SCRIPT), "--kills", str(kills), "--seed", "1", "--out", str(out)]
    told = subprocess.run([*command, "--kinds", *kinds], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    return json.loads(out.read_text())


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_numbers(tmp_path):
    figures = chaos(tmp_path / "figures.json", 6, "training")["training"]
    assert figures["kills"] == sum(figures["where"].values()) == 6
    assert figures["compared"] >= 1


@pytest.mark.slow
def test_all_kinds_of_commands_end_with_the_same_numbers(tmp_path):
    figures = chaos(tmp_path / "figures.json", 40, "training", "collection", "behaviour", "sweep", "ray")
    assert all(kind["kills"] and kind["compared"] for kind in figures.values())
