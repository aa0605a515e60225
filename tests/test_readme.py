"""What the README shows is what happens."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert 10 <= len(example.strip().splitlines()) <= 25
    # As users have it: tests leave most of XLA's optimisations out, which makes programs of this size slow.
    optimised = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, env=optimised)
    assert done.returncode == 0, done.stderr
    first, *scores = done.stdout.splitlines()
    assert re.fullmatch(r"100,000 transitions, mean score \d\d\.\d", first)
    assert [re.sub(r"-?\d+\.\d$", "…", line) for line in scores] == [
        f"cql_alpha {alpha}, seed {seed}: score …" for alpha in (1.0, 5.0) for seed in (0, 1, 2)
    ]
