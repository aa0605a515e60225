"""MA-CIQL: conservative Q-learning for discrete actions, each agent for itself (see ciqr.py).

With `cql_alpha` 0 it is MA-DIQN, and learning online, it is the published MA-DQN that makes the data.
"""

from omarl_jax.algorithms import ciqr
from omarl_jax.types import Algorithm, TaskSpec, config


@config
class Config(ciqr.Config):
    """Hyperparameters of MA-CIQL: those of MA-CIQR."""

    lr: float = 1e-4
    """Adam's learning rate."""
    tau: float = 1e-3
    """Soft update of the targets."""
    grad_clip: float = 1.0
    """Largest norm of a gradient."""
    quantiles: int = 0
    """N, atoms of an action; 0 learns the mean alone."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    ciqr.validate(config, spec, "ciql")


def ciql(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CIQL for a discrete task."""
    return ciqr.ciqr(config, spec)
