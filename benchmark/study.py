"""What each default is worth: tables of runs at the defaults beside runs with one changed, as study.sh makes them.

    python benchmark/study.py runs --out benchmark/results/study
    python benchmark/study.py benchmark/results/study --out again    # from what it wrote itself, without the runs

Written to `--out`: study.md, a table per change; study.csv, all its figures; runs.csv and episodes.csv.gz, as report.py
writes them.
"""

import json
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro
from report import Run, by, csv_text, load, markdown, order, statistic, write_runs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the algorithms, whose defaults are compared with


@dataclass
class Args:
    folders: Annotated[tuple[str, ...], tyro.conf.Positional]
    """folders to search for runs, and folders that this script wrote"""
    out: str
    """folder to write to"""
    resamples: int = 5000
    """bootstrap resamples of an interval"""


def changes(runs: list[Run]) -> dict[int, str]:
    """By id of each of an algorithm's runs on one dataset: its arguments that differ from the defaults, as words.

    Of arguments that are the same in all the runs, such as steps and widths, nothing is said.
    """
    defaults = import_module(runs[0].algorithm.lower().replace("-", "_")).Args()
    words = [set(run.arguments.split()) for run in runs]
    varying = set.union(*words) - set.intersection(*words)
    varying -= {f"{key}={json.dumps(value)}" for key, value in vars(defaults).items()}
    return {id(run): " ".join(sorted(varying & own)) for run, own in zip(runs, words, strict=True)}


def title_of(change: str) -> str:
    """A change's title; several at once are the paper's recipe."""
    return "the paper's recipe" if " " in change else change and f"`{change}`"


def figures(runs: list[Run], resamples: int) -> dict[str, Any]:
    """Interquartile mean over the runs' seeds and its 95% bootstrap interval, of the scores that they show."""
    made = statistic({(runs[0].dataset, runs[0].algorithm): runs}, resamples, runs[0].algorithm)
    return {key: made[key] for key in ("seeds", "value", "low", "high")}


def text_of(row: dict[str, Any] | None) -> str:
    if not row:
        return ""
    return f"{row['value']:.1f}" + ("" if row["low"] is None else f" ({row['low']:.1f} to {row['high']:.1f})")


def main(args: Args) -> None:
    runs = [run for run in load(args.folders, "asked") if run.algorithm.startswith("SAQ-")]
    of = {}
    for same in by(runs, lambda run: (run.dataset, run.algorithm)).values():
        of |= changes(same)
    rows = []
    for (title, dataset, algorithm), same in by(runs, lambda r: (title_of(of[id(r)]), r.dataset, r.algorithm)).items():
        # Other ways of acting are changes, too, but need no runs of their own.
        for way in [same[0].asked] if title else same[0].scores:
            for run in same:
                run.show(way)
            change = title if title or way == same[0].asked else f"`acting={way}`"
            rows.append({"change": change, "dataset": dataset, "algorithm": algorithm} | figures(same, args.resamples))
    found = {(row["change"], row["dataset"], row["algorithm"]): row for row in rows}
    text = """# What each default is worth

Interquartile mean over seeds (95% interval, percentiles of a bootstrap over seeds) of the last checkpoint's score, at
the defaults and with the change in the title, which is the paper's value. Empty: no runs of both.

"""
    for change, changed in sorted(by(rows, lambda row: row["change"]).items()):
        if not change:
            continue
        algorithms = sorted({row["algorithm"] for row in changed}, key=order)
        lines = []
        for dataset in dict.fromkeys(row["dataset"] for row in changed):
            cells = [(found.get(("", dataset, name)), found.get((change, dataset, name))) for name in algorithms]
            seeds = sorted({row["seeds"] for pair in cells for row in pair if row})
            line = [text_of(row if all(pair) else None) for pair in cells for row in pair]
            lines.append([dataset, *line, " or ".join(map(str, seeds))])
        header = [word for name in algorithms for word in (name, "changed")]
        text += f"## {change}\n\n" + markdown(["", *header, "seeds"], lines)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run.show(run.asked)
    write_runs(out, runs, of)
    (out / "study.csv").write_text(csv_text(rows))
    (out / "study.md").write_text(text.rstrip() + "\n")
    print(f"wrote {out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
