"""What each default is worth: scores at the defaults beside scores with one default changed, from runs of study.sh.

    python benchmark/study.py runs --out benchmark/results/study
    python benchmark/study.py my-study --out again             # from what it wrote itself, without the runs
    python benchmark/study.py benchmark/results/study --out again --redraw    # only the figure, from study.csv

Written to `--out`: study.md, a table per change; study.csv, all its figures; study.png, what each change of
training does to each score; runs.csv and episodes.csv.gz, as report.py writes them.
"""

import csv
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from report import TITLES, Run, by, csv_text, fail, load, markdown, order, plt, statistic, write_runs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the algorithms, whose defaults are compared with

# Arguments that are no changes: the budget of the dataset, and the action mode, which is compared in the same run.
APART = {"vqvae_steps", "bc_steps", "rl_steps", "hidden_dim", "action_mode"}
PAPER = "the paper's recipe"
LABELS = {  # of changes in the figure, two of them also under the names in benchmark/results/study
    "learning_rate=0.0003": "learning rate 3e-4",
    "standardize=false": "raw observations",
    "dead_code_reset_every=0": "no resets of dead codes",
    "restart_every=0": "no restarts of unused codes",
    "layer_norm=false": "no layer normalization",
    "soft_codes=false": "the nearest code, not probabilities",
    "ema_decay=0.0": "last weights, no average",
    "value_scale=0.0": "reward scaling off",
    "gamma=0.99": "discount 0.99",
    "n_step=1": "one-step targets",
    "tau=0.005": "target update rate 0.005",
    "target_period=200": "target copy every 200 steps",
    'backup="greedy"': "backup of the largest Q",
    "min_log_pi_b=-8.0": "log \u03c0_b at least -8",
    "behavior_floor=-8.0": "floor of log \u03c0_b at -8",
    "q_functions=1": "one Q-function instead of two",
}


class Args(NamedTuple):
    folders: Annotated[tuple[str, ...], tyro.conf.Positional]  # folders of runs, or written by this script
    out: str  # folder to write to
    resamples: int = 5000  # bootstrap resamples of an interval
    redraw: bool = False  # only draw study.png, from study.csv: also of runs whose defaults have changed since


def defaults_of(algorithm: str) -> dict[str, Any]:
    """The default of every argument of an algorithm, such as SAQ-BC."""
    return vars(import_module(algorithm.lower().replace("-", "_")).Args())


def change_of(run: Run) -> str:
    """The arguments of a run that differ from its algorithm's defaults, except the ones in APART, as words."""
    same = {f"{key}={json.dumps(value)}" for key, value in defaults_of(run.algorithm).items()}
    return " ".join(word for word in run.arguments.split() if word.partition("=")[0] not in APART and word not in same)


def title_of(change: str) -> str:
    """A change's title; the paper's recipe is many."""
    paper = {"learning_rate=0.0003", "standardize=false", "ema_decay=0.0"} <= set(change.split())
    return PAPER if paper else change and f"`{change}`"


def compare(default: list[Run], changed: list[Run], modes: tuple[str, str], resamples: int) -> dict[str, Any] | None:
    """Interquartile means and 95% bootstrap intervals over the seeds that both have, in the two action modes.

    Returns a row of study.csv; None where no seed has both.
    """
    default = {run.seed: run for run in default if modes[0] in run.scores}
    changed = {run.seed: run for run in changed if modes[1] in run.scores}
    seeds = sorted(default.keys() & changed.keys())
    if not seeds:
        return None
    first = changed[seeds[0]]
    row = {"dataset": first.dataset, "algorithm": first.algorithm, "seeds": len(seeds)}
    for name, runs, mode in zip(("default", "changed"), (default, changed), modes):
        same = [replace(runs[seed], asked=mode) for seed in seeds]  # one run per seed
        made = statistic({(row["dataset"], row["algorithm"]): same}, resamples, row["algorithm"])
        row |= {name: made["value"], f"{name}_low": made["low"], f"{name}_high": made["high"]}
    return row


def text_of(row: dict[str, Any] | None, name: str) -> str:
    """A cell: a mean and its interval, which one seed does not have."""
    if not row:
        return ""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.1f}" + ("" if low is None else f" ({low:.1f} to {high:.1f})")


def gain(row: dict[str, Any]) -> float:
    """By how much the change raises the score."""
    return row["changed"] - row["default"]


