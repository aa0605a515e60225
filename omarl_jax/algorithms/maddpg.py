"""MADDPG (Lowe et al. 2017): MATD3 with one critic an agent, no target noise and no delay."""

from omarl_jax.algorithms import matd3
from omarl_jax.types import Algorithm, TaskSpec, config


@config
class Config(matd3.Config):
    """Hyperparameters of MADDPG: those of MATD3."""

    target_noise: float = 0.0
    """Standard deviation of the noise on target actions."""
    policy_delay: int = 1
    """Critic updates for each policy update."""
    n_critics: int = 1
    """Critics an agent; the least of them counts in targets."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    matd3.validate(config, spec, "maddpg")


def maddpg(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MADDPG for a continuous task."""
    return matd3.matd3(config, spec)
