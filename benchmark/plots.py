"""Figures of report.py. Lines differ in dashes and markers, so that they can be told apart in grey, too."""

from pathlib import Path

import matplotlib
import pandas as pd
from results import half_interval, in_order, title_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FAMILY_COLORS = {"BRAC": "#CC79A7", "IQL": "#D55E00", "CQL": "#009E73", "BC": "#0072B2"}  # Okabe and Ito
QUANTIZER_LINES = {  # dashes, marker, color
    "SAQ": ("-", "o", "#1b3a57"),
    "": ("--", "s", "#d55e00"),
    "Aquadem": (":", "^", "#777777"),
    "state-conditioned": ("-", "o", "#0072B2"),
    "action only": ("--", "s", "#D55E00"),
    "uniform grid": (":", "^", "#009E73"),
}


def save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)


def tidy(axis: plt.Axes) -> None:
    axis.grid(color="#e4e4e4")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def curves(runs: pd.DataFrame, episodes: pd.DataFrame, path: Path) -> None:
    """A row of panels for each dataset, a column for each family: mean and 95% t interval over seeds."""
    points = episodes.merge(runs[["run", "dataset", "algorithm", "seed", "action_mode"]], on=["run", "action_mode"])
    points = points.groupby(["dataset", "algorithm", "step", "seed"])["score"].mean()
    datasets = list(dict.fromkeys(runs["dataset"]))
    families = list(dict.fromkeys(name.rpartition("-")[2] for name in in_order(runs["algorithm"])))
    size = (0.5 + 2.3 * max(len(families), 2), 0.9 + 1.9 * len(datasets))
    figure, axes = plt.subplots(
        len(datasets), len(families), figsize=size, squeeze=False, sharex="row", sharey="row", layout="constrained"
    )
    lines = {}
    for (dataset, algorithm), own in points.groupby(["dataset", "algorithm"]):
        quantizer, _, family = algorithm.rpartition("-")
        axis = axes[datasets.index(dataset), families.index(family)]
        by_step = own.groupby("step")
        middle, half = by_step.mean(), by_step.agg(half_interval).fillna(0)
        dashes, marker, color = QUANTIZER_LINES.get(quantizer, ("-.", "D", "#999999"))
        fill = color if quantizer == "SAQ" else "white"
        axis.fill_between(middle.index, middle - half, middle + half, color=color, alpha=0.25, linewidth=0)
        (line,) = axis.plot(middle, dashes, marker=marker, color=color, markerfacecolor=fill, markersize=5)
        lines[quantizer or "continuous actions"] = line
    for row, dataset in zip(axes, datasets, strict=True):
        row[0].set_ylabel(title_of(dataset), fontsize=11)
        for axis in row:
            score = runs.loc[runs["dataset"] == dataset, "dataset_score"].mean()
            lines["the data"] = axis.axhline(score, color="#777777", linewidth=1)
            axis.xaxis.set_major_locator(plt.MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
            axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step >= 1000 else f"{step:g}")
            tidy(axis)
    for axis, family in zip(axes[0], families, strict=True):
        axis.set_title(family, fontsize=12)
    figure.supxlabel("gradient steps", fontsize=11)
    figure.supylabel("score", fontsize=11)
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=len(lines), frameon=False)
    save(figure, path)


def summary(means: pd.DataFrame, improvements: pd.DataFrame, path: Path) -> None:
    """Interquartile means and probabilities of improvement with their intervals; filled: SAQ."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.32 * len(means) + 1.1), layout="constrained")
    names = [means["algorithm"], improvements["algorithm"] + " over " + improvements["over"]]
    for axis, frame, labels in zip(axes, (means, improvements), names, strict=True):
        for place, row in enumerate(frame.itertuples()):
            color = FAMILY_COLORS.get(row.algorithm.rpartition("-")[2], "#555555")
            if pd.notna(row.low):
                axis.plot([row.low, row.high], [place, place], color=color, linewidth=5, alpha=0.35)
            fill = color if row.algorithm.startswith("SAQ-") else "white"
            axis.plot(row.value, place, "o", color=color, markerfacecolor=fill)
        axis.set_yticks(range(len(frame)), labels)
        axis.set_ylim(max(len(frame), 1) - 0.5, -0.5)
        tidy(axis)
        axis.spines["left"].set_visible(False)
    axes[0].set_xlabel("interquartile mean of the score")
    axes[1].set_xlabel("probability of improvement")
    axes[1].set_xlim(-0.02, 1.02)
    axes[1].axvline(0.5, color="#888888", linewidth=1)
    save(figure, path)


def ablation(runs: pd.DataFrame, path: Path) -> None:
    """A row for each dataset, error and scores over the number of codes: lines through means, a marker a seed."""
    datasets, families = list(dict.fromkeys(runs["dataset"])), sorted(set(runs["family"]))
    columns = ["error", *families]
    size = (0.6 + 3.3 * len(columns), 0.8 + 2.7 * len(datasets))
    figure, axes = plt.subplots(len(datasets), len(columns), figsize=size, squeeze=False, layout="constrained")
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, column in zip(row, columns, strict=True):
            own = runs[runs["dataset"] == dataset]
            if column in families:
                own = own[own["family"] == column]
            value = "error" if column == "error" else "score"
            for quantizer, part in own.groupby("quantizer", sort=False):
                dashes, marker, color = QUANTIZER_LINES[quantizer]
                axis.plot(part["codes"], part[value], marker, color=color, alpha=0.35, markersize=5)
                axis.plot(part.groupby("codes")[value].mean(), dashes, marker=marker, color=color, label=quantizer)
            axis.set_xscale("log", base=2)
            sizes = sorted(set(own["codes"]))
            axis.set_xticks(sizes, sizes)
            axis.set_xlabel("number of codes K")
            axis.set_title(f"{title_of(dataset)}: {column}")
            axis.set_ylabel("share of the actions' variance" if column == "error" else "score")
            if column == "error":
                axis.set_yscale("log")
            else:
                axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
            tidy(axis)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)
