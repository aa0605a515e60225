"""What the `validate` functions of methods share."""

from typing import Any

from omarl_jax.errors import UserError
from omarl_jax.types import TaskSpec


def require(condition: bool, message: str) -> None:
    """Raises a `UserError` unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_positive(config: Any, *names: str) -> None:
    """Raises a `UserError` unless all these hyperparameters are greater than 0."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{name} must be positive, not {value}.")


def require_not_negative(config: Any, *names: str) -> None:
    """Raises a `UserError` unless all these hyperparameters are at least 0."""
    for name in names:
        value = getattr(config, name)
        require(value >= 0, f"{name} must not be negative, not {value}.")


def require_kind(name: str, kind: str, spec: TaskSpec) -> None:
    """Raises a `UserError` if a method for one kind of actions meets a task of the other."""
    require(spec.kind == kind, f"'{name}' needs {kind} actions, but the task '{spec.name}' has {spec.kind} ones.")


def check_learner(config: Any) -> None:
    """The checks that every method shares."""
    require_positive(config, "lr", "grad_clip")
    require(config.batch_size >= 2, f"batch_size must be at least 2, not {config.batch_size}.")
    sensible = len(config.hidden) > 0 and min(config.hidden) > 0
    require(sensible, f"hidden must hold positive widths, not {config.hidden}.")


def check_value_learner(config: Any) -> None:
    """The checks that every method with bootstrapped values shares."""
    check_learner(config)
    require(0 <= config.gamma <= 1, f"gamma must lie in [0, 1], not {config.gamma}.")
    require(0 < config.tau <= 1, f"tau must lie in (0, 1], not {config.tau}.")


def check_conservative(config: Any) -> None:
    """The checks that every method with `_losses.conservative_samples` shares."""
    require_not_negative(config, "cql_alpha")
    require_positive(config, "cql_samples", "sample_noise")
    has_density = config.policy_samples or not config.published_density
    require(has_density, "published_density is about actions around the policy's: it needs policy_samples.")
