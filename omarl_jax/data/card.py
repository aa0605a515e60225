"""The card of a dataset: its content as numbers, as a page of Markdown and as a picture."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omarl_envs.spec import ScoreReference, TaskSpec

from omarl_jax.data.dataset import Dataset
from omarl_jax.data.storage import content_hash
from omarl_jax.data.validation import doubtful_ends
from omarl_jax.files import replacing
from omarl_jax.report import statistics
from omarl_jax.report.tables import markdown_table
from omarl_jax.types import SATURATED

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BINS = 30
_ACTION_BINS = 20
_MOST_COLUMNS = 6  # of actions: so many are readable beside each other on 80 columns
_LARGEST = 4


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A summary of numbers.

    Attributes:
        mean, std, min, max: the standard deviation is that of the numbers themselves (divisor n).
        quantiles: at `QUANTILES`.
        counts: (bins,) how many numbers lie in each bin.
        edges: (bins + 1,) the bounds of the bins.
    """

    mean: float
    std: float
    min: float
    max: float
    quantiles: list[float]
    counts: list[int]
    edges: list[float]


@dataclasses.dataclass(frozen=True)
class Card:
    """Facts about a dataset to know before learning from it; plain values, so `dataclasses.asdict` is JSON.

    Attributes:
        spec: the task.
        recipe, behaviour, seed, comparable: from the metadata; None where unknown.
        content_hash: identifies the arrays.
        transitions: V.
        episodes: E.
        memory: bytes of all rows.
        ordered: whether transitions form episodes; if not, each is an episode of its own.
        returns: of the episodes: the sum over time of the mean reward of the agents.
        mean_return: from the metadata: the mean of the return that policies are evaluated by, which in some tasks is
            not the sum of rewards.
        metrics: the task's quantities, means of their sums over episodes, from the metadata.
        reference: returns between which scores are normalised, or None where unknown.
        score: the normalised mean return; None without reference or whole episodes.
        agent_rewards: (N,) mean reward of a transition.
        step_rewards: (T,) mean over agents, and over the episodes that last so long, of the t-th reward.
        lengths: steps of the episodes.
        terminal: transitions that are terminal for an agent or more.
        truncated: transitions that are truncated.
        action_counts: continuous: (N, A, bins) counts in bins of equal width over [-1, 1]; discrete: (N, A) counts.
        saturated: (N, A) share of |a| > `SATURATED`; None for discrete actions.
        obs_min, obs_max: (N, O) range of the observations, last ones included.
        doubt: what looks like a mistake (see `validation.doubtful_ends`), or empty.
    """

    spec: TaskSpec
    recipe: Any
    behaviour: Any
    seed: Any
    comparable: Any
    content_hash: str
    transitions: int
    episodes: int
    memory: int
    ordered: bool
    returns: Distribution
    mean_return: float | None
    metrics: dict[str, float]
    reference: ScoreReference | None
    score: float | None
    agent_rewards: list[float]
    step_rewards: list[float]
    lengths: Distribution
    terminal: int
    truncated: int
    action_counts: list[list[list[int]]] | list[list[int]]
    saturated: list[list[float]] | None
    obs_min: list[list[float]]
    obs_max: list[list[float]]
    doubt: str

    def markdown(self) -> str:
        """The card as a page; it shows `card.png`, which `write` puts beside it."""
        spec, returns, lengths = self.spec, self.returns, self.lengths
        score = "unknown" if self.score is None else f"{self.score:.1f}"
        if self.reference is None:
            reference = "none"
        else:
            zero, hundred = self.reference.random, self.reference.expert
            reference = f"0 is a return of {zero:g}, 100 one of {hundred:g} ({self.reference.source})"
        facts = [
            ("recipe", self.recipe),
            ("behaviour", self.behaviour),
            ("seed", self.seed),
            ("comparable with published numbers", {True: "yes", False: "no"}.get(self.comparable, self.comparable)),
            ("agents, observation, state", f"{spec.n_agents}, {spec.obs_dim}, {spec.state_dim}"),
            ("actions", f"{spec.kind}, {spec.action_dim}"),
            ("transitions", f"{self.transitions:,}"),
            ("episodes", f"{self.episodes:,}" if self.ordered else "no order: each transition stands alone"),
            ("terminal transitions", f"{self.terminal:,}"),
            ("truncated transitions", f"{self.truncated:,}"),
            ("mean return, as policies are evaluated", None if self.mean_return is None else f"{self.mean_return:.4g}"),
            ("normalised mean score", score),
            ("score reference", reference),
            ("memory", f"{self.memory / 2**20:.1f} MiB"),
            ("content hash", self.content_hash),
        ]
        names = ["mean", "sd", "min", *(f"{100 * q:g} %" for q in QUANTILES), "max"]
        numbers = [(d.mean, d.std, d.min, *d.quantiles, d.max) for d in (returns, lengths)]
        spread = [[name, *(f"{x:.4g}" for x in pair)] for name, *pair in zip(names, *numbers, strict=True)]
        agents = [
            [str(n), f"{self.agent_rewards[n]:.4g}", f"{min(self.obs_min[n]):.4g}", f"{max(self.obs_max[n]):.4g}"]
            for n in range(spec.n_agents)
        ]
        if self.saturated is None:
            counts = np.asarray(self.action_counts)
            heading, actions = "Share of each action", _shares(counts / counts.sum(axis=1, keepdims=True), "action")
        else:
            heading, actions = f"Share of |a| > {SATURATED}", _shares(np.asarray(self.saturated), "dimension")
        means = [[_text(name), f"{value:.4g}"] for name, value in self.metrics.items()]
        quantities = ["## Quantities of the task", markdown_table(["", "mean of an episode"], means)] if means else []
        return "\n\n".join(
            [
                f"# {spec.name}: {_text(self.recipe)}",
                "\n".join(f"- {name}: {_text(value)}" for name, value in facts),
                *([f"**Check this:** {self.doubt}"] if self.doubt else []),
                "![returns, actions, episode lengths and rewards](card.png)",
                "## Distributions",
                markdown_table(["", _return_name(self), "episode length"], spread),
                *quantities,
                "## Agents",
                markdown_table(["agent", "mean reward", "smallest observation", "largest observation"], agents),
                f"## {heading}",
                actions + "\n",
            ]
        )


