"""Runs the notebooks, which are the other `.py` files in this folder, and writes them beside those as `.ipynb`."""

import pathlib
import re
import tempfile
import tomllib
from typing import Any

import jupytext
import nbclient
from traitlets.config import Config

HERE = pathlib.Path(__file__).parent
GITHUB, COLAB = "https://github.com/", "https://colab.research.google.com/"
MOST_LINES = 40


def main() -> None:
    """Runs each notebook in an empty folder, with the packages of the Python that runs this, and writes it."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for source in sorted(HERE.glob("*.py")):
        if source.samefile(__file__):
            continue
        notebook = convert(source, project)
        with tempfile.TemporaryDirectory() as folder:
            client = nbclient.NotebookClient(
                notebook,
                timeout=600,
                record_timing=False,
                resources={"metadata": {"path": folder}},
                config=Config(KernelManager={"transport_encryption": "auto"}),  # the kernel warns if it could be read
            )
            client.execute()
        require_quiet(notebook)
        target = source.with_suffix(".ipynb")
        jupytext.write(notebook, target)
        print(target)


def convert(source: pathlib.Path, project: dict[str, Any]) -> Any:
    """A notebook without outputs, which knows the address of the project and the oldest JAX that it works with.

    Args:
        source: in jupytext's percent format.
        project: of pyproject.toml. There is a badge of Colab if its address is set, and is one of GitHub.
    """
    address = project["urls"]["Repository"]
    (oldest,) = (found[1] for need in project["dependencies"] if (found := re.fullmatch(r"jax>=([\d.]+)", need)))
    notebook = jupytext.read(source)
    title, *others = notebook.cells
    first = next(cell for cell in others if cell.cell_type == "code")
    first.source = first.source.replace('ADDRESS = ""', f'ADDRESS = "{address}"')
    first.source = first.source.replace('OLDEST_JAX = ""', f'OLDEST_JAX = "{oldest}"')
    if address.startswith(GITHUB):
        place = f"{COLAB}github/{address.removeprefix(GITHUB)}/blob/main/experiments/notebooks/{source.stem}.ipynb"
        title.source = f"[![Open in Colab]({COLAB}assets/colab-badge.svg)]({place})\n\n{title.source}"
    return notebook


def require_quiet(notebook: Any) -> None:
    """Raises a `RuntimeError` if a cell warns, or prints more than a page; a line that is written over counts once."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            lines = [line for line in output.get("text", "").split("\n") if line]
            warned = output.get("name") == "stderr" and not all(line.startswith("\r") for line in lines)
            if warned or len(lines) > MOST_LINES:
                raise RuntimeError(f"The cell\n\n{cell.source}\n\nshould not print\n\n{output['text']}")


if __name__ == "__main__":
    main()
