"""Table and figure of what the quantizer is worth, from the runs of ablation.sh.

    python benchmark/ablation.py runs/ablation --out benchmark/results/ablation
    python benchmark/ablation.py benchmark/results/ablation --out again    # from the table it wrote itself

Written to `--out`:

    ablation.csv    one row per run; the script reads it again
    ablation.md     mean over seeds (standard deviation of the seeds) per dataset, algorithm, quantizer and K
    ablation.png    error of the quantizer and scores over K: lines through the means, a marker per seed
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from report import TITLES, by, fail, plt, read_scores


class Args(NamedTuple):
    folder: Annotated[Path, tyro.conf.Positional]  # a folder of runs, or written by this script
    out: Path  # folder to write to
    action_mode: Literal["mean", "greedy", "sampled"] = "mean"  # to draw; the table has all that the runs have


class Row(NamedTuple):
    """A run."""

    dataset: str
    algorithm: str
    quantizer: str
    codebook_size: int
    seed: int
    mean: float | None  # score of each action mode; None if the run was not evaluated so
    greedy: float | None
    sampled: float | None
    error: float  # reconstruction error / variance of the actions; the best constant action has 1
    codes_used: int
    perplexity: float


MODES = ("mean", "greedy", "sampled")  # of --action-mode
COLOURS = {"saq": "#0072B2", "action-only": "#D55E00", "uniform": "#009E73", "aquadem": "#CC79A7"}  # Okabe and Ito's
MARKS = {"saq": ("-", "o"), "action-only": ("--", "s"), "uniform": (":", "^"), "aquadem": ("-.", "D")}  # differ in grey
MODE_NAMES = {"mean": "mean action", "greedy": "most probable code", "sampled": "sampled code"}
NAMES = {"saq": "state-conditioned", "action-only": "action only", "uniform": "uniform grid", "aquadem": "Aquadem"}


def read_run(folder: Path) -> Row:
    result = json.loads((folder / "result.json").read_text())
    args = json.loads((folder / "args.json").read_text())["args"]
    quantizer, _, algorithm = result["algorithm"].rpartition("_")
    if not args["state_conditioned"]:
        quantizer = "action-only"
    quality, scores = result["vqvae"], read_scores(folder, result)
    dataset = Path(args["dataset_path"]).stem if args["dataset_path"] else args["env_id"]
    return Row(
        dataset=dataset,
        algorithm=algorithm,
        quantizer=quantizer,
        codebook_size=args["codebook_size"],
        seed=args["seed"],
        **{mode: round(float(np.mean(scores[mode])), 4) if mode in scores else None for mode in MODES},
        error=round(quality["reconstruction_error"] / quality["action_variance"], 6),
        codes_used=quality["codes_used"],
        perplexity=round(quality["perplexity"], 4),
    )


def convert(kind: type, text: str) -> Any:
    """A value of a Row from its text in ablation.csv."""
    if kind == (float | None):
        return float(text) if text else None
    return kind(text)


def read(folder: Path) -> list[Row]:
    """The rows of ablation.csv if `folder` has one, else of every finished run below it that has a quantizer."""
    rows = []
    if (folder / "ablation.csv").exists():
        with open(folder / "ablation.csv", newline="") as file:
            types, reader = Row.__annotations__, csv.DictReader(file)
            if reader.fieldnames != list(types):
                fail(f"{folder / 'ablation.csv'} is of another version: its columns are not {', '.join(types)}")
            for row in reader:
                rows.append(Row(**{name: convert(types[name], text) for name, text in row.items()}))
    else:
        paths = sorted(folder.rglob("result.json"))
        rows = [read_run(path.parent) for path in paths if "vqvae" in json.loads(path.read_text())]
    if not rows:
        fail(f"no finished runs with a quantizer below {folder}")
    known, order = set(), list(COLOURS)
    for row in rows:
        if row.quantizer not in COLOURS:
            fail(f"unknown quantizer {row.quantizer!r}; known are {', '.join(COLOURS)}")
        if row[:5] in known:
            fail(
                f"two runs of {row.dataset}, {row.algorithm}, {row.quantizer}, K = {row.codebook_size}, seed {row.seed}"
            )
        known.add(row[:5])
    return sorted(rows, key=lambda row: (*row[:2], order.index(row.quantizer), *row[3:5]))


def table(rows: list[Row]) -> str:
    """Markdown: one line per dataset, algorithm, quantizer and K."""
    columns = dict.fromkeys(MODES, ".1f") | {"error": ".4f", "codes_used": ".0f", "perplexity": ".1f"}
    titles = ("dataset", "algorithm", "quantizer", "K", "seeds", *MODES, "error / variance", "codes used", "perplexity")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for (dataset, algorithm, quantizer, codes), runs in by(rows, lambda row: row[:4]).items():
        cells = [dataset, f"SAQ-{algorithm.upper()}", NAMES[quantizer], str(codes), str(len(runs))]
        for column, digits in columns.items():
            values = [getattr(run, column) for run in runs]
            if None in values:
                cells.append("")
                continue
            spread = f" ({np.std(values, ddof=1):{digits}})" if len(runs) > 1 else ""
            cells.append(f"{np.mean(values):{digits}}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_lines(axis: plt.Axes, rows: Iterable[Row], column: str) -> None:
    """A line per quantizer through the means over seeds of `column` against K, and every seed's value as a dot."""
    for quantizer, runs in by(rows, lambda row: row.quantizer).items():
        by_size = by(runs, lambda row: row.codebook_size)
        colour, means = COLOURS[quantizer], [np.mean([getattr(run, column) for run in g]) for g in by_size.values()]
        dashes, marker = MARKS[quantizer]
        axis.plot(list(by_size), means, dashes, marker=marker, color=colour, label=NAMES[quantizer])
        sizes, values = zip(*((run.codebook_size, getattr(run, column)) for run in runs))
        axis.scatter(sizes, values, s=12, marker=marker, color=colour, alpha=0.4, linewidths=0)


