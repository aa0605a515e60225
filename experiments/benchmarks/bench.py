"""How fast training and simulation are.

    make bench              ratios against named baselines measured in the same run (ratios.py)
    make bench SHORT=1      rates alone, on whatever accelerator there is, in at most five minutes (short.py)

Compile time stands apart. `make` makes every core of a CPU a device of its own (JAX_NUM_CPU_DEVICES), over which the
runs of a program spread; PyTorch has all cores, or one if that is faster. A machine that is busy with something else
measures nothing: the load is printed, and each number is the best of several repeats, ours and the baselines' taken in
turn.
"""

import os
import pathlib

import same_bits
import tyro


def main(
    out: pathlib.Path | None = None,
    seconds: float = 5.0,
    repeats: int = 3,
    seeds: tuple[int, ...] = (1, 5, 20),
    short: bool = False,
) -> None:
    """Measures everything, prints it and writes it to a file.

    Args:
        out: JSON file to write; by default results/bench.json or results/bench-short.json.
        seconds: of each measurement of the long form.
        repeats: measurements of each thing in the long form, of which the best counts.
        seeds: numbers of runs in one program, in the long form.
        short: the short form.
    """
    # As the command line has it: accelerators would multiply with less.
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
    # What is imported below starts the backend, and the processes of `same_bits` must have the accelerator before that.
    if short:
        same = same_bits.compare()
        import short as short_form

        short_form.measure(out or pathlib.Path("results/bench-short.json"), same)
    else:
        import ratios

        ratios.measure(out or pathlib.Path("results/bench.json"), seconds, repeats, seeds)


if __name__ == "__main__":
    tyro.cli(main)
