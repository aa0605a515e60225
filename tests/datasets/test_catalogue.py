"""Datasets by recipe: how much, how good, from whom; and which snapshots become which quality."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import omarl_envs
import pytest
from omarl_envs.spec import ScoreReference

import omarl_jax.datasets
from omarl_jax import UserError, algorithms, load_dataset, load_policy, make_algorithm, make_env
from omarl_jax.data.storage import content_hash
from omarl_jax.datasets import behaviour, catalogue
from omarl_jax.networks import Norm
from omarl_jax.types import Context, Stats, View

SPREAD = "particle/spread"
SNAPSHOTS = ("medium-replay", "medium", "expert")


@pytest.fixture(scope="module")
def random_data():
    return load_dataset(SPREAD, "random", size=1_000)


def test_sizes_are_rounded_up_to_whole_episodes(random_data):
    assert random_data.size == 1_000
    assert load_dataset("matrix/xor", "random", size=7).size == 7  # episodes of one step
    assert load_dataset(SPREAD, "random", size=976).size == 1_000  # 40 episodes of 25


def test_random_play_returns_what_it_should():
    returns = load_dataset(SPREAD, "random", size=50_000).episode_returns()
    assert len(returns) == 2_000
    assert abs(returns.mean() - 160.1) < 3 * returns.std() / np.sqrt(2_000)


def test_the_seed_alone_decides_the_data(random_data):
    again, other = (load_dataset(SPREAD, "random", seed=seed, size=1_000) for seed in (0, 1))
    assert content_hash(again) == content_hash(random_data)
    assert content_hash(other) != content_hash(random_data)
    shared = np.isin(np.unique(other.rows.actions), np.unique(random_data.rows.actions))
    assert shared.mean() < 0.01  # no episode of the one is in the other


def test_the_metadata_tell_where_the_data_come_from_and_how_good_they_are(random_data):
    metadata = random_data.metadata
    told = {
        name: metadata[name] for name in ("recipe", "seed", "behaviour", "options", "random", "expert", "comparable")
    }
    assert told == {
        "recipe": "random",
        "seed": 0,
        "behaviour": "uniform actions",
        "options": {},
        "random": 159.8,
        "expert": 516.8,
        "comparable": True,
    }
    by_hand = random_data.rows.rewards.mean(axis=1).sum() / 40
    assert metadata["mean_return"] == pytest.approx(by_hand, rel=1e-5)
    assert metadata["mean_score"] == pytest.approx(100 * (by_hand - 159.8) / 357.0, abs=1e-3)


def test_a_form_of_the_task_without_reference_has_no_scores():
    metadata = load_dataset(SPREAD, "random", size=25, n_agents=2).metadata
    assert metadata["options"] == {"n_agents": 2}
    assert [metadata[name] for name in ("mean_score", "random", "expert", "comparable")] == [None, None, None, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("particle/spred", "random"), r"no task 'particle/spred'; did you mean 'particle/spread'\?"),
        ((SPREAD, "mediun"), r"no dataset 'mediun'; did you mean 'medium'\?"),
        ((SPREAD, "random", 0, 0), "size must be a positive integer, not 0"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        load_dataset(*arguments)


def test_options_are_checked():
    with pytest.raises(UserError, match="has no option 'n_agent'; did you mean 'n_agents'"):
        load_dataset(SPREAD, "random", n_agent=2)
    with pytest.raises(UserError, match="2 to 64 agents, not 1"):
        load_dataset(SPREAD, "random", n_agents=1)
    with pytest.raises(UserError, match="No behaviour policies for 'medium' data ship"):
        load_dataset(SPREAD, "medium", n_agents=2)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_must_be_one(seed):
    with pytest.raises(UserError, match="A seed must be"):
        load_dataset(SPREAD, "random", seed=seed, size=25)


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("matrix/lever", 5 / 12 + 0.08985),  # of a lever that does not look: variance of the cue, and its own
        ("matrix/lever-continuous", 1 / 3 + 0.08909),
    ],
)
def test_a_task_that_knows_a_team_has_its_data(task, error):
    data = load_dataset(task, "medium", size=10_000)
    metadata, returns = data.metadata, data.episode_returns()
    assert (metadata["behaviour"], metadata["comparable"]) == ("levers around 0 times the cue, σ = 0.3", False)
    assert len(returns) == 2_000
    assert abs(returns.mean() - (40 - 50 * error)) < 3 * returns.std() / np.sqrt(2_000)
    env = make_env(task)
    assert metadata["mean_score"] == pytest.approx(env.reference.normalise(returns.mean()), abs=1e-3)
    steps = ~data.rows.closing
    levers = data.rows.actions[steps] / 4 - 1 if env.task_spec.kind == "discrete" else data.rows.actions[steps][..., 0]
    assert abs(np.corrcoef(data.rows.obs[steps][:, 0, 0], levers[:, 0])[0, 1]) < 0.04
    again, other = (load_dataset(task, "medium", seed, 10_000) for seed in (0, 1))
    assert content_hash(again) == content_hash(data) != content_hash(other)
    entries = {entry.quality: entry.score for entry in catalogue.catalogue() if entry.task == task}
    assert set(entries) == {"random", "medium", "expert"}
    assert entries["medium"] == pytest.approx(env.reference.normalise(40 - 50 * error), abs=0.01)


@pytest.mark.parametrize(("task", "quality"), [("matrix/lever", "late"), ("matrix/lever-continuous", "medium-replay")])
def test_a_task_that_knows_its_teams_has_no_data_of_others(task, quality):
    with pytest.raises(UserError, match=f"There is no dataset '{quality}'"):
        load_dataset(task, quality)


def test_data_of_a_team_that_plays_otherwise_have_another_digest(monkeypatch):
    env = make_env("matrix/lever")
    digests = {quality: catalogue.digest(env, quality, {}) for quality in ("random", "medium", "expert")}
    assert len(set(digests.values())) == 3
    changed = env.behaviours["medium"]._replace(words="levers elsewhere")
    monkeypatch.setattr(env, "behaviours", env.behaviours | {"medium": changed})
    now = {quality: catalogue.digest(env, quality, {}) for quality in digests}
    assert [now[quality] == digests[quality] for quality in digests] == [True, False, True]


CONFIG = {"hidden": (4,), "exploration_noise": 0.05}


@pytest.fixture
def two_snapshots(tmp_path, monkeypatch):
    """A file with two untrained teams, of which `medium-replay` plays both and `medium` the second."""
    env = make_env(SPREAD)
    method = algorithms.find("matd3")
    stats = Stats(*(np.ones((3, 18), np.float32) for _ in range(2)))
    learner = method.make(method.configure(env.task_spec, CONFIG), env.task_spec)
    snapshots = [
        {
            "seed": 7,
            "updates": 500 * i,
            "policy": learner.init(jax.random.key(i), Context(stats)).policy,
            "returns": 1.0,
            "explored": 2.0 + i,
        }
        for i in range(4)
    ]
    chosen = {"medium-replay": [1, 3], "medium": [3], "expert": [3]}
    behaviour.save(tmp_path / "two.npz", env, "matd3", CONFIG, snapshots, chosen)
    saved = load_policy(tmp_path / "two.npz")
    monkeypatch.setattr(catalogue, "_snapshots", lambda task, quality: saved if task == SPREAD else None)
    return [learner, snapshots[1]["policy"], snapshots[3]["policy"]]


def test_only_the_chosen_snapshots_are_kept(two_snapshots):
    metadata = catalogue.behaviour_snapshots(make_env(SPREAD), "medium").metadata
    assert metadata["recipe"] == {"medium-replay": [0, 1], "medium": [1], "expert": [1]}
    assert metadata["updates"] == [500, 1500]
    assert metadata["explored_returns"] == [3.0, 5.0]
    assert metadata["seeds"] == [7, 7]


def test_replay_data_are_played_by_each_snapshot_in_turn(two_snapshots):
    learner, first, second = two_snapshots
    data = load_dataset(SPREAD, "medium-replay", size=1_000)
    assert data.metadata["behaviour"] == "matd3 after 500, 1500 updates, with exploration noise"
    rows = jax.tree.map(lambda x: x[~data.rows.closing], data.rows)
    act = jax.jit(jax.vmap(lambda policy, obs: learner.act(policy, View(obs), (), jax.random.key(0))[0], (None, 0)))
    noise = np.array([rows.actions - act(policy, rows.obs) for policy in (first, second)])  # (2, 1000, N, A)
    spread = noise.reshape(2, 2, -1).std(axis=2)  # by policy, and by half of the data
    np.testing.assert_allclose(np.diag(spread), 0.05, rtol=0.05)
    assert spread[0, 1] > 0.1
    assert spread[1, 0] > 0.1


def test_the_catalogue_lists_what_can_be_made(two_snapshots, monkeypatch):
    monkeypatch.setattr(omarl_envs, "task_names", lambda: [SPREAD, "matrix/xor"])
    entries = {(entry.task, entry.quality): (entry.size, entry.score) for entry in catalogue.catalogue()}
    logged = ("random", "early", "middle", "late", "mixed")
    assert set(entries) == {(SPREAD, q) for q in ("random", *SNAPSHOTS)} | {("matrix/xor", q) for q in logged}
    assert entries["matrix/xor", "late"] == (4_800, None)
    assert entries[SPREAD, "random"] == (1_000_000, 0.0)
    assert entries[SPREAD, "medium-replay"] == (97_500, pytest.approx(100 * (4.0 - 159.8) / 357.0))
    assert entries[SPREAD, "medium"] == (1_000_000, pytest.approx(100 * (5.0 - 159.8) / 357.0))


TARGETS = {  # of the published data; with our own prey, in units of our own references
    "particle/spread": (12.3, 31.8, 104.0),
    "particle/tag": (4.2, 63.5, 100.0),
    "particle/world": (9.3, 84.2, 100.0),
    "mujoco/halfcheetah-2x3": (18.4, 43.0),  # published: 48.1
}


@pytest.mark.parametrize("task", TARGETS)
def test_shipped_data_are_as_good_as_they_should_be(task):
    said = {entry.quality: entry.score for entry in catalogue.catalogue() if entry.task == task}
    assert [quality for quality in SNAPSHOTS if quality in said] == list(SNAPSHOTS[: len(TARGETS[task])])
    np.testing.assert_allclose([said[quality] for quality in SNAPSHOTS if quality in said], TARGETS[task], atol=5.0)


def _shipped():
    folder = Path(omarl_jax.datasets.__file__).parent / "snapshots"
    paths = sorted(folder.glob("*.npz"))
    return [(path, quality) for path in paths for quality in load_policy(path).metadata["recipe"]]


@pytest.mark.parametrize(("path", "quality"), _shipped(), ids=lambda value: getattr(value, "stem", value))
def test_shipped_snapshots_play_as_they_say(path, quality):
    saved = load_policy(path)
    said = np.mean([saved.metadata["explored_returns"][i] for i in saved.metadata["recipe"][quality]])
    data = load_dataset(saved.spec.name, quality, size=25_000)
    assert "another form of the task" not in data.metadata["behaviour"]
    returns = data.episode_returns()
    assert len(returns) == 25_000 / saved.spec.episode_length
    assert abs(returns.mean() - said) < 3 * returns.std() * np.sqrt(2 / len(returns)) + 1  # both are means of as many


def test_data_of_another_prey_do_not_compare_with_the_paper(monkeypatch):
    """The shipped policies learned against the shipped prey, whatever the returns are normalised with."""
    env = make_env("particle/tag")
    released = env.reference._replace(source="the paper", published=True)
    monkeypatch.setattr(env, "reference", released)
    monkeypatch.setattr(catalogue, "make_env", lambda task, **options: env)
    assert load_dataset("particle/tag", "random", size=25).metadata["comparable"]
    expert = load_dataset("particle/tag", "expert", size=25).metadata
    assert not expert["comparable"]
    assert "another form of the task" in expert["behaviour"]


@pytest.mark.parametrize(
    ("scores", "medium", "expert"),
    [
        ([0, 10, 30, 55, 60, 97, 105, 90], 3, 5),  # 55 is nearer to 50 than 30 is, 97 nearer to 100 than 105
        ([0, 48, 80, 100], 1, 3),  # 48 is nearer than 80, which reached it
        ([0, 52, 20, 50, 100], 1, 4),  # 50 was reached before, and lost again
        ([0, 30, 49.5, 20, 80], 2, 4),  # half a point short is near enough
        ([60, 70, 80], 0, 2),  # from the start on
        ([0, 40, 30, 20], 1, 1),  # never
    ],
)
def test_the_medium_policy_is_the_first_near_half_way(scores, medium, expert):
    env = SimpleNamespace(reference=ScoreReference(100.0, 300.0, "made up"))
    snapshots = [{"seed": 0, "explored": 100.0 + 2.0 * score} for score in scores]
    chosen = behaviour.choose(env, snapshots, medium=50.0, expert=100.0)
    assert (chosen["medium"], chosen["expert"]) == ([medium], [expert])
    without = behaviour.choose(env, snapshots, medium=50.0)
    assert without == {quality: numbers for quality, numbers in chosen.items() if quality != "expert"}
    assert chosen["medium-replay"] == list(range(medium + 1))


def test_replay_snapshots_are_spread_evenly():
    env = SimpleNamespace(reference=ScoreReference(0.0, 100.0, "made up"))
    snapshots = [{"seed": 0, "explored": float(2 * i)} for i in range(40)]
    chosen = behaviour.choose(env, snapshots, medium=56.0, expert=1000.0)
    assert chosen == {"medium-replay": [0, 4, 8, 12, 16, 20, 24, 28], "medium": [28], "expert": [39]}


def test_each_quality_comes_from_the_seed_that_meets_it_best():
    env = SimpleNamespace(reference=ScoreReference(0.0, 100.0, "made up"))
    first = [{"seed": 3, "explored": score} for score in (0.0, 10.0, 28.0, 99.0)]
    second = [{"seed": 4, "explored": score} for score in (0.0, 10.0, 21.0, 80.0)]
    chosen = behaviour.choose(env, first + second, medium=20.0, expert=100.0)
    assert chosen == {"medium-replay": [4, 5, 6], "medium": [6], "expert": [3]}
    chosen = behaviour.choose(env, first + second, medium=20.0, expert=100.0, replay=13.0)
    assert chosen == {"medium-replay": [0, 1, 2], "medium": [6], "expert": [3]}


def test_a_seed_that_diverged_makes_no_data():
    env = SimpleNamespace(reference=ScoreReference(0.0, 100.0, "made up"))
    sound = [{"seed": 4, "explored": score} for score in (0.0, 10.0, 21.0, 80.0)]
    diverged = [{"seed": 3, "explored": score} for score in (0.0, 20.0, 99.0, np.nan)]
    chosen = behaviour.choose(env, diverged + sound, medium=20.0, expert=100.0)
    assert chosen == {"medium-replay": [4, 5, 6], "medium": [6], "expert": [7]}
    with pytest.raises(UserError, match="diverged with every seed"):
        behaviour.choose(env, diverged, medium=20.0, expert=100.0)


@pytest.mark.parametrize("task", ["particle/tag", "particle/world"])
def test_a_prey_that_learned_flees_the_same_when_it_is_loaded(task, tmp_path):
    """Its padded observation, its running statistics: both are gone in the file."""
    env = make_env(task, prey="learner")
    spec = env.task_spec
    learner = make_algorithm("matd3", spec)
    norm = Norm(jax.random.normal(jax.random.key(1), (4, spec.obs_dim)), jnp.full((4, spec.obs_dim), 3.0))
    context = Context(Stats.unknown(spec))
    policy = learner.init(jax.random.key(0), context).policy._replace(stats=norm)
    policy.params["layer_2"]["kernel"] *= 100.0  # it starts so small that all observations look the same
    behaviour.save_prey(tmp_path / "prey.npz", env, policy)

    loaded = make_env(task, prey=tmp_path / "prey.npz").prey
    seen = loaded.w1.shape[0]
    obs = jnp.zeros((4, spec.obs_dim)).at[3, :seen].set(jax.random.normal(jax.random.key(2), (seen,)))
    actions, _ = learner.act(policy, View(obs), (), jax.random.key(3))
    assert np.abs(actions[3]).min() > 1e-3
    np.testing.assert_allclose(loaded.act(obs[3, :seen]), actions[3], atol=1e-5)
