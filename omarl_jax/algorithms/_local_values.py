"""What methods that solve one problem for each agent have in common: hyperparameters, values, and how agents act."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex

from omarl_jax.algorithms._steps import Loss, Step, soft_update
from omarl_jax.networks import InputNorm, LinearMixer, Net, Policy, Sharing
from omarl_jax.types import Algorithm, Init, Metrics, Needs, Transition, Update, View, config


@config
class LocalValuesConfig:
    """Hyperparameters of methods with local values; the defaults are those of OMIGA (Wang et al. 2023)."""

    lr: float = 5e-4
    """Adam's learning rate, of all networks."""
    gamma: float = 0.99
    """Discount."""
    tau: float = 0.005
    """Soft update of the targets."""
    grad_clip: float = 1.0
    """Largest norm of a gradient."""
    batch_size: int = 128
    """Transitions a batch."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    mixer_hidden: int = 64
    """Width of a mixer's hidden layer."""
    input_norm: InputNorm = "none"
    """Normalisation of the networks' inputs."""
    sharing: Sharing = "shared"
    """Whether agents have parameters of their own, or share one set and see their number."""


class Values(NamedTuple):
    """Q with its mixer's parameters, V, their targets, and the optimisers of both."""

    q: tuple[Any, Any]
    v: Any
    target_q: tuple[Any, Any]
    target_v: Any
    optimisers: tuple[Any, Any]

    @staticmethod
    def start(q: tuple[Any, Any], v: Any, q_step: Step, v_step: Step) -> "Values":
        """Fresh parameters of Q with its mixer, and of V, whose targets begin like them."""
        return Values(q, v, q, v, (q_step.init(q), v_step.init(v)))

    def learn(
        self, q_step: Step, q_loss: Loss, v_step: Step, v_loss: Loss, tau: chex.Array
    ) -> tuple["Values", Metrics]:
        """One step of Q with its mixer and one of V, both by losses at the old parameters; targets follow."""
        q, q_optimiser, metrics = q_step(q_loss, self.q, self.optimisers[0])
        v, v_optimiser, more = v_step(v_loss, self.v, self.optimisers[1])
        targets = soft_update(self.target_q, q, tau), soft_update(self.target_v, v, tau)
        return Values(q, v, *targets, (q_optimiser, v_optimiser)), metrics | more


def local_algorithm(
    policy: Policy,
    q: Any,
    mixer: LinearMixer,
    init: Init,
    update: Update,
    needs: Needs,
    q_of: Callable[[Any], tuple[Any, Any]],
) -> Algorithm:
    """The algorithm of stochastic policies and a mixed team value; `q_of` takes Q with its mixer from a state."""

    def act(net: Net, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        pi, carry = policy.act(net, view.obs, view.action_mask)
        return pi.sample(key) if explore else pi.mode(), carry

    def values(state: Any, batch: Transition) -> chex.Array:
        q_params, mixer_params = q_of(state)
        return mixer(mixer_params, batch.state, q(q_params, batch.obs, batch.actions)[0])[None]

    return Algorithm(init, update, act, needs, explores=True, values=values)
