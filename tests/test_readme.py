"""What the README shows is what happens."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert 10 <= len(example.strip().splitlines()) <= 25
    exec(compile(example, str(README), "exec"), {})
    first, *scores = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"100,000 transitions, mean score \d\d\.\d", first)
    assert [re.sub(r"-?\d+\.\d$", "…", line) for line in scores] == [
        f"cql_alpha {alpha}, seed {seed}: score …" for alpha in (1.0, 5.0) for seed in (0, 1, 2)
    ]
