"""Files of format 2, as they were first written, act and read as they did then."""

import json
import pathlib

import numpy as np
import pytest

from omarl_jax import load_policy
from omarl_jax.report.load import load_run

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "format_2"
ACTIONS = json.loads((FOLDER / "actions.json").read_text())
RUN = FOLDER / "matrix-climbing_random_bc_34f70dfe_seed0"


@pytest.mark.parametrize("name", ACTIONS)
def test_a_policy_acts_as_it_did(name: str) -> None:
    """With batch normalisation, standardised inputs, shared parameters, memory, and discrete actions."""
    policy = load_policy(FOLDER / f"{name}.npz")
    discrete = policy.spec.kind == "discrete"
    mask = np.ones((policy.spec.n_agents, policy.spec.action_dim), bool) if discrete else None
    actions, _ = policy.step(np.array(ACTIONS[name]["obs"], np.float32), mask, policy.start())
    np.testing.assert_allclose(actions, ACTIONS[name]["actions"], atol=1e-5)
    assert np.abs(actions).max() > 0


def test_a_run_reads_as_it_did() -> None:
    run = load_run(RUN)
    assert (run.algorithm, run.task, run.dataset, run.seed, run.config_hash) == (
        "bc",
        "matrix/climbing",
        "random",
        0,
        "34f70dfe",
    )
    assert run.evaluations.tolist() == [2, 4]
    assert run.returns.shape == (2, 4)
    assert run.final_returns.shape == (8,)
    assert run.failure is None
    policy = load_policy(RUN / "policy.npz")
    assert policy.act(np.ones((2, 1), np.float32), np.ones((2, 3), bool)).shape == (2,)
