"""How often programs are traced: each compilation of a large network costs a user a minute."""

from typing import Any

import numpy as np

from omarl_jax import load_dataset
from omarl_jax.algorithms import find
from omarl_jax.placement import Placement
from omarl_jax.tasks import make_env
from omarl_jax.training import Trainer


def test_a_chunk_length_is_traced_once_and_evaluation_once() -> None:
    method, traced = find("bc"), {"update": 0, "act": 0}

    def make(config: Any, spec: Any) -> Any:
        algorithm = method.make(config, spec)

        def counted(name: str) -> Any:
            def call(*inputs: Any, **options: Any) -> Any:
                traced[name] += 1
                return getattr(algorithm, name)(*inputs, **options)

            return call

        return algorithm._replace(update=counted("update"), act=counted("act"))

    dataset = load_dataset("particle/spread", "random", size=50)
    config = method.configure(dataset.spec, {"hidden": (4,), "batch_size": 8})
    env = make_env("particle/spread")
    trainer = Trainer(
        method._replace(make=make), [config] * 3, [0, 1, 2], [dataset], [0] * 3, env, Placement(slots=3, devices=1)
    )
    trainer.advance(4)
    trainer.evaluate(2)
    once = dict(traced)
    for _ in range(3):
        trainer.advance(4)
        trainer.evaluate(2)
    assert traced == once
    trainer.advance(5)
    assert traced["update"] == 2 * once["update"]
    assert traced["act"] == once["act"] == 1
    assert np.all(trainer.diverged_at < 0)
