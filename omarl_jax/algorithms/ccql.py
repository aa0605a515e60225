"""MA-CCQL: conservative Q-learning for discrete actions with value decomposition (see ciqr.py).

With `cql_alpha` 0 it is MA-DCQN.
"""

from omarl_jax.algorithms import ciqr
from omarl_jax.types import Algorithm, TaskSpec, config


@config
class Config(ciqr.Config):
    """Hyperparameters of MA-CCQL: those of MA-CIQR."""

    lr: float = 1e-4
    """Adam's learning rate."""
    tau: float = 1e-3
    """Soft update of the targets."""
    grad_clip: float = 1.0
    """Largest norm of a gradient."""
    quantiles: int = 0
    """N, atoms of an action; 0 learns the mean alone."""
    centralised: bool = True
    """Learn the sum of all agents' values."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    ciqr.validate(config, spec, "ccql")


def ccql(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes MA-CCQL for a discrete task."""
    return ciqr.ciqr(config, spec)
