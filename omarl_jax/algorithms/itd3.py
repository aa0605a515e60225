"""ITD3: independent TD3, MATD3 whose critics see their own agent only.

Trained offline it is OMAR's update without the pessimism (Pan et al. 2022, ablations), but for target noise and delay.
"""

from omarl_jax.algorithms import matd3
from omarl_jax.types import Algorithm, TaskSpec, config


@config
class Config(matd3.Config):
    """Hyperparameters of ITD3: those of MATD3."""

    centralised: bool = False
    """Whether critics see all agents, or only their own."""


def validate(config: Config, spec: TaskSpec) -> None:
    """Raises a `UserError` for hyperparameters that make no sense."""
    matd3.validate(config, spec, "itd3")


def itd3(config: Config, spec: TaskSpec) -> Algorithm:
    """Makes ITD3 for a continuous task."""
    return matd3.matd3(config, spec)