def is_mode(row: dict[str, Any]) -> bool:
    """Whether the change is another action mode of the same runs."""
    return row["change"].startswith(("`acting=", "`action_mode="))


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A line per change, a column per dataset and algorithm: the score with the change minus the score without.

    Darker cells are larger changes; losses of more than 10 points are bold, so that they show in grey, too.
    """
    columns = sorted({(row["dataset"], row["algorithm"]) for row in rows}, key=lambda key: (key[0], order(key[1])))
    changes = sorted(by(rows, lambda row: row["change"]).values(), key=lambda own: np.mean([gain(row) for row in own]))
    image = np.full((len(changes), len(columns)), np.nan)
    figure, axis = plt.subplots(figsize=(2.9 + 0.5 * len(columns), 1.5 + 0.34 * len(changes)), layout="constrained")
    for y, own in enumerate(changes):
        for row in own:
            x = columns.index((row["dataset"], row["algorithm"]))
            image[y, x] = gain(row)
            color = "white" if abs(image[y, x]) > 70 else "black"
            weight = "bold" if image[y, x] < -10 else None
            text = f"{round(image[y, x]):+}"
            axis.text(x, y, text, fontsize=11, color=color, weight=weight, ha="center", va="center")
    axis.imshow(image, cmap="PuOr", vmin=-110, vmax=110, aspect="auto")
    names = [own[0]["change"].strip("`") for own in changes]
    axis.set_yticks(range(len(changes)), [LABELS.get(name, name) for name in names], fontsize=11)
    axis.set_xticks(range(len(columns)), [algorithm for _, algorithm in columns], rotation=60, ha="left", fontsize=11)
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for dataset, own in by(columns, lambda column: column[0]).items():
        first, last = columns.index(own[0]), columns.index(own[-1])
        title = TITLES.get(dataset, dataset)
        axis.text((first + last) / 2, len(changes) - 0.3, title, ha="center", va="top", fontsize=12)
        axis.axvline(last + 0.5, color="black", linewidth=1)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of the study.csv in a folder, as far as `draw` needs them."""
    with open(folder / "study.csv", newline="") as file:
        return [row | {name: float(row[name]) for name in ("default", "changed")} for row in csv.DictReader(file)]


def main(args: Args) -> None:
    if args.redraw:
        rows = [row for folder in args.folders for row in read(Path(folder))]
        Path(args.out).mkdir(parents=True, exist_ok=True)
        draw([row for row in rows if not is_mode(row)], Path(args.out) / "study.png")
        return
    runs = [run for run in load(args.folders) if run.algorithm.startswith("SAQ-")]
    changes = {id(run): change_of(run) for run in runs}
    groups = by(runs, lambda run: (title_of(changes[id(run)]), run.dataset, run.algorithm))
    defaults = {tuple(key): same for (title, *key), same in groups.items() if not title}
    rows = []
    for (title, *key), same in groups.items():
        usual = defaults_of(same[0].algorithm)["action_mode"]
        if title:
            shown = {title: same[0].asked if title == PAPER else usual}
        else:  # other action modes count as changes and need no runs of their own
            others = {mode: None for run in same for mode in run.scores if mode != usual}
            shown = {f"`action_mode={mode}`": mode for mode in others}
        for change, mode in shown.items():
            row = compare(defaults.get(tuple(key), []), same, (usual, mode), args.resamples)
            if row:
                rows.append({"change": change} | row)
    if not rows:
        fail(f"no SAQ runs at the defaults and changed, of one seed, in {', '.join(args.folders)}")
    text = """# What each default is worth

Interquartile mean over seeds (95% interval, percentiles of a bootstrap over seeds) of the last checkpoint's score, at
the defaults and with the change in the title, over the same seeds, in the default action mode; the paper's recipe acts
as the paper does. Empty: no runs of both.

"""
    for change, changed in sorted(by(rows, lambda row: row["change"]).items()):
        algorithms = sorted({row["algorithm"] for row in changed}, key=order)
        lines = []
        for dataset, own in by(changed, lambda row: row["dataset"]).items():
            found = {row["algorithm"]: row for row in own}
            line = [text_of(found.get(algorithm), name) for algorithm in algorithms for name in ("default", "changed")]
            lines.append([dataset, *line, " or ".join(map(str, sorted({row["seeds"] for row in own})))])
        header = [word for name in algorithms for word in (name, "changed")]
        text += f"## {change}\n\n" + markdown(["", *header, "seeds"], lines)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_runs(out, runs, changes)
    (out / "study.csv").write_text(csv_text(rows))
    (out / "study.md").write_text(text.rstrip() + "\n")
    trained = [row for row in rows if not is_mode(row)]
    if trained:
        draw(trained, out / "study.png")
    print(f"wrote {out}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main(tyro.cli(Args, description=__doc__))
