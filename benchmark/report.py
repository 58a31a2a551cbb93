"""Tables and figures from the folders of finished runs.

    python benchmark/report.py tables runs/adroit --out my-results       # scores beside the paper's, and statistics
    python benchmark/report.py study runs/study runs/small --out my-results
    python benchmark/report.py ablation runs/ablation --out my-results
    python benchmark/report.py pages                                     # README.md and docs/ from benchmark/results

The first three write tables.md, figures, and every run and episode to runs.csv and episodes.csv.gz. They take a folder
with these two files like a folder of runs. `pages` rewrites what stands between <!-- results: ... --> and
<!-- end --> on the pages, and their figures.
"""

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated

import pandas as pd
import plots
import results
import tyro
from results import BLOCKS, PAPER, TITLES, in_order

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
CURVES = ("hopper-medium-expert-sb3-v0", "halfcheetah-medium-expert-sb3-v0")  # of the figure
SATURATED = ("hopper-medium-expert-sb3-v0", "fetch-pick-and-place-demo-v0")
PAGE_COLUMNS = ("BC", "SAQ-BC", "IQL", "SAQ-IQL", "CQL", "SAQ-CQL", "BRAC", "SAQ-BRAC")
PAPERS_RECIPE = "the paper's recipe"
QUANTIZERS = ("state-conditioned", "action only", "uniform grid")

Folders = Annotated[tuple[Path, ...], tyro.conf.Positional]


def markdown(frame: pd.DataFrame) -> str:
    """A table with the frame's columns, all of them strings."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_interval(row: pd.Series, digits: int) -> str:
    """`0.74 (0.60 to 0.87)`, without the interval where there is one seed."""
    if pd.isna(row["low"]):
        return f"{row['value']:.{digits}f}"
    return f"{row['value']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def score_table(runs: pd.DataFrame, block: str) -> pd.DataFrame:
    """A block's scores: mean over seeds, half the width of its 95% t interval, and the paper's score in brackets."""
    paper = PAPER.set_index(["dataset", "algorithm"])["score"]
    cells = {}
    for key, scores in runs.groupby(["dataset", "algorithm"])["score"]:
        cells[key] = f"{scores.mean():.1f}"
        if len(scores) > 1:
            cells[key] += f" ± {results.half_interval(scores):.1f}"
        if key in paper:
            cells[key] += f" [{paper[key]:.1f}]"

    datasets = list(BLOCKS[block == BLOCKS].index) or list(runs["dataset"].unique())
    cells = pd.Series(cells).unstack().reindex(index=datasets, columns=in_order(runs["algorithm"]))
    means = runs.groupby(["dataset", "algorithm"])["score"].mean().unstack().mean()
    cells.loc["average"] = means.map("{:.1f}".format).where(cells.notna().all())  # of all datasets or none
    cells.insert(0, "data", runs.groupby("dataset")["dataset_score"].mean().map("{:.1f}".format))
    return cells.fillna("").reset_index(names="dataset")


def by_dataset(frame: pd.DataFrame, table: Callable[[pd.DataFrame], str]) -> str:
    """A section for each dataset, with the table of its rows."""
    return "".join(f"\n## {dataset}\n\n{table(own)}" for dataset, own in frame.groupby("dataset", sort=False))


def write(out: Path, runs: pd.DataFrame, episodes: pd.DataFrame, text: str) -> None:
    """Write the runs and tables.md, and say so."""
    results.write(out, runs, episodes)
    (out / "tables.md").write_text(text)
    print(f"{len(runs)} runs; wrote {out / 'tables.md'}")


def tables(folders: Folders, out: Path) -> None:
    """Scores beside the paper's, interquartile means, probabilities of improvement, settings, learning curves."""
    runs, episodes = read(folders)
    settings = results.choose(runs)
    shown = results.shown_runs(runs, settings)
    text = """# Results

Scores of the last checkpoint: mean over seeds ± half the width of its 95% t interval over seeds [the paper's score].
`data` is the mean score of the dataset. Minari's datasets (`D4RL/...`) stand for D4RL's, whose scores the paper has.
"""
    for block, own in shown.groupby("block", sort=False):
        text += f"\n## {block}\n\n" + markdown(score_table(own, block))

    means, improvements = results.interquartile_means(shown), results.improvements(shown)
    text += """
## All datasets

95% intervals: stratified bootstrap over seeds. They say nothing about other datasets. Interquartile means compare only
where algorithms have the same datasets. A probability of improvement is that of a run scoring more than a run of the
other algorithm on the same dataset (equal scores: one half), mean over the datasets of both.

"""
    table = pd.DataFrame({"": means["algorithm"]})
    table["interquartile mean"] = [with_interval(row, 1) for _, row in means.iterrows()]
    table["datasets x seeds"] = [f"{row.datasets} x {row.seeds}" for row in means.itertuples()]
    text += markdown(table)
    if len(improvements):
        table = pd.DataFrame({"": improvements["algorithm"] + " over " + improvements["over"]})
        table["probability of improvement"] = [with_interval(row, 2) for _, row in improvements.iterrows()]
        table["datasets"] = improvements["datasets"].astype(str)
        text += "\n" + markdown(table)

    several = settings.groupby(["group", "algorithm"])["setting"].transform("size") > 1
    if several.any():
        text += """
## Settings

The tables show one setting for all datasets of a block: among those with runs on the most datasets the one with the
highest average score, over the datasets and seeds that all of these have. It is chosen by the scores that are shown,
which favours algorithms with more settings.

"""
        table = settings[several].astype({"datasets": str})
        table["average"] = table["average"].map("{:.1f}".format).replace("nan", "")
        table["shown"] = table["shown"].map({True: "yes", False: ""})
        text += markdown(table)

    text += "\n## Runs\n\nSeeds, episodes each, and mean seconds.\n\n"
    cells = shown.groupby(["dataset", "algorithm"], sort=False)
    table = cells.agg(seeds=("seed", "size"), episodes=("episodes", "max"), seconds=("seconds", "mean")).reset_index()
    text += markdown(table.astype({"seconds": int}).astype(str))

    write(out, runs, episodes, text)
    plots.curves(shown, episodes, out / "learning_curves.png")
    plots.summary(means, improvements, out / "summary.png")


