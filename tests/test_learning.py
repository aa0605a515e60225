"""The claims about methods hold when they are run."""

import numpy as np
import pytest

from omarl_jax import load_dataset, train


@pytest.mark.slow
def test_omar_gets_above_its_data_and_above_cql():
    """On medium-replay, with a quarter of the published batch."""
    dataset = load_dataset("particle/spread", "medium-replay")
    scores = {}
    for algorithm in ("omar", "cql"):
        result = train(algorithm, dataset, seeds=2, evaluations=1, episodes=500, batch_size=256)
        scores[algorithm] = np.mean(result.scores[-1])
    assert scores["omar"] > dataset.metadata["mean_score"] + 10
    assert scores["omar"] > scores["cql"]


@pytest.mark.slow
def test_the_team_behind_the_logs_learns():
    """Uniformly random play returns -1483."""
    early, late = (load_dataset("uav/iot", part).metadata["mean_return"] for part in ("early", "late"))
    assert early > -1_600
    assert late > max(-1_300, early + 100)
