# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
"""
# First steps with omarl_jax

Three agents should cover three landmarks without bumping into each other, and learn it from logged data alone. We make
the data, train OMAR on them with five seeds and two values of a hyperparameter, draw the learning curves, watch the
team, and save its policy. This takes about three minutes on two CPU cores, and less on a GPU or a TPU.

The first cell installs omarl_jax if this runtime lacks it. It leaves JAX as it is.
"""

# %%
import importlib.metadata
import importlib.util
import subprocess
import sys
import tempfile

from packaging.version import Version

ADDRESS = ""  # `make notebooks` writes here what pyproject.toml says, and below, too
OLDEST_JAX = ""

if importlib.util.find_spec("omarl_jax") is None:
    installed = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib") if importlib.util.find_spec(name)}
    if installed and Version(installed["jax"]) < Version(OLDEST_JAX):
        raise SystemExit(
            f"This runtime has JAX {installed['jax']}, and omarl_jax needs {OLDEST_JAX} or newer: choose a newer "
            "runtime."
        )
    if not ADDRESS:
        raise SystemExit("omarl_jax is not published yet: install its wheel, which `make wheel` builds, and run again.")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{name}=={version}\n" for name, version in installed.items())
        constraints.flush()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", constraints.name]
        subprocess.run([*pip, f"git+{ADDRESS}"], check=True)

# %% [markdown]
"""
JAX finds the accelerator by itself. In Colab, *Runtime, Change runtime type* gives a GPU or a TPU.
"""

# %%
import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count()))  # each core trains runs of its own; only on CPUs

import jax

jax.config.update("jax_default_matmul_precision", "float32")  # accelerators would multiply matrices with less
devices = jax.devices()
print(f"JAX {jax.__version__} found a {jax.default_backend().upper()}: {len(devices)} × {devices[0].device_kind}")

# %% [markdown]
"""
## Data

Datasets are recipes, not downloads: a team that ships with the package plays, and what it sees and does is logged, here
that of an expert team. Scores are normalised returns: 0 is a random team, 100 an expert one.
"""

# %%
from omarl_jax import load_dataset, load_policy, make_env, train

dataset = load_dataset("particle/spread", "expert", size=100_000)
print(f"{dataset.size:,} transitions, mean score {dataset.metadata['mean_score']:.1f}")

# %% [markdown]
"""
## Training

OMAR pulls each actor towards the best action that a search finds. `omar_coef` is the weight of this pull; with 0 OMAR
is its baseline, MA-CQL. A list of values spans a grid: two values and five seeds are ten runs, which train as one
program. All other hyperparameters are the published ones, except for a smaller batch and fewer updates.

This takes one to two minutes on two CPU cores. One line tells how far it is.
"""

# %%
result = train(
    "omar",
    dataset,
    seeds=5,
    omar_coef=[0.0, 1.0],
    batch_size=256,  # published: 1,024
    updates=800,  # published: 2,000
    evaluations=10,
)
for config, seed, score in zip(result.configs, result.seeds, result.scores[-1], strict=True):
    print(f"omar_coef {config.omar_coef}, seed {seed}: score {score:.1f}")

# %% [markdown]
"""
Lines are means over the seeds; the areas reach from the lowest seed to the highest.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

coefficients = np.array([config.omar_coef for config in result.configs])
for value in (0.0, 1.0):
    scores = result.scores[:, coefficients == value]  # (evaluations, seeds)
    plt.plot(result.updates, scores.mean(axis=1), label=f"omar_coef {value:g}")
    plt.fill_between(result.updates, scores.min(axis=1), scores.max(axis=1), alpha=0.2)
plt.axhline(dataset.metadata["mean_score"], color="grey", linestyle=":", label="mean of the data")
plt.xlabel("updates")
plt.ylabel("score")
plt.legend()
plt.show()

# %% [markdown]
"""
## The trained team

A saved policy is one small file of arrays. We save that of the first seed with `omar_coef` 1, load it again, and film
it in a new episode. Blue discs are agents, with a red edge where they touch. Landmarks are grey, and golden while an
agent covers them.
"""

# %%
import pathlib

from IPython.display import Image, display

from omarl_jax.report.episodes import write_gif

result.save_policy(int(np.flatnonzero(coefficients == 1.0)[0]), "team.npz")
team = load_policy("team.npz")
env = make_env(team.spec.name)
write_gif(env, team, pathlib.Path("team.gif"), seed=0)
display(Image("team.gif"))

# %% [markdown]
"""
It acts in plain Python, too: the observations of all agents in, their actions out.
"""

# %%
_, step = env.reset(jax.random.key(1))
print(team.act(np.asarray(step.observation.agents_view)).round(2))

# %% [markdown]
"""
## Further

`omarl list` names all methods, tasks and datasets, `omarl train omar --help` every hyperparameter. `omarl sweep` trains
the grid of a table in a paper, continues where it was killed, and reports with intervals. The README shows how to learn
from data of your own, CONTRIBUTING.md how to add a method or a task in one file.
"""
