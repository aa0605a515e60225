"""Pictures of tasks as RGB arrays, drawn without a display, and GIFs made of them."""

import pathlib
from collections.abc import Iterable
from typing import BinaryIO, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from matplotlib.text import Text
from numpy.typing import ArrayLike
from PIL import Image

SIZE = 480  # pixels, of both sides of every picture
_DPI = 100

# From the colour schemes of Paul Tol, which colour-blind readers can tell apart.
BLUE, RED, GREEN, GOLD, GREY, INK = "#4477AA", "#EE6677", "#228833", "#DDAA33", "#BBBBBB", "#333333"
CYAN, PURPLE = "#66CCEE", "#AA3377"

_MOTION = 0.25  # a velocity is drawn as the way of this time, in the task's units


class Picture:
    """A square window on the plane. Later shapes lie on earlier ones, lines on all shapes, words on everything.

    Args:
        half_side: the window shows [-half_side, half_side]², y upwards, in the units of the task.
        caption: stands in the upper left corner.
    """

    def __init__(self, half_side: float, caption: str):
        self.half_side = half_side
        # Figure and canvas as objects: pyplot would choose a backend and keep every figure alive.
        figure = Figure(figsize=(SIZE / _DPI, SIZE / _DPI), dpi=_DPI)
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self._axes.set_axis_off()
        self._axes.set(xlim=(-half_side, half_side), ylim=(-half_side, half_side))
        self.text((-0.96 * half_side, 0.93 * half_side), caption, align="left")

    def disc(self, center: ArrayLike, radius: float, fill: str, alpha: float = 1.0, edge: str | None = None) -> None:
        """A disc.

        Args:
            center: (2,).
            radius: in the units of the task.
            fill: its colour.
            alpha: strength of the fill, 0 to 1.
            edge: the colour of its outline, none if None.
        """
        x, y = np.asarray(center)
        self._axes.add_artist(
            Circle((x, y), radius, facecolor=fill, alpha=alpha, edgecolor=edge, linewidth=1.5 if edge else 0.0)
        )

    def mover(self, center: ArrayLike, velocity: ArrayLike, radius: float, fill: str, edge: str | None = None) -> None:
        """A disc with a short line for its velocity; beyond the window, a hollow disc at its border.

        Args:
            center: (2,).
            velocity: (2,).
            radius: of the disc.
            fill: its colour.
            edge: the colour of its outline, none if None.
        """
        point, limit = np.asarray(center), self.half_side - radius
        shown = np.clip(point, -limit, limit)
        if (np.abs(point) > self.half_side + radius).any():
            self.disc(shown, radius, "white", edge=fill)
            return
        self.disc(point, radius, fill, edge=edge)
        tip = point + _MOTION * np.asarray(velocity)
        self._axes.add_artist(Line2D(*zip(point, tip, strict=True), color=INK, linewidth=1.2, solid_capstyle="round"))

    def square(
        self,
        center: ArrayLike,
        side: float,
        fill: str | None = None,
        alpha: float = 1.0,
        edge: str | None = None,
        width: float = 1.0,
    ) -> None:
        """A square.

        Args:
            center: (2,).
            side: in the units of the task.
            fill: its colour, none if None.
            alpha: strength of the fill, 0 to 1.
            edge: the colour of its outline, none if None.
            width: of the outline, in points.
        """
        x, y = np.asarray(center) - side / 2
        if fill:
            self._axes.add_artist(Rectangle((x, y), side, side, facecolor=fill, alpha=alpha, linewidth=0.0))
        if edge:
            self._axes.add_artist(Rectangle((x, y), side, side, fill=False, edgecolor=edge, linewidth=width))

    def text(
        self,
        position: ArrayLike,
        text: str,
        size: float = 11.0,
        align: Literal["left", "center", "right"] = "center",
        rotation: float = 0.0,
    ) -> None:
        """Words at a point.

        Args:
            position: (2,).
            text: the words.
            size: in points.
            align: which part of the words is at the point.
            rotation: in degrees, counterclockwise.
        """
        x, y = np.asarray(position)
        self._axes.add_artist(Text(x, y, text, color=INK, fontsize=size, rotation=rotation, ha=align, va="center"))

    def line(self, points: ArrayLike, colour: str, width: float = 1.5, alpha: float = 1.0) -> None:
        """A line through points.

        Args:
            points: (P, 2).
            colour: of the line.
            width: in points.
            alpha: its strength, 0 to 1.
        """
        self._axes.add_artist(Line2D(*np.asarray(points).T, color=colour, linewidth=width, alpha=alpha))

    def capsule(self, start: ArrayLike, end: ArrayLike, radius: float, fill: str, edge: str = "white") -> None:
        """A thick line with round ends, or a disc where they are one.

        Args:
            start, end: (2,), the centres of its ends.
            radius: in the units of the task.
            fill: its colour.
            edge: the colour of its outline.
        """
        if np.array_equal(start, end):  # no line has only ends
            self.disc(start, radius, fill, edge=edge)
            return
        points_a_unit = SIZE * 72.0 / _DPI / (2.0 * self.half_side)
        ends = np.stack([start, end]).T
        for colour, width in ((edge, 2.0 * radius * points_a_unit), (fill, 2.0 * radius * points_a_unit - 1.5)):
            self._axes.add_artist(Line2D(*ends, color=colour, linewidth=width, solid_capstyle="round"))

    def image(self) -> np.ndarray:
        """(SIZE, SIZE, 3) uint8."""
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3].copy()


def save_png(picture: np.ndarray, path: str | pathlib.Path | BinaryIO) -> None:
    """Writes one picture, (H, W, 3) uint8."""
    Image.fromarray(picture).save(path, "PNG")


def save_gif(frames: Iterable[np.ndarray], path: str | pathlib.Path | BinaryIO, fps: float = 10.0) -> None:
    """Writes a GIF that repeats forever.

    Args:
        frames: (H, W, 3) uint8 each, all of one size; one that equals its predecessor prolongs it.
        path: where to, or an open file.
        fps: frames a second; the format rounds the time of a frame to 10 ms.
    """
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, "GIF", save_all=True, append_images=others, duration=1000.0 / fps, loop=0)
