"""Figures of README.md and docs/, from benchmark/results.

    python benchmark/figures.py

Written to `--out`:

    learning_curves.png    scores over gradient steps, SAQ beside continuous actions, of the datasets in CURVES
    speed.png              benchmark/results/speed.csv as bars
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from report import by, choose, load, plot_curves, plt

RESULTS = Path(__file__).parent / "results"
CURVES = ("hopper-medium-expert-sb3-v0", "fetch-pick-and-place-demo-v0")  # datasets, from top to bottom
UNITS = {"cpu": "step time / time of its matrix products", "gpu": "gradient steps per second"}
SHADES = ("#1b3a57", "#6f93b3", "#d9822b", "#f3cfa4")  # of a table's settings, far apart in grey


class Args(NamedTuple):
    out: Path = Path("docs")  # folder to write to


def draw_curves(path: Path) -> None:
    """The learning curves of CURVES, drawn by report.py."""
    runs, cells = load([str(RESULTS / "small")]), {}
    for dataset in CURVES:
        settings = choose([run for run in runs if run.dataset == dataset], "all")
        shown = [run for setting in settings if setting.shown for run in setting.runs]
        cells |= by(shown, lambda run: (run.dataset, run.algorithm))
    plot_curves(cells, path)


def draw_speed(path: Path) -> None:
    """A panel per table of speed.csv, a group of bars per gradient step, a bar per setting."""
    with open(RESULTS / "speed.csv", newline="") as file:
        tables = by(csv.DictReader(file), lambda row: row["table"])
    figure, axes = plt.subplots(1, len(tables), figsize=(10.5, 4.6), layout="constrained", squeeze=False)
    for axis, (name, rows) in zip(axes[0], tables.items(), strict=True):
        steps, settings = list(by(rows, lambda row: row["step"])), by(rows, lambda row: row["setting"])
        height = 0.84 / len(settings)
        for place, (setting, own) in enumerate(settings.items()):
            at = np.array([steps.index(row["step"]) for row in own]) + (place + 0.5) * height - 0.42
            axis.barh(at, [float(row["value"]) for row in own], 0.94 * height, color=SHADES[place], label=setting)
        axis.set_yticks(range(len(steps)), [step.replace(" and ", "\nand ").replace(", ", ",\n") for step in steps])
        axis.invert_yaxis()
        axis.set_xlabel(UNITS[name], fontsize=11)
        axis.grid(axis="x", color="#e4e4e4")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: Args) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    draw_curves(args.out / "learning_curves.png")
    draw_speed(args.out / "speed.png")
    print(f"wrote learning_curves.png and speed.png to {args.out}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main(tyro.cli(Args, description=__doc__))
