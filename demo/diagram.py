"""The README's first picture: the path of the data through SAQ. Needs matplotlib (pip install matplotlib).

python demo/diagram.py
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.patches import FancyBboxPatch, Rectangle

DARK, LIGHT = "#1b3a57", "#dce6ef"  # also far apart in grey
CODES, CHOSEN = 64, 27


class Args(NamedTuple):
    output: Path = Path("demo/diagram.png")  # picture to write


def box(axis: plt.Axes, x: float, name: str, formula: str) -> None:
    """A network at (x, 2): its name, and below it what it computes."""
    axis.add_patch(FancyBboxPatch((x - 0.75, 1.45), 1.5, 1.1, "round,pad=0,rounding_size=0.15", fc=DARK, ec=DARK))
    axis.text(x, 2.17, name, ha="center", va="center", color="white", fontsize=13, weight="bold")
    axis.text(x, 1.77, formula, ha="center", va="center", color="white", fontsize=12)


def arrow(axis: plt.Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.6, **style})


def code_grid(axis: plt.Axes, x: float) -> None:
    """The codes as 8 x 8 cells around (x, 2), with one of them chosen."""
    size = 0.15
    for code in range(CODES):
        row, column = divmod(code, 8)
        corner = (x + (column - 4) * size, 2 + (3 - row) * size)
        color = DARK if code == CHOSEN else LIGHT
        axis.add_patch(Rectangle(corner, size, size, fc=color, ec="white", linewidth=0.8))
    axis.text(x, 2.78, "code c", ha="center", fontsize=13, weight="bold")


def values(axis: plt.Axes, x: float) -> None:
    """A bar per code, centred on x: the value of each code in one state."""
    heights = np.random.default_rng(4).gamma(2.0, 1.0, 32)
    heights[13] = 1.25 * heights.max()
    for code, height in enumerate(1.15 * heights / heights.max()):
        corner = (x - 0.96 + 0.06 * code, 1.42)
        color = DARK if code == 13 else "#8aa4bd"
        axis.add_patch(Rectangle(corner, 0.045, height, fc=color))
    axis.text(x, 2.78, "Q(s, k), policy π(k|s)", ha="center", fontsize=13, weight="bold")


def draw(path: Path) -> None:
    """The path runs from left to right, the observation enters from below, and captions are at the bottom."""
    figure, axis = plt.subplots(figsize=(9.4, 3.5), layout="constrained")
    axis.set(xlim=(-0.1, 11.6), ylim=(-0.62, 3.15))
    axis.set_axis_off()
    axis.text(0.5, 2, "action a\nin the data", ha="center", va="center", fontsize=12)
    box(axis, 2.2, "encoder", "e(s, a)")
    code_grid(axis, 4.15)
    values(axis, 6.45)
    box(axis, 8.85, "decoder", "d(s, k)")
    axis.text(10.9, 2, "action\nto take", ha="center", va="center", fontsize=12)
    for start, end in ((1.12, 1.42), (3.0, 3.5), (4.8, 5.4), (7.5, 8.05), (9.65, 10.35)):
        arrow(axis, (start, 2), (end, 2))
    axis.plot([0.55, 8.85], [0.75, 0.75], color="black", linewidth=1.6, linestyle=(0, (4, 2)))
    axis.text(0.55, 0.88, "observation s", ha="left", va="bottom", fontsize=12)
    for x in (2.2, 6.45, 8.85):
        arrow(axis, (x, 0.73), (x, 1.38), linestyle=(0, (4, 2)))
    for left, right, what, how in (
        (0.1, 5.0, "1. Quantize", "every state has its own 64 actions"),
        (5.15, 7.75, "2. Learn", "exact sums over codes"),
        (7.9, 11.5, "3. Act", "decode codes into an action"),
    ):
        axis.plot([left, right], [0.38, 0.38], color=DARK, linewidth=3)
        axis.text(left, 0.22, what, va="top", fontsize=13, weight="bold", color=DARK)
        axis.text(left, -0.22, how, va="top", fontsize=12)
    figure.savefig(path, dpi=180, pil_kwargs={"optimize": True})
    plt.close(figure)


if __name__ == "__main__":
    plt.switch_backend("Agg")
    draw(tyro.cli(Args, description=__doc__).output)