def changes(runs: pd.DataFrame) -> pd.DataFrame:
    """What each change of the defaults does to the score of SAQ, over the seeds that have runs with and without it.

    Columns: change, dataset, algorithm, seeds, gain (mean over seeds), half (the width of its 95% t interval).
    """
    rows = []
    for (dataset, algorithm), own in runs.groupby(["dataset", "algorithm"], sort=False):
        scores = own.pivot(index="seed", columns="setting", values="score")
        for setting in scores.columns:
            if setting and "" in scores:
                gains = (scores[setting] - scores[""]).dropna()
                if gains.empty:
                    continue
                change = PAPERS_RECIPE if setting.count("--") > 5 else setting
                row = {"change": change, "dataset": dataset, "algorithm": algorithm, "seeds": len(gains)}
                rows.append(row | {"gain": gains.mean(), "half": results.half_interval(gains)})
    if not rows:
        raise ValueError("no runs with a change, or no runs at the defaults (of small.sh) beside them")
    return pd.DataFrame(rows)


def study_table(gains: pd.DataFrame) -> str:
    """A line for each change, a column for each algorithm, from the rows of `changes` of one dataset."""
    cells = gains["gain"].map("{:+.1f}".format) + gains["half"].map(" ± {:.1f}".format).replace(" ± nan", "")
    table = gains.assign(cell=cells).pivot(index="change", columns="algorithm", values="cell").fillna("")
    table = table[[name for name in PAGE_COLUMNS if name in table]]
    by_change = gains.groupby("change")
    table["seeds"] = by_change["seeds"].max().astype(str)
    table = table.loc[by_change["gain"].mean().sort_values().index].reset_index()
    table["change"] = [change if change == PAPERS_RECIPE else f"`{change}`" for change in table["change"]]
    return markdown(table.rename(columns={"change": ""}))