def card(dataset: Dataset) -> Card:
    """Sums up a (valid) dataset."""
    spec, rows, metadata = dataset.spec, dataset.rows, dataset.metadata
    transition = dataset.index()  # (V,)
    lengths = dataset.lengths
    rewards = np.asarray(rows.rewards)[transition].astype(np.float64)  # (V, N)
    actions = np.asarray(rows.actions)[transition]  # (V, N) or (V, N, A)
    step = np.arange(len(transition)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # (V,) time in the episode
    returns = dataset.episode_returns()
    mean_return = metadata.get("mean_return")
    if mean_return is None and dataset.whole_episodes.all():
        mean_return = returns.mean()
    reference = None
    if metadata.get("random") is not None and metadata.get("expert") is not None:
        source = metadata.get("reference_source") or "source unknown"
        reference = ScoreReference(float(metadata["random"]), float(metadata["expert"]), str(source))
    saturated = None
    if spec.kind == "discrete":
        counts = (actions[..., None] == np.arange(spec.action_dim)).sum(axis=0)  # (N, A)
    else:
        saturated = (np.abs(actions) > SATURATED).mean(axis=0).tolist()
        bins = np.clip(((actions + 1) / 2 * _ACTION_BINS).astype(np.int64), 0, _ACTION_BINS - 1)  # (V, N, A)
        counts = np.stack([(bins == b).sum(axis=0) for b in range(_ACTION_BINS)], axis=-1)  # (N, A, bins)
    ranges = [(obs.min(axis=0), obs.max(axis=0)) for _, obs in dataset.obs_in_parts()]
    return Card(
        spec=spec,
        recipe=metadata.get("recipe"),
        behaviour=metadata.get("behaviour"),
        seed=metadata.get("seed"),
        comparable=metadata.get("comparable"),
        content_hash=content_hash(dataset),
        transitions=len(transition),
        episodes=len(lengths),
        memory=sum(array.nbytes for array in rows if array is not None),
        ordered=dataset.ordered,
        returns=_distribution(returns, _BINS),
        mean_return=metadata.get("mean_return"),
        metrics=metadata.get("metrics") or {},
        reference=reference,
        score=None if reference is None or mean_return is None else float(reference.normalise(mean_return)),
        agent_rewards=rewards.mean(axis=0).tolist(),
        step_rewards=(np.bincount(step, rewards.mean(axis=1)) / np.bincount(step)).tolist(),
        lengths=_distribution(lengths, _whole_bins(lengths)),
        terminal=int(np.asarray(rows.terminal).any(axis=1).sum()),
        truncated=int(np.asarray(rows.truncated).sum()),
        action_counts=counts.tolist(),
        saturated=saturated,
        obs_min=np.min([least for least, _ in ranges], axis=0).tolist(),
        obs_max=np.max([most for _, most in ranges], axis=0).tolist(),
        doubt=doubtful_ends(dataset),
    )


def draw(card: Card) -> Figure:
    """The picture of a card: returns and actions and, if there are episodes, their lengths and rewards over time."""
    figure = Figure(figsize=(10, 7 if card.ordered else 3.6), layout="constrained")
    figure.suptitle(f"{card.spec.name}: {_text(card.recipe)}, {card.transitions:,} transitions")
    first, second, *others = figure.subplots(2 if card.ordered else 1, 2).flat

    first.stairs(card.returns.counts, card.returns.edges, fill=True, alpha=0.8)
    first.axvline(card.returns.mean, color="black")
    first.set(xlabel=f"{_return_name(card)} (line: mean {card.returns.mean:.4g})")
    first.set(ylabel="episodes" if card.ordered else "transitions")

    counts = np.asarray(card.action_counts)
    if card.saturated is None:
        names = [f"{n}" for n in range(counts.shape[0])]
        edges = np.arange(card.spec.action_dim + 1) - 0.5
        second.set(xlabel="action", ylabel="agent")
        second.xaxis.get_major_locator().set_params(integer=True)
    else:
        names = [f"{n}.{a}" for n in range(counts.shape[0]) for a in range(counts.shape[1])]
        counts = counts.reshape(len(names), -1)  # (N A, bins)
        edges = np.linspace(-1, 1, counts.shape[1] + 1)
        second.set(xlabel="action", ylabel="agent.dimension", xticks=[-1, -0.5, 0, 0.5, 1])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mesh = second.pcolormesh(edges, np.arange(len(names) + 1) - 0.5, 100 * shares, vmin=0)
    shown = np.arange(0, len(names), 1 + (len(names) - 1) // 16)  # as many labels as there is room for
    second.set_yticks(shown, [names[i] for i in shown])
    second.invert_yaxis()
    figure.colorbar(mesh, ax=second, label="% of the agent's actions")

    if card.ordered:
        third, fourth = others
        # The line keeps a single length visible beside a long time limit.
        third.stairs(card.lengths.counts, card.lengths.edges, fill=True, alpha=0.8, edgecolor="C0", linewidth=1.5)
        longest = 1.05 * max(card.lengths.edges[-1], card.spec.episode_length)
        third.set(xlabel="episode length", ylabel="episodes", xlim=(0, longest))
        fourth.plot(card.step_rewards, marker="." if len(card.step_rewards) <= 50 else None)
        fourth.set(xlabel="step of the episode", ylabel="mean reward of the agents")
    return figure


def write(card: Card, folder: str | Path) -> None:
    """Writes `card.md` and `card.png` into a folder, which is made if there is none.

    Raises:
        UserError: if they cannot be written; earlier files then stay.
    """
    figure = draw(card)
    with replacing(Path(folder) / "card.png") as file:
        figure.savefig(file, format="png", dpi=120)
    with replacing(Path(folder) / "card.md") as file:
        file.write(card.markdown().encode())


def _distribution(values: np.ndarray, bins: int | np.ndarray) -> Distribution:
    counts, edges = np.histogram(values, statistics.histogram_edges(values, bins) if isinstance(bins, int) else bins)
    return Distribution(
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values.min()),
        max=float(values.max()),
        quantiles=np.quantile(values, QUANTILES).tolist(),
        counts=counts.tolist(),
        edges=edges.tolist(),
    )


def _whole_bins(values: np.ndarray) -> np.ndarray:
    """Edges of at most `_BINS` bins, each with the same number of integers."""
    width = int(np.ptp(values)) // _BINS + 1
    return np.arange(values.min(), values.max() + width + 1, width) - 0.5


def _shares(shares: np.ndarray, kind: str) -> str:
    """A table of shares (N, A) of each agent; of many only the largest ones."""
    n_actions = shares.shape[1]
    if n_actions <= _MOST_COLUMNS:
        lines = [[str(n), *(f"{100 * x:.1f} %" for x in row)] for n, row in enumerate(shares)]
        return markdown_table(["agent", *(f"{kind} {a}" for a in range(n_actions))], lines)
    largest = np.argsort(-shares, axis=1, kind="stable")[:, :_LARGEST]
    lines = [
        [str(n), ", ".join(f"{a}: {100 * row[a]:.1f} %" for a in most), f"{(row == 0).sum()} of {n_actions}"]
        for n, (row, most) in enumerate(zip(shares, largest, strict=True))
    ]
    return markdown_table(["agent", f"{kind}: share, largest first", f"{kind}s at 0 %"], lines)


def _return_name(card: Card) -> str:
    return "sum of rewards of an episode" if card.ordered else "reward of a transition"


def _text(value: Any) -> str:
    return "unknown" if value is None else " ".join(str(value).split("\n"))
