"""The published scores and hyperparameters against the publications."""

from typing import Any

import pytest

from omarl_jax import UserError
from omarl_jax.algorithms import methods
from omarl_jax.presets import preset, read
from omarl_jax.published import lookup

DATASETS = ("random", "medium-replay", "medium", "expert")
REFERENCES = {  # random, expert
    "particle/spread": (159.8, 516.8),
    "particle/tag": (-4.1, 185.6),
    "particle/world": (-6.8, 79.5),
    "mujoco/halfcheetah-2x3": (-284.0, 3568.8),
}
DATA_RETURNS = {  # mean return of an episode, as OG-MARL's dataset cards give it
    "particle/spread": (159.57, 203.74, 273.39, 530.95),
    "particle/tag": (-4.13, 3.90, 116.36, 207.90),
    "particle/world": (-6.83, 1.23, 65.86, 85.21),
    "mujoco/halfcheetah-2x3": (-282.89, 423.49, 1568.87, 3338.69),
}


@pytest.mark.parametrize("task", REFERENCES)
def test_means_of_the_data_are_the_normalised_returns_of_the_dataset_cards(task: str) -> None:
    random, expert = REFERENCES[task]
    for dataset, value in zip(DATASETS, DATA_RETURNS[task], strict=True):
        found = lookup(task, dataset, "data")
        assert found is not None
        assert found.mean == pytest.approx(100 * (value - random) / (expert - random), abs=0.051)


@pytest.mark.parametrize(
    ("task", "dataset", "algorithm", "mean", "sd"),
    [
        ("particle/spread", "random", "omar", 34.4, 5.3),
        ("particle/spread", "medium", "omar", 47.9, 18.9),
        ("particle/spread", "medium", "cql", 34.1, 7.2),
        ("particle/tag", "medium-replay", "icq", 34.5, 27.8),
        ("particle/world", "expert", "td3_bc", 110.3, 21.3),
        ("mujoco/halfcheetah-2x3", "expert", "cql", 64.2, 24.9),
        ("particle/spread", "expert", "omar_central", 105.9, None),
        ("particle/spread", "medium-replay", "omar_cem", 32.6, None),
        ("particle/spread", "medium", "omar_random_shooting", 41.2, None),
        ("particle/spread", "expert", "matd3", 1.6, None),
        ("particle/spread", "expert", "itd3", 75.5, None),
    ],
)
def test_scores_as_printed(task: str, dataset: str, algorithm: str, mean: float, sd: float | None) -> None:
    found = lookup(task, dataset, algorithm)
    assert found is not None
    assert (found.mean, found.sd) == (mean, sd)
    assert "2111.11188" in found.source


def test_omar_leads_everywhere_but_on_the_expert_cheetah() -> None:
    """As the paper claims; a slip of a column would break it."""
    for task in REFERENCES:
        for dataset in DATASETS:
            found = {name: lookup(task, dataset, name) for name in ("icq", "td3_bc", "cql", "omar")}
            best = max(found, key=lambda name: found[name].mean)  # type: ignore[union-attr]  # None fails the test
            assert best == ("td3_bc" if (task, dataset) == ("mujoco/halfcheetah-2x3", "expert") else "omar")


@pytest.mark.parametrize(
    ("task", "dataset", "algorithm"),
    [
        ("particle/spread", "medium", "bc"),
        ("particle/tag", "medium", "omar_cem"),
        ("particle/spread", "own", "omar"),
        ("uav/iot", "medium", "cql"),
    ],
)
def test_what_was_not_published_is_none(task: str, dataset: str, algorithm: str) -> None:
    assert lookup(task, dataset, algorithm) is None


@pytest.mark.parametrize(
    ("task", "dataset", "algorithm", "rounds", "overrides"),
    [
        ("particle/spread", "random", "omar", 6000, {"omar_coef": 1.0, "cql_alpha": 0.5}),
        ("particle/tag", "medium-replay", "omar", 1000, {"omar_coef": 0.9, "cql_alpha": 0.5}),
        ("particle/world", "medium", "cql", 1000, {"cql_alpha": 0.5}),
        ("particle/world", "expert", "td3_bc", 1000, {"alpha": 2.5}),
        ("particle/spread", "expert", "bc", 2000, {}),
        ("uav/iot", "middle", "ccqr", 3800, {}),
        ("matrix/xor", "random", "ciql", 2000, {}),
    ],
)
def test_presets_as_published(task: str, dataset: str, algorithm: str, rounds: int, overrides: dict[str, Any]) -> None:
    found = preset(algorithm, task, dataset)
    assert (found.rounds, found.overrides) == (rounds, overrides)


def test_a_preset_says_where_its_numbers_stand() -> None:
    source = preset("omar", "particle/tag", "expert").source
    assert "env_config_map" in source
    assert "main.py" in source


@pytest.mark.parametrize("algorithm", methods())
def test_every_preset_is_one_of_its_method(algorithm: str) -> None:
    """`preset` raises where a file names a hyperparameter that the method does not have."""
    assert preset(algorithm, "particle/spread", "medium").rounds == 2000


def test_a_slip_in_a_preset_is_told() -> None:
    text = '[[table]]\nsource = "none"\n[table.any]\nany = { cql_alpa = 1.0 }\n'
    with pytest.raises(UserError, match=r"'cql_alpa'.*'cql_alpha'"):
        read("omar", text)