def draw(rows: list[Row], action_mode: str, path: Path) -> None:
    """A line of panels per dataset: the quantizers' error, then the score of each algorithm."""
    datasets, algorithms = by(rows, lambda row: row.dataset), sorted({row.algorithm for row in rows})
    size = (3.6 * (1 + len(algorithms)), 3.0 * len(datasets) + 0.3)
    figure, axes = plt.subplots(len(datasets), 1 + len(algorithms), figsize=size, layout="constrained", squeeze=False)
    for line, (dataset, runs) in zip(axes, datasets.items(), strict=True):
        # algorithms share a quantizer, which counts once
        quantizers = {(run.quantizer, run.codebook_size, run.seed): run for run in runs}
        draw_lines(line[0], quantizers.values(), "error")
        title = TITLES.get(dataset, dataset)
        line[0].set(yscale="log", title=f"{title}: error of the actions", ylabel="share of the actions' variance")
        line[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        line[0].yaxis.set_minor_formatter("")
        for axis, algorithm in zip(line[1:], algorithms, strict=True):
            chosen = [run for run in runs if run.algorithm == algorithm and getattr(run, action_mode) is not None]
            draw_lines(axis, chosen, action_mode)
            axis.set(title=f"{title}: SAQ-{algorithm.upper()}", ylabel=f"score by {MODE_NAMES[action_mode]}")
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.set_visible(bool(chosen))
        sizes = sorted({run.codebook_size for run in runs})
        for axis in line:
            axis.set_xscale("log", base=2)
            axis.set_xticks(sizes, sizes)
            axis.set_xlabel("number of codes K")
            axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: Args) -> None:
    rows = read(args.folder)
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "ablation.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Row._fields, *rows])
    (args.out / "ablation.md").write_text(table(rows))
    draw(rows, args.action_mode, args.out / "ablation.png")
    print(f"{len(rows)} runs; ablation.csv, ablation.md and ablation.png in {args.out}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main(tyro.cli(Args, description=__doc__))
