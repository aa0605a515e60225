"""The particle tasks of OMAR (Pan et al., ICML 2022): cooperative navigation, predator-prey and world.

They differ from the particle environments most libraries carry: the velocity moves before the position, predators and
prey accelerate with the square of the published gain, spread pays for near landmarks and fines collisions
individually, and tag rewards nearness to the prey.
"""

from functools import partial

from omarl_envs.particle.pursuit import TAG, WORLD, Pursuit
from omarl_envs.particle.spread import Spread

TASKS = {"spread": Spread, "tag": partial(Pursuit, TAG), "world": partial(Pursuit, WORLD)}
