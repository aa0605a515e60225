"""What the actor-critics of the OMAR family have in common: hyperparameters, state, and how both begin and end."""

from typing import Any, NamedTuple

import chex
import jax
from omarl_envs.spec import TaskSpec

from omarl_jax import networks
from omarl_jax.algorithms._steps import Step, soft_update
from omarl_jax.networks import Critic, CriticView, InputNorm, Net, Policy, Sharing
from omarl_jax.types import Algorithm, Init, Needs, Transition, Update, View, config


@config
class ActorCriticConfig:
    """Hyperparameters of actor-critics; the defaults are those of the particle tasks (Pan et al. 2022)."""

    lr: float = 0.01
    """Adam's learning rate, of policies and critics."""
    gamma: float = 0.95
    """Discount."""
    tau: float = 0.01
    """Soft update of the targets."""
    grad_clip: float = 0.5
    """Largest norm of a network's gradient."""
    centralised: bool = False
    """One critic that sees all agents."""
    batch_size: int = 1024
    """Transitions a batch."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    input_norm: InputNorm = "batch"
    """Normalisation of the networks' inputs."""
    sharing: Sharing = "separate"
    """Whether agents have parameters of their own, or share one set and see their number."""


class State(NamedTuple):
    """Every leaf of separate networks begins with (N,), that of a joint critic with (1,)."""

    policy: Net
    critic: Any
    target_policy: Any
    target_critic: Any
    policy_optimiser: Any
    critic_optimiser: Any


def critic_of(config: ActorCriticConfig, spec: TaskSpec) -> Critic:
    """Twin critics: of each agent for itself, or one that sees all agents."""
    view: CriticView = "all" if config.centralised else "own"
    return networks.critic(spec, config.hidden, config.input_norm, config.sharing, view, joint=config.centralised)


def start(key: chex.PRNGKey, policy: Policy, critic: Critic, policy_step: Step, critic_step: Step) -> State:
    """Fresh networks, whose targets begin like them."""
    policy_key, critic_key = jax.random.split(key)
    net, critics = policy.init(policy_key), critic.init(critic_key)
    return State(net, critics, net.params, critics, policy_step.init(net.params), critic_step.init(critics))


def follow(state: State, tau: chex.Array) -> State:
    """The state with targets that have moved towards their networks."""
    return state._replace(
        target_policy=soft_update(state.target_policy, state.policy.params, tau),
        target_critic=soft_update(state.target_critic, state.critic, tau),
    )


def greedy_algorithm(
    config: ActorCriticConfig, policy: Policy, critic: Critic, init: Init, update: Update
) -> Algorithm:
    """The algorithm of policies that act without noise and do not explore, and of critics of single transitions."""

    def act(net: Net, view: View, carry: Any, key: chex.PRNGKey, explore: bool = False) -> tuple[chex.Array, Any]:
        return policy.act(net, view.obs)

    def values(state: State, batch: Transition) -> chex.Array:
        return critic(state.critic, batch.obs, batch.actions)

    return Algorithm(init, update, act, Needs(config.batch_size), values=values)
