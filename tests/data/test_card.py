import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omarl_envs.spec import ScoreReference, TaskSpec
from rich.console import Console

from omarl_jax.cli import data as cli
from omarl_jax.data.card import card, draw, write
from omarl_jax.data.dataset import Dataset
from omarl_jax.data.episodes import from_episodes
from omarl_jax.data.storage import content_hash, load, save
from omarl_jax.errors import UserError


def test_the_numbers_of_a_continuous_dataset(continuous: Dataset):
    # Mean rewards of the agents are 0, 2, 4 | 8, 10 | 14.
    found = card(continuous)
    assert (found.transitions, found.episodes, found.ordered) == (6, 3, True)
    assert (found.terminal, found.truncated) == (2, 1)
    assert found.memory == 9 * (6 + 4 + 2) * 4 + 9 * (2 + 1 + 1)
    assert found.content_hash == content_hash(continuous)
    assert (found.recipe, found.behaviour, found.seed, found.comparable) == ("toy", "by hand", 3, None)

    returns = found.returns  # 6, 18, 14
    assert (returns.mean, returns.min, returns.max) == pytest.approx((38 / 3, 6, 18))
    assert returns.std == pytest.approx(np.sqrt((6.6667**2 + 5.3333**2 + 1.3333**2) / 3), rel=1e-4)
    assert returns.quantiles == pytest.approx([6.8, 10, 14, 16, 17.6])
    assert (returns.counts[0], returns.counts[20], returns.counts[-1]) == (1, 1, 1)  # bins of width 0.4
    assert (sum(returns.counts), returns.edges[0], returns.edges[-1]) == (3, 6, 18)
    assert found.score == pytest.approx(100 * 38 / 3 / 20)
    assert found.reference == ScoreReference(0, 20, "source unknown")

    assert (found.lengths.mean, found.lengths.counts, found.lengths.edges) == (2, [1, 1, 1], [0.5, 1.5, 2.5, 3.5])
    assert found.agent_rewards == pytest.approx([19 / 6, 19 / 2])
    assert found.step_rewards == pytest.approx([(0 + 8 + 14) / 3, (2 + 10) / 2, 4])
    assert found.obs_min == [[0, 0, 0], [0, 0, 10]]
    assert found.obs_max == [[8, 2, 0], [8, 2, 10]]


def test_action_marginals(continuous: Dataset):
    # Agent 0 plays 0, 0.1, 0.2, 0.4, 0.5, 0.7 in both dimensions; agent 1 plays 0 and -1.
    actions = continuous.rows.actions + np.float32(1e-4)  # off the edges of the bins
    actions[0, 0, 1], actions[1, 0, 1] = 1, 0.985  # dimension 1 of agent 0: 1, 0.985, 0.2, 0.4, 0.5, 0.7
    found = card(dataclasses.replace(continuous, rows=continuous.rows._replace(actions=actions)))
    counts = np.asarray(found.action_counts)
    assert counts.shape == (2, 2, 20)
    assert np.flatnonzero(counts[0, 0]).tolist() == [10, 11, 12, 14, 15, 17]
    assert counts[0, 1, [12, 14, 15, 17, 19]].tolist() == [1, 1, 1, 1, 2]
    assert counts[1, 0, 10] == counts[1, 1, 0] == 6
    assert found.saturated == [[0, pytest.approx(1 / 6)], [0, 1]]


def test_the_numbers_of_a_discrete_dataset(discrete: Dataset):
    found = card(discrete)
    assert found.action_counts == [[1, 1, 0]]  # the 0 in the final-observation row is no action
    assert found.saturated is None and found.reference is None and found.score is None
    assert (found.returns.mean, found.step_rewards) == (3, [1, 2])
    assert found.memory == 3 * (2 * 4 + 4 + 4 + 1 + 1 + 1 + 4 + 3)
    page = found.markdown()
    assert "| 0 | 50.0 % | 50.0 % | 0.0 % |" in page
    assert "- normalised mean score: unknown" in page


def many_actions(agents: int) -> Dataset:
    """Agent n plays action n in half of 8 steps, and once each of 10, 20, 30 and 40."""
    spec = TaskSpec("toy/many", "discrete", agents, 1, 55, agents, 8, state_is_obs=True)
    actions = np.array([[n, 10, n, 20, n, 30, n, 40] for n in range(agents)], np.int32).T
    steps = np.zeros((8, agents), bool)
    last = np.zeros((1, agents, 1))
    rows = from_episodes(
        spec, np.zeros((8, agents, 1)), actions, steps, steps, np.arange(8) == 7, last_obs=last, lengths=[8]
    )
    return Dataset(spec, rows, {"recipe": "a-long-name-of-a-log-that-nobody-would-like-to-see-cut-off-somewhere.csv"})


