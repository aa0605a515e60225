"""Rules by which the observations of all agents follow from one global state.

Environments observe by them. Data then hold the state alone, and derive the observations of a batch.
"""

from typing import Any


def derive(rule: str, state: Any, n_agents: int) -> Any:
    """The observations of all agents.

    `repeated`: each agent sees the state. `standardised`: each sees the state and its own one-hot number, shifted and
    scaled so that the entries of this one vector have mean 0 and standard deviation 1. So observes OMIGA's wrapper of
    Multi-Agent MuJoCo (Wang et al. 2023), which OMCDA and ComaDICE use, too.

    Args:
        rule: `TaskSpec.obs_from_state`.
        state: (…, S), an array of NumPy or of JAX.
        n_agents: N.

    Returns:
        (…, N, O), of the same kind.
    """
    xp = state.__array_namespace__()
    each = xp.broadcast_to(state[..., None, :], (*state.shape[:-1], n_agents, state.shape[-1]))
    if rule == "repeated":
        return each
    numbers = xp.broadcast_to(xp.eye(n_agents, dtype=state.dtype), (*state.shape[:-1], n_agents, n_agents))
    views = xp.concatenate([each, numbers], axis=-1)
    centred = views - views.mean(axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.square(centred).mean(axis=-1, keepdims=True))  # not 0: the number's entries differ
