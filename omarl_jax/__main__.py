"""`python -m omarl_jax` is `omarl`."""

from omarl_jax.cli import main

main()