def test_of_many_actions_the_largest_shares_are_shown(discrete: Dataset):
    page = card(many_actions(3)).markdown()
    assert "| agent | action: share, largest first | actions at 0 % |" in page
    assert "| 2 | 2: 50.0 %, 10: 12.5 %, 20: 12.5 %, 30: 12.5 % | 50 of 55 |" in page
    for dataset, shape in ((many_actions(3), (3, 55)), (discrete, (1, 3))):
        image: Any = draw(card(dataset)).axes[1]
        assert image.collections[0].get_array().shape == shape
        assert all(float(tick).is_integer() for tick in image.get_xticks())


@pytest.mark.parametrize("terminal", [False, True])
def test_no_word_of_a_card_is_cut_on_80_columns(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal it is laid out; in a file it is the Markdown, whose lines may be long."""
    dataset = many_actions(3)
    save(dataset, tmp_path / "data")
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None, markup=False)
    monkeypatch.setattr(cli, "console", console)
    cli.card(str(tmp_path / "data"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\u2026" not in printed
    page = card(load(tmp_path / "data")).markdown()
    if not terminal:
        assert printed == page
        return
    assert max(map(len, printed.splitlines())) <= 80
    text = page.replace("![returns, actions, episode lengths and rewards](card.png)", "")
    assert {*re.findall(r"[\w.-]+\w", text)} <= {*re.findall(r"[\w.-]+\w", printed)}
    assert content_hash(dataset) in printed.split()


def test_a_doubt_stands_on_the_page(continuous: Dataset):
    assert "Check this" not in card(continuous).markdown()
    rows = continuous.rows._replace(
        truncated=np.zeros(9, bool), terminal=continuous.rows.terminal | (np.arange(9) == 2)[:, None]
    )
    page = card(dataclasses.replace(continuous, rows=rows)).markdown()
    assert "**Check this:** Every episode of 'toy/continuous' that reaches the time limit, 3 steps, ends as" in page


def test_transitions_without_order_have_rewards_but_no_score(continuous: Dataset):
    rows = continuous.rows._replace(**{k: v[7:] for k, v in continuous.rows._asdict().items() if v is not None})
    found = card(dataclasses.replace(continuous, rows=rows))
    assert not found.ordered and found.score is None
    assert found.returns.mean == 14
    assert "reward of a transition" in found.markdown()
    assert "no order" in found.markdown()
    assert len(draw(found).axes) == 3  # rewards, actions and their colours


def test_the_page_says_what_the_card_knows(continuous: Dataset):
    metadata = {**continuous.metadata, "reference_source": "Table 1", "comparable": False, "behaviour": "a|b"}
    metadata["mean_return"] = -3.5
    page = card(dataclasses.replace(continuous, metadata=metadata)).markdown()
    for line in (
        "# toy/continuous: toy",
        "- seed: 3",
        "- behaviour: a|b",
        "- comparable with published numbers: no",
        "- mean return, as policies are evaluated: -3.5",
        "- transitions: 6",
        "- normalised mean score: -17.5",
        "- score reference: 0 is a return of 0, 100 one of 20 (Table 1)",
        f"- content hash: {content_hash(continuous)}",
        "|  | sum of rewards of an episode | episode length |",
        "| mean | 12.67 | 2 |",
        "| sd | 4.989 | 0.8165 |",
        "| 5 % | 6.8 | 1.1 |",
        "| max | 18 | 3 |",
        "| 1 | 9.5 | 0 | 10 |",
        "| 1 | 0.0 % | 100.0 % |",
    ):
        assert line in page.split("\n"), line


def test_a_card_is_plain_data(continuous: Dataset, discrete: Dataset):
    for dataset in (continuous, discrete):
        found = dataclasses.asdict(card(dataset))
        assert json.loads(json.dumps(found))["returns"]["mean"] == found["returns"]["mean"]


def test_the_picture_shows_the_counts(continuous: Dataset, discrete: Dataset):
    axes: Any = draw(card(continuous)).axes
    returns, actions, lengths, rewards, *_ = axes
    assert returns.patches[0].get_data().values.sum() == 3
    assert actions.collections[0].get_array().shape == (4, 20)
    np.testing.assert_allclose(actions.collections[0].get_array().sum(axis=1), 100)
    assert lengths.patches[0].get_data().values.tolist() == [1, 1, 1]
    np.testing.assert_allclose(rewards.lines[0].get_ydata(), [22 / 3, 6, 4])
    axes = draw(card(discrete)).axes
    np.testing.assert_allclose(axes[1].collections[0].get_array(), [[50, 50, 0]])


def test_a_card_is_written_and_replaced(continuous: Dataset, tmp_path: Path):
    write(card(continuous), tmp_path / "new")
    write(card(continuous), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["card.md", "card.png"]
    assert (tmp_path / "new" / "card.md").read_text() == card(continuous).markdown()
    assert (tmp_path / "new" / "card.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(UserError, match=r"card\.md/card\.png' cannot be written"):
        write(card(continuous), tmp_path / "new" / "card.md")
