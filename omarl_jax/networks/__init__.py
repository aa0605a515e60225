"""The networks of all methods, each for all agents at once.

A network is a small frozen object with pure functions: `init(key)`, and a call on parameters and arrays that carry the
agent axis, (B, N, …). It knows what a method need not know: whether agents have parameters of their own or share one
set (`Sharing`), what they see (`CriticView`), how inputs are normalised, and which action entries are padding.
"""

from omarl_jax.networks.agents import (
    CriticView,
    Sharing,
    illegal_to_minus_infinity,
    mean_over_actions,
    real_actions,
    sum_over_actions,
    without_padding,
)
from omarl_jax.networks.blocks import MEAN, in_blocks
from omarl_jax.networks.critics import (
    ActionValues,
    Critic,
    CriticInputs,
    StateValues,
    action_values,
    critic,
    group,
    q_network,
    state_values,
    take_action,
)
from omarl_jax.networks.mixers import LinearMixer, MixerKind, SquareMixer, linear_mixer, mix, square_mixer
from omarl_jax.networks.normalisation import InputNorm, Net, Norm
from omarl_jax.networks.policies import (
    Categorical,
    Policy,
    TanhGaussian,
    deterministic_policy,
    scale_logits,
    stochastic_policy,
)

__all__ = [
    "MEAN",
    "ActionValues",
    "Categorical",
    "Critic",
    "CriticInputs",
    "CriticView",
    "InputNorm",
    "LinearMixer",
    "MixerKind",
    "Net",
    "Norm",
    "Policy",
    "Sharing",
    "SquareMixer",
    "StateValues",
    "TanhGaussian",
    "action_values",
    "critic",
    "deterministic_policy",
    "group",
    "illegal_to_minus_infinity",
    "in_blocks",
    "linear_mixer",
    "mean_over_actions",
    "mix",
    "q_network",
    "real_actions",
    "scale_logits",
    "square_mixer",
    "state_values",
    "stochastic_policy",
    "sum_over_actions",
    "take_action",
    "without_padding",
]
