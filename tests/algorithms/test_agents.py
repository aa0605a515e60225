"""What agents and critics see, whose action is judged, and who learns for whom."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SPEC, A, N, O

from omarl_jax import networks
from omarl_jax.networks import agents, blocks


def test_what_each_sees() -> None:
    x = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # (B, N, X)
    np.testing.assert_array_equal(agents.view_of("own", x, 3), x)
    everybody = agents.view_of("all", x, 3)
    assert everybody.shape == (2, 3, 12)
    for i in range(3):
        np.testing.assert_array_equal(everybody[1, i], np.concatenate(x[1]))
    joint = agents.view_of("all", x, 1)
    assert joint.shape == (2, 1, 12)
    np.testing.assert_array_equal(joint[0, 0], np.concatenate(x[0]))
    state = agents.view_of("state", x[:, 0], 3)
    assert state.shape == (2, 3, 4)
    np.testing.assert_array_equal(state[1], np.tile(x[1, 0], (3, 1)))


@pytest.mark.parametrize("kind", ["none", "batch"])
@pytest.mark.parametrize(("view", "joint"), [("own", False), ("all", False), ("all", True)])
@pytest.mark.parametrize("leading", [(), (7,)])
def test_own_action_takes_its_place_in_the_joint_one(
    kind: Any, view: Any, joint: bool, leading: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent by agent, by the first head; candidates in blocks, which do not divide what is normalised together."""
    monkeypatch.setattr(blocks, "_BLOCK", 4)
    critic = networks.critic(SPEC, (16,), kind, view=view, joint=joint)
    params = critic.init(jax.random.key(0))
    keys, shapes = jax.random.split(jax.random.key(1), 3), ((16, N, O), (*leading, 16, N, A), (16, N, A))
    obs, own, others = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    found = critic.own(params, obs, own, others)
    assert found.shape == (*leading, 16, N)
    for i in range(N):
        actions = jnp.broadcast_to(others, own.shape).at[..., i, :].set(own[..., i, :])
        expected = critic(params, obs, actions)[0, ..., 0 if joint else i]
        np.testing.assert_allclose(found[..., i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("view", "joint"), [("own", False), ("all", False), ("all", True)])
def test_the_value_of_an_action_has_a_gradient_by_that_action_only(view: Any, joint: bool) -> None:
    critic = networks.critic(SPEC, (16,), "none", view=view, joint=joint)
    params = critic.init(jax.random.key(0))
    obs, own, others = (jax.random.normal(jax.random.key(i), (5, N, x)) for i, x in enumerate((O, A, A)))
    slopes = jax.jacobian(lambda own: critic.own(params, obs, own, others).sum(axis=0))(own)  # (N, B, N, A)
    for i in range(N):
        assert np.abs(slopes[i, :, i]).max(axis=-1).min() > 0
        assert (np.delete(slopes[i], i, axis=1) == 0).all()


def test_a_team_learns_means_sums_and_the_end_of_all() -> None:
    rewards = jnp.array([[1.0, 3.0], [0.0, 5.0]])
    terminal = jnp.array([[True, False], [True, True]])
    np.testing.assert_allclose(networks.group(rewards, True, "mean"), [[2.0], [2.5]])
    np.testing.assert_allclose(networks.group(rewards, True, "sum"), [[4.0], [5.0]])
    np.testing.assert_array_equal(networks.group(terminal, True, "all"), [[False], [True]])
    for how, x in (("mean", rewards), ("sum", rewards), ("all", terminal)):
        np.testing.assert_array_equal(networks.group(x, False, how), x)
    for joint, size in ((True, 1), (False, N)):
        critic = networks.critic(SPEC, (4,), "none", view="all", joint=joint)
        assert critic.group(rewards, "mean").shape == (2, size)