def study(folders: Folders, out: Path) -> None:
    """What each default is worth, from the runs of study.sh and of small.sh."""
    runs, episodes = read(folders)
    runs = runs[runs["algorithm"].str.startswith("SAQ-")]
    text = "# What each default is worth\n\nScore with the change minus score at the defaults, on the same seeds.\n"
    write(out, runs, episodes, text + by_dataset(changes(runs), study_table))


def quantizers(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the ablation with columns quantizer, family, codes and error (a share of the actions' variance)."""
    runs = runs[runs["reconstruction_error"].notna()].copy()
    runs["codes"] = runs["setting"].str.extract(r"--codebook-size (\d+)", expand=False).astype(int)
    runs["family"] = "SAQ-" + runs["algorithm"].str.split("-").str[-1]
    runs["quantizer"] = QUANTIZERS[0]
    runs.loc[runs["setting"].str.contains("--no-state-conditioned"), "quantizer"] = QUANTIZERS[1]
    runs.loc[runs["algorithm"].str.startswith("Uniform-"), "quantizer"] = QUANTIZERS[2]
    runs["error"] = runs["reconstruction_error"] / runs["action_variance"]
    return runs


def ablation_table(runs: pd.DataFrame) -> str:
    """Scores, then the errors of the quantizers, with a column for each number of codes. Of one dataset."""
    scores = runs.assign(row=runs["family"] + ", " + runs["quantizer"], value=runs["score"])
    errors = runs.drop_duplicates(["quantizer", "codes", "seed"])  # algorithms share a quantizer
    errors = errors.assign(row="error, " + errors["quantizer"], value=100 * errors["error"])
    table = pd.concat([scores, errors]).groupby(["row", "codes"])["value"].mean().unstack().map("{:.1f}".format)
    table[table.index.str.startswith("error")] += "%"
    order = [f"{value}, {name}" for value in ("SAQ-BC", "SAQ-IQL", "error") for name in QUANTIZERS]
    table = table.loc[[row for row in order if row in table.index]].rename(columns=str)
    return markdown(table.replace("nan", "").reset_index(names="codes"))


def ablation(folders: Folders, out: Path) -> None:
    """What the quantizer is worth, from the runs of ablation.sh."""
    runs, episodes = read(folders)
    compared = quantizers(runs)
    text = "# Quantizers\n\nMean score over seeds, and the error of the decoded actions as a share of their variance.\n"
    write(out, runs, episodes, text + by_dataset(compared, ablation_table))
    plots.ablation(compared, out / "ablation.png")


@cache
def kept(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs and episodes that benchmark/results keeps."""
    return results.read([RESULTS / name])


def named(title: str) -> str:
    """A dataset by the beginning of its title, without `OGBench`."""
    return next(name for name, (full, _) in TITLES.items() if full.removeprefix("OGBench ").startswith(title))


def headline() -> str:
    """README's table: mean score of every algorithm on every dataset."""
    runs, _ = kept("small")
    rows = []
    for dataset, (title, transitions) in TITLES.items():
        own = runs[runs["dataset"] == dataset]
        means, seeds = own.groupby("algorithm")["score"].mean(), own.groupby("algorithm")["seed"].size()
        row = {"dataset (transitions)": f"{title} ({transitions})", "data": f"{own['dataset_score'].mean():.1f}"}
        for algorithm in PAGE_COLUMNS:
            row[algorithm] = f"{means[algorithm]:.1f}" if algorithm in means else ""
        fewest, most = seeds.min(), seeds.max()
        row["seeds"] = str(most) if fewest == most else f"{fewest} to {most}"
        commit = own["commit"].mode()[0]
        others = [name for name in PAGE_COLUMNS if (own.loc[own["algorithm"] == name, "commit"] != commit).any()]
        row["commit"] = commit + (f" (other: {', '.join(others)})" if others else "")
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def improvement() -> str:
    """Probabilities that SAQ is ahead of its counterparts: on the datasets that are not saturated, and on all."""
    runs, _ = kept("small")
    rows = []
    for title, own in (("not saturated", runs[~runs["dataset"].isin(SATURATED)]), ("all", runs)):
        row = {"datasets": f"{title}, {own['dataset'].nunique()}"}
        for _, pair in results.improvements(own).iterrows():
            row[f"{pair['algorithm']} over {pair['over']}"] = with_interval(pair, 2)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def dataset(title: str) -> str:
    """The scores of every algorithm on a dataset, with the score of every seed."""
    runs, _ = kept("small")
    own = runs[runs["dataset"] == named(title)]
    rows = []
    for algorithm in PAGE_COLUMNS:
        cell = own[own["algorithm"] == algorithm]
        if len(cell):
            row = {"": algorithm, "mean": f"{cell['score'].mean():.1f}", "deviation": f"{cell['score'].std():.1f}"}
            row["seeds"] = ", ".join(cell["score"].map("{:.0f}".format))
            row["action"] = ", ".join(cell["action_mode"].unique())
            row["seconds"] = f"{cell['seconds'].mean():.0f}"
            row["commit"] = ", ".join(cell["commit"].unique())
            rows.append(row)
    return markdown(pd.DataFrame(rows).replace("nan", ""))


def measured(name: str) -> str:
    """A table of measured.csv, whose lines have a table, a row, a column and a value."""
    lines = pd.read_csv(RESULTS / "measured.csv", dtype=str, keep_default_na=False)
    lines = lines[lines["table"] == name]
    table = lines.pivot(index="row", columns="column", values="value").fillna("")
    return markdown(table.loc[lines["row"].unique(), lines["column"].unique()].reset_index(names=""))


def published(task: str) -> str:
    """Published success rates on OGBench's default task, after a million steps on a million transitions."""
    table = pd.read_csv(ROOT / "benchmark" / "ogbench.csv", comment="#", dtype=str)
    (row,) = [row for _, row in table.iterrows() if row["task"].startswith(f"{task}-play-singletask")]
    methods = [name for name in table.columns if f"{name}_sd" in table.columns]
    return markdown(pd.DataFrame([{name: f"{row[name]} ± {row[name + '_sd']}" for name in methods}]))


SECTIONS = {
    "headline": headline,
    "improvement": improvement,
    "dataset": dataset,
    "measured": measured,
    "published": published,
    "study": lambda title: study_table(changes(kept("study")[0]).query("dataset == @named(@title)")),
    "ablation": lambda title: ablation_table(quantizers(kept("ablation")[0]).query("dataset == @named(@title)")),
}


def rewritten(page: str) -> str:
    """The text of a page with its sections made again. A section starts with <!-- results: NAME WORDS... -->."""

    def section(match: re.Match) -> str:
        name, *words = match[1].split(maxsplit=1)
        return f"<!-- results: {match[1]} -->\n{SECTIONS[name](*words)}<!-- end -->"

    return re.sub(r"<!-- results: ([^\n]+) -->\n.*?<!-- end -->", section, page, flags=re.DOTALL)


def figures(folder: Path) -> None:
    """The figures of the pages."""
    runs, episodes = kept("small")
    plots.curves(runs[runs["dataset"].isin(CURVES)], episodes, folder / "learning_curves.png")
    plots.summary(results.interquartile_means(runs), results.improvements(runs), folder / "summary.png")
    plots.ablation(quantizers(kept("ablation")[0]), folder / "ablation.png")


def pages() -> None:
    """README.md and docs/ from benchmark/results."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        page.write_text(rewritten(page.read_text()))
    figures(ROOT / "docs")


def read(folders: Folders) -> tuple[pd.DataFrame, pd.DataFrame]:
    if not folders:
        raise ValueError("name at least one folder of runs")
    return results.read(folders)


if __name__ == "__main__":
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"tables": tables, "study": study, "ablation": ablation, "pages": pages}, description=__doc__
        )
    except ValueError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        raise SystemExit(2) from None
