"""Tables, statistics and figures from the folders of finished runs.

    python benchmark/report.py runs --out benchmark/results/small
    python benchmark/report.py benchmark/results/small --out again    # from what it wrote itself, without the runs

Runs are found by their `result.json`, with `args.json` and `eval.npz` beside it. Scores in another action mode, which
examples/act.py writes to `eval_greedy.npz` and the like, appear among the details. Written to `--out`:

    tables.md, tables.csv             scores per dataset and algorithm beside the paper's; statistics, settings
    statistics.csv                    interquartile means and probabilities of improvement
    learning_curves.png, summary.png
    runs.csv, episodes.csv.gz         every run, and every episode of its last evaluation; the script reads them again

Interquartile mean, probability of improvement and stratified bootstrap: Agarwal et al., *Deep Reinforcement Learning at
the Edge of the Statistical Precipice* (NeurIPS 2021), in their package rliable. `paper.csv` holds Tables 1 and 2 of the
SAQ paper without their averages, two of which do not follow from the rows.
"""

import csv
import gzip
import io
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import numpy as np
import scipy.stats
import tyro


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2, for errors in the input."""
    print("error:", *message.split(), file=sys.stderr)
    raise SystemExit(2)


try:
    import matplotlib.pyplot as plt
    from rliable import library, metrics
except Exception as error:  # packages of other versions raise other errors than ImportError
    fail(f"report.py needs rliable and matplotlib ({error!r}): pip install -r requirements-benchmark.txt")


class Args(NamedTuple):
    folders: Annotated[tuple[str, ...], tyro.conf.Positional]  # folders of runs, or written by this script
    out: str  # folder to write to
    select: Literal["block", "all"] = "block"  # datasets that share one setting
    datasets: tuple[str, ...] = ()  # only those whose name contains one of these words
    resamples: int = 5000  # bootstrap resamples of an interval


FAMILIES = {"BRAC": "#CC79A7", "IQL": "#D55E00", "CQL": "#009E73", "BC": "#0072B2"}  # Okabe and Ito's colours
STYLES = {  # of a quantizer's lines: dashes, marker, colour, which differ in grey, too
    "SAQ": ("-", "o", "#1b3a57"),
    "": ("--", "s", "#d55e00"),
    "Aquadem": (":", "^", "#777777"),
}
TITLES = {  # of datasets in figures, in place of a file's name
    "fetch-pick-and-place-demo-v0": "demo",
    "cube-single-play-v0": "cube-single",
    "cube-single-play-singletask-v0": "cube-single",
    "scene-play-v0": "scene",
    "scene-play-singletask-v0": "scene",
    "halfcheetah-medium-expert-sb3-v0": "halfcheetah mix",
    "hopper-medium-expert-sb3-v0": "hopper mix",
    "square_v15_scripted": "Square",
    "lift_v15_scripted": "Lift, 200 demos",
    "lift_v15_scripted (valid)": "Lift, 20 demos",
    "lift_scripted_low_dim": "Lift, 200 demos",
    "lift_scripted_low_dim (valid)": "Lift, 20 demos",
    "door-human-v0": "door",
}
ROBOMIMIC = {f"{name}-ph": name.replace("_", "-") for name in ("lift", "can", "square", "tool_hang", "transport")}
IGNORED = {  # arguments of data, machine and evaluation, which do not change what is learned
    *("env_id", "dataset_path", "dataset_filter", "seed", "run_dir", "vqvae_path", "device", "compile", "track"),
    *("checkpoint_every", "eval_every", "eval_episodes", "final_eval_episodes", "capture_video"),
}
BY_DATA = ("gamma", "n_step")  # arguments with a value for each dataset unless the command gives one
with open(Path(__file__).parent / "paper.csv", newline="") as _file:
    _rows = list(csv.DictReader(_file))
PAPER = {(row["dataset"], row["algorithm"]): float(row["score"]) for row in _rows}
BLOCKS = {row["dataset"]: row["block"] for row in _rows}  # of the paper's datasets, in its order
MODES = ("mean", "greedy", "sampled", "softmax")  # of --action-mode
DIGITS = 4  # of scores when read, so that episodes.csv.gz gives the same tables as the runs


@dataclass
class Run:
    """A finished run. runs.csv has these fields except the last two, which are in episodes.csv.gz."""

    dataset: str
    algorithm: str
    seed: int
    arguments: str  # arguments of its setting, as `flag=value` words
    asked: str  # the action mode that it was asked for
    dataset_score: float
    total_steps: int
    training_seconds: float
    wall_clock_seconds: float
    reconstruction_error: float | None  # of the VQ-VAE, as the next three; None: continuous actions
    action_variance: float | None
    codes_used: float | None
    perplexity: float | None
    torch: str
    git_commit: str
    env_id: str
    run: str  # its folder
    scores: dict[str, list[float]]  # of the last evaluation's episodes, by action mode
    curve: dict[int, float]  # mean score of the evaluation after a step

    @property
    def score(self) -> float:
        return mean(self.scores[self.asked])

    @property
    def block(self) -> str:
        return BLOCKS.get(self.dataset, "other")

    @property
    def row(self) -> tuple:
        """Sorts runs as the tables' rows and columns."""
        place = list(BLOCKS).index(self.dataset) if self.dataset in BLOCKS else len(BLOCKS)
        return place, self.dataset, order(self.algorithm), self.arguments, self.seed


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def by(items: Iterable, key: Callable) -> dict[Any, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return dict(groups)


def dataset_name(args: dict[str, Any]) -> str:
    """The paper's name of a dataset, also for Minari's version of it; for other datasets the id or the file's name."""
    path = Path(args["dataset_path"]) if args["dataset_path"] else None
    if path and not path.stem.startswith("low_dim"):
        task = "".join(re.findall(r"-task\d(?=-v0$)", args["env_id"]))  # OGBench: five tasks on one file
        name = path.name if path.stem in ROBOMIMIC.values() else path.stem + task  # lift.hdf5 is not the paper's lift
    else:
        env_id = ("-".join(path.parts[-3:-1]) or path.stem) if path else args["env_id"]  # lift/ph/low_dim_v141.hdf5
        env_id += "-dense" * ("low_dim_dense" in str(path))
        minari = re.fullmatch(r"D4RL/(kitchen|antmaze)/([a-z-]+)-v\d+", env_id)
        row = f"{minari[1]}-{minari[2]}-{'v0' if minari[1] == 'kitchen' else 'v2'}" if minari else ROBOMIMIC.get(env_id)
        name = row if row in BLOCKS else env_id
    if args["dataset_filter"]:
        name += f" ({args['dataset_filter']})"
    if args.get("sparse_rewards"):
        name += " (sparse rewards)"
    return name


def algorithm_name(stem: str) -> str:
    """`saq_iql`: SAQ-IQL, `iql`: IQL, `aquadem_iql`: Aquadem-IQL, `uniform_iql`: Uniform-IQL."""
    *quantizer, family = stem.rsplit("_", 1)
    if family.upper() not in FAMILIES:
        return stem
    return "-".join(["SAQ" if word == "saq" else word.capitalize() for word in quantizer] + [family.upper()])


def order(algorithm: str) -> tuple:
    """Sorts algorithms as the paper's columns: by family, in it without quantizer, Aquadem, others, SAQ."""
    quantizer, _, family = algorithm.rpartition("-")
    rank = list(FAMILIES).index(family) if family in FAMILIES else len(FAMILIES)
    return rank, {"": 0, "Aquadem": 1, "SAQ": 3}.get(quantizer, 2), algorithm


def read_run(folder: Path, root: Path) -> Run:
    """The run in `folder`, which is somewhere below `root`. Missing or damaged files raise errors of many kinds."""
    result = json.loads((folder / "result.json").read_text())
    description = json.loads((folder / "args.json").read_text())
    args, quality = dict(description["args"]), result.get("vqvae", {})
    for name in BY_DATA:
        if name in args and f"--{name.replace('_', '-')}" not in " ".join(description["command"]):
            args[name] = None
    # A run with --vqvae-path does not know the steps of the VQ-VAE. study.sh repeats the other flags.
    unused = {"vqvae_steps"} if args.get("vqvae_path") else set()
    words = [f"{key}={json.dumps(value)}" for key, value in args.items() if key not in IGNORED | unused]
    with np.load(folder / "eval.npz") as evaluations:
        step, score = evaluations["step"], evaluations["scores"]
    of_vqvae = ("reconstruction_error", "action_variance", "codes_used", "perplexity")
    return Run(
        dataset=dataset_name(args),
        algorithm=algorithm_name(result["algorithm"]),
        seed=int(result["seed"]),
        arguments=" ".join(sorted(word.replace(" ", "") for word in words)),
        asked=result["action_mode"],
        dataset_score=round(result["dataset_normalized_return"], DIGITS),
        total_steps=int(result["total_steps"]),
        training_seconds=round(result["training_seconds"], 1),
        wall_clock_seconds=round(result["wall_clock_seconds"], 1),
        **{key: round(float(quality[key]), DIGITS) if key in quality else None for key in of_vqvae},
        torch=description["versions"]["torch"],
        git_commit=description["git_commit"],
        env_id=result["env_id"],
        run=folder.relative_to(root.parent).as_posix(),
        scores=read_scores(folder, result),
        curve={int(at): round(float(score[step == at].mean()), DIGITS) for at in np.unique(step)},
    )


def read_scores(folder: Path, result: dict[str, Any]) -> dict[str, list[float]]:
    """The scores of a run's last episodes by action mode: the run's own, then those of examples/act.py."""
    scores = {result["action_mode"]: result["normalized_scores"]}
    if not scores[result["action_mode"]]:
        raise ValueError("its normalized_scores are empty")
    for mode in MODES:
        path = folder / f"eval_{mode}.npz"
        if mode not in scores and path.exists():
            with np.load(path) as evaluation:
                scores[mode] = evaluation["scores"].tolist()
    return {mode: [round(float(score), DIGITS) for score in values] for mode, values in scores.items()}


def read_results(folder: Path) -> list[Run]:
    """The runs in runs.csv and episodes.csv.gz of `folder`, written by this script."""
    runs = []
    with open(folder / "runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            values = {}
            for field in fields(Run)[:-2]:
                kind, text = {int: int, str: str}.get(field.type, float), row[field.name]
                values[field.name] = kind(text) if text or kind is str else None
            runs.append(Run(**values, scores={}, curve={}))
    with gzip.open(folder / "episodes.csv.gz", "rt", newline="") as file:
        for row in csv.DictReader(file):
            run, score = runs[int(row["run"])], float(row["score"])
            if row["way"] == "evaluation":
                run.curve[int(row["step"])] = score
            else:
                run.scores.setdefault(row["way"], []).append(score)
    return runs


def load(folders: Iterable[str]) -> list[Run]:
    """All runs below `folders`, in the order of the tables. Of runs with equal arguments and seed the latest counts."""
    runs, unfinished = [], 0
    for folder in map(Path, folders):
        own = [folder / "runs.csv"] if (folder / "runs.csv").is_file() else []
        run_folders = {path.parent for name in ("args.json", "result.json") for path in folder.rglob(name)}
        for path in own + sorted(run_folder / "result.json" for run_folder in run_folders):
            if not path.is_file():
                unfinished += 1
                continue
            try:
                found = read_results(folder) if path in own else [read_run(path.parent, folder)]
            except Exception as error:  # damaged files raise many kinds of errors
                fail(f"{path}: not the readable result of a run ({type(error).__name__}: {error})")
            runs += found
    if unfinished:
        print(f"{unfinished} unfinished runs")
    if not runs:
        fail(f"no finished run (result.json) and no runs.csv in {', '.join(folders)}")
    unique = {}
    for run in sorted(runs, key=lambda run: (run.run.rpartition("__")[2].zfill(20), run.run)):  # names end in the time
        unique[run.dataset, run.algorithm, run.arguments, run.seed] = run
    if len(runs) > len(unique):
        print(f"{len(runs) - len(unique)} runs left out: same arguments and seed as a later one")
    print(f"{len(unique)} runs")
    return sorted(unique.values(), key=lambda run: run.row)


@dataclass
class Setting:
    """An algorithm's runs with the same arguments on the datasets of a group, which is a block or all."""

    group: str
    algorithm: str
    words: str  # the arguments in which it differs from the algorithm's other settings
    runs: list[Run]
    compared: float = 0.0  # the average that chooses
    shown: bool = False


SELECTION = """
An algorithm's settings are the values of the arguments that differ between its runs on one dataset, apart from seed,
paths, device and evaluation. The tables show one setting on all datasets of {group}: of the settings with runs on the
most datasets that of the highest average score, over the datasets and seeds that all of these have, if they share any.
It is chosen by the scores that are shown, which favours algorithms with more settings.

"""


def average(runs: Iterable[Run]) -> float:
    """Mean over datasets of the mean over seeds."""
    return mean(mean(run.score for run in same) for same in by(runs, lambda run: run.dataset).values())


def choose(runs: list[Run], select: str) -> list[Setting]:
    """All settings of all algorithms, with the ones to show marked as SELECTION describes."""
    settings = []
    groups = by(runs, lambda run: (run.block if select == "block" else "all", run.algorithm))
    for (group, algorithm), same in groups.items():
        varying = set()
        for variants in by(same, lambda run: run.dataset).values():
            words = [set(run.arguments.split()) for run in variants]
            varying |= {word.partition("=")[0] for word in set.union(*words) - set.intersection(*words)}
        by_words = by(
            same,
            lambda run, varying=varying: " ".join(w for w in run.arguments.split() if w.partition("=")[0] in varying),
        )
        made = [Setting(group, algorithm, words, by_words[words]) for words in sorted(by_words)]
        datasets = [len({run.dataset for run in setting.runs}) for setting in made]
        widest = [setting for setting, count in zip(made, datasets) if count == max(datasets)]
        shared = set.intersection(*({(run.dataset, run.seed) for run in setting.runs} for setting in widest))
        for setting in made:
            setting.compared = average([r for r in setting.runs if (r.dataset, r.seed) in shared] or setting.runs)
        max(widest, key=lambda setting: setting.compared).shown = True
        settings += made
    return settings


Cells = dict[tuple[str, str], list[Run]]  # by dataset and algorithm: the runs of the setting to show, by seed


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95% t interval of the mean; None for one value."""
    if len(values) < 2:
        return None
    return float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))


def improvement(*scores: Sequence[float]) -> float:
    """Mean over datasets of P(X > Y) + P(X = Y) / 2, from X's and Y's scores of the first dataset, the second, ...

    It equals rliable's `probability_of_improvement`, which wants as many runs on every dataset.
    """
    signs = (np.sign(np.subtract.outer(x, y)) for x, y in zip(scores[::2], scores[1::2], strict=True))
    return mean(0.5 + 0.5 * sign.mean() for sign in signs)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean of scores (seeds, datasets), as the array (1,) that rliable wants."""
    return np.array([metrics.aggregate_iqm(scores)])


def statistic(cells: Cells, resamples: int, algorithm: str, over: str = "") -> dict[str, Any]:
    """A row of statistics.csv: the interquartile mean, or with `over` the probability of improvement over that one."""
    names = [algorithm, over] if over else [algorithm]
    everywhere = list(dict.fromkeys(dataset for dataset, _ in cells))
    datasets = [dataset for dataset in everywhere if all((dataset, name) in cells for name in names)]
    samples = [[run.score for run in cells[dataset, name]] for dataset in datasets for name in names]
    counts = [len(sample) for sample in samples]
    row = {
        "algorithm": algorithm,
        "over": over,
        "datasets": len(datasets),
        "all_datasets": len(datasets) == len(everywhere),
        "seeds": min(counts),
        "trimmed": not over and min(counts) < max(counts),
        **dict.fromkeys(("value", "low", "high")),
    }
    resampled = row["seeds"] > 1  # of one seed there is nothing to resample
    if over:
        row["value"] = improvement(*samples)
        if resampled:
            how = {"n_resamples": resamples, "vectorized": False, "method": "percentile", "random_state": 0}
            row["low"], row["high"] = scipy.stats.bootstrap(samples, improvement, **how).confidence_interval
        return row
    scores = np.array([sample[: row["seeds"]] for sample in samples]).T  # rliable wants (seeds, datasets) without gaps
    row["value"] = float(iqm(scores)[0])
    if resampled:
        np.random.seed(0)  # noqa: NPY002  (rliable 1.2.0 draws from this generator, whatever random_state it is given)
        _, intervals = library.get_interval_estimates({"": scores}, iqm, reps=resamples)
        row["low"], row["high"] = intervals[""][:, 0].tolist()
    return row


def statistics(cells: Cells, resamples: int) -> list[dict[str, Any]]:
    """Of every algorithm, then of SAQ over the others of its family where they have a dataset in common."""
    algorithms = sorted({algorithm for _, algorithm in cells}, key=order)
    datasets = {name: {dataset for dataset, algorithm in cells if algorithm == name} for name in algorithms}
    pairs = [
        (f"SAQ-{family}", other)
        for family in FAMILIES
        for other in algorithms
        if other.rpartition("-")[2] == family and datasets[other] & datasets.get(f"SAQ-{family}", set())
    ]
    names = [(name,) for name in algorithms] + [(saq, other) for saq, other in pairs if saq != other]
    return [statistic(cells, resamples, *name) for name in names]


def cell_facts(runs: list[Run]) -> dict[str, Any]:
    """A row of tables.csv but for the setting; `interval` is half the width of the mean's 95% t interval."""
    scores, first = [run.score for run in runs], runs[0]
    modes = [mode for mode in MODES if all(mode in run.scores for run in runs)]
    return {
        "block": first.block,
        "dataset": first.dataset,
        "algorithm": first.algorithm,
        "seeds": len(runs),
        "episodes": " or ".join(map(str, sorted({len(run.scores[run.asked]) for run in runs}))),
        "score": mean(scores),
        "interval": interval(scores),
        "paper": PAPER.get((first.dataset, first.algorithm)),
        **{mode: mean(mean(run.scores[mode]) for run in runs) if mode in modes else None for mode in MODES},
        "dataset_score": mean(run.dataset_score for run in runs),
        "training_seconds": mean(run.training_seconds for run in runs),
        "wall_clock_seconds": mean(run.wall_clock_seconds for run in runs),
    }


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, ["---"] * len(header), *rows]) + "\n"


def beside(score: float, paper: float | None, half: float | None = None) -> str:
    """`50.0 ± 4.0 [48.8]`, in brackets the paper's."""
    return f"{score:.1f}{'' if half is None else f' ± {half:.1f}'}{'' if paper is None else f' [{paper:.1f}]'}"


def block_tables(block: str, cells: Cells) -> tuple[str, str]:
    """Markdown of the block's scores; and of all action modes, seconds and seeds."""
    facts = {cell: cell_facts(runs) for cell, runs in cells.items() if runs[0].block == block}
    algorithms = sorted({algorithm for _, algorithm in facts}, key=order)
    rows = [row for row in BLOCKS if BLOCKS[row] == block] or list(dict.fromkeys(dataset for dataset, _ in facts))
    minari = {row for (row, _), runs in cells.items() if row in BLOCKS and "/" in runs[0].env_id}
    data = {row: cell["dataset_score"] for (row, _), cell in facts.items()}

    def line(row: str, text: Callable[[dict[str, Any]], str]) -> list[str]:
        return [text(facts[row, name]) if (row, name) in facts else "" for name in algorithms]

    lines = []
    for row in rows:
        ours = line(row, lambda cell: beside(cell["score"], cell["paper"], cell["interval"]))
        lines.append([f"{row}{'*' * (row in minari)}", f"{data[row]:.1f}" if row in data else "", *ours])
    averages = ["average", f"{mean(data.values()):.1f}" if len(data) == len(rows) else ""]
    for name in algorithms:
        column = [facts[row, name] for row in rows if (row, name) in facts]
        paper = [PAPER[row, name] for row in rows if (row, name) in PAPER]
        paper_mean = mean(paper) if len(paper) == len(rows) else None
        ours = beside(mean(cell["score"] for cell in column), paper_mean) if len(column) == len(rows) else ""
        averages.append(ours)
    scores = f"## {block}\n\n" + markdown(["dataset", "data", *algorithms], lines + [averages] * (len(rows) > 1))
    if minari:
        scores += "\\* Minari's version of dataset and environment; the paper's numbers are of D4RL's.\n\n"
    details = ""
    for title, text in (
        (
            "ways of acting",
            lambda cell: ", ".join(f"{mode} {cell[mode]:.1f}" for mode in MODES if cell[mode] is not None),
        ),
        ("seconds before the last evaluation, mean", lambda cell: f"{cell['training_seconds']:.0f}"),
        ("seeds x episodes", lambda cell: f"{cell['seeds']} x {cell['episodes']}"),
    ):
        details += f"### {block}: {title}\n\n" + markdown(["", *algorithms], [[row, *line(row, text)] for row in data])
    return scores, details


def settings_table(settings: list[Setting], select: str) -> str:
    """Markdown: how a setting is chosen, how many each algorithm has, and those of the algorithms that have several."""
    group_name = "a block" if select == "block" else "the report"
    text = "## Settings\n" + SELECTION.format(group=group_name)
    rows = []
    for group, members in by(settings, lambda setting: setting.group).items():
        algorithms = by(members, lambda setting: setting.algorithm)
        text += f"- {group}: {', '.join(f'{name} {len(algorithms[name])}' for name in sorted(algorithms, key=order))}\n"
        for setting in (setting for name in sorted(algorithms, key=order) for setting in algorithms[name]):
            if len(algorithms[setting.algorithm]) > 1:
                seeds = by(setting.runs, lambda run: run.dataset).values()
                counts = [str(len(seeds)), " or ".join(map(str, sorted(set(map(len, seeds)))))]
                averages = [f"{average(setting.runs):.1f}", f"{setting.compared:.1f}"]
                words = f"`{setting.words}`" if setting.words else ""
                rows.append([group, setting.algorithm, words, *counts, *averages, "yes" if setting.shown else ""])
    header = ["", "algorithm", "setting", "datasets", "seeds", "average", "on shared seeds", "shown"]
    return text + "\n" + (markdown(header, rows) if rows else "")


def statistics_tables(made: list[dict[str, Any]], resamples: int) -> str:
    """Markdown of the interquartile means and the probabilities of improvement."""
    text = f"""## All datasets

Intervals: stratified bootstrap over seeds, {resamples} resamples, percentiles; they say nothing of other datasets.
Seeds: of the dataset with the fewest. *Trimmed*: an interquartile mean takes as many of the first seeds of every
dataset. *Not all*: some datasets have no runs, so that interquartile means do not compare. The probability of
improvement is that of a run scoring more than one of the other algorithm on the same dataset (equal: one half), mean
over the datasets of both.

"""
    for title, digits, rows in (
        ("interquartile mean", 1, [row for row in made if not row["over"]]),
        ("probability of improvement", 2, [row for row in made if row["over"]]),
    ):
        lines = [
            [
                f"{row['algorithm']} over {row['over']}" if row["over"] else row["algorithm"],
                f"{row['value']:.{digits}f}",
                "" if row["low"] is None else f"{row['low']:.{digits}f} to {row['high']:.{digits}f}",
                f"{row['datasets']}{'' if row['all_datasets'] else ' (not all)'}",
                f"{row['seeds']}{' (trimmed)' if row['trimmed'] else ''}",
            ]
            for row in rows
        ]
        text += markdown(["", title, "95% interval", "datasets", "seeds"], lines) if rows else ""
    return text


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with a header, floats rounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(v, DIGITS) if isinstance(v, float) else v for key, v in row.items()})
    return text.getvalue()


def write_runs(out: Path, runs: list[Run], words: dict[int, str]) -> None:
    """Write runs.csv, with more columns than `read_results` needs, and episodes.csv.gz."""
    rows, episodes = [], []
    for number, run in enumerate(runs):
        row = {"block": run.block, "dataset": run.dataset, "algorithm": run.algorithm, "setting": words[id(run)]}
        row |= {"seed": run.seed, "score": run.score, "episodes": len(run.scores[run.asked])}
        row |= {mode: mean(run.scores[mode]) if mode in run.scores else None for mode in MODES}
        rows.append(row | {field.name: getattr(run, field.name) for field in fields(Run)[:-2]})
        points = [("evaluation", step, score) for step, score in run.curve.items()]
        points += [(mode, run.total_steps, score) for mode, scores in run.scores.items() for score in scores]
        episodes += [{"run": number, "way": mode, "step": step, "score": score} for mode, step, score in points]
    (out / "runs.csv").write_text(csv_text(rows))
    # without a time in the header equal runs give equal bytes
    (out / "episodes.csv.gz").write_bytes(gzip.compress(csv_text(episodes).encode(), mtime=0))


def color(algorithm: str) -> str:
    return FAMILIES.get(algorithm.rpartition("-")[2], "#555555")


def plot_curves(cells: Cells, path: Path) -> None:
    """A row of panels per dataset, a column per family: mean and 95% t interval over seeds of every evaluation.

    Datasets whose runs have at least three evaluations get a row; all, if none has.
    """
    curves = {}
    for (dataset, name), runs in cells.items():
        steps = sorted(set.intersection(*(set(run.curve) for run in runs)))
        curves[dataset, name] = steps, np.array([[run.curve[step] for step in steps] for run in runs])
    datasets = list(dict.fromkeys(dataset for (dataset, _), (steps, _) in curves.items() if len(steps) > 2))
    datasets = datasets or list(dict.fromkeys(dataset for dataset, _ in curves))
    families = by(sorted({name for _, name in curves}, key=order), lambda name: name.rpartition("-")[2])
    size = (0.5 + 2.3 * max(len(families), 2), 0.9 + 1.9 * len(datasets))
    figure, axes = plt.subplots(
        len(datasets), len(families), figsize=size, squeeze=False, sharex="row", sharey="row", layout="constrained"
    )
    scored, lines = {dataset: runs[0].dataset_score for (dataset, _), runs in cells.items()}, {}
    for axis, family in zip(axes[0], families, strict=True):
        axis.set_title(family, fontsize=12)
    for row, dataset in zip(axes, datasets, strict=True):
        row[0].set_ylabel(TITLES.get(dataset, dataset), fontsize=11)
        for axis, names in zip(row, families.values(), strict=True):
            for name in (name for name in names if (dataset, name) in curves):
                quantizer = name.rpartition("-")[0]
                steps, scores = curves[dataset, name]
                half = np.array([interval(values) or 0.0 for values in scores.T])
                middle, style = scores.mean(0), STYLES.get(quantizer, ("-.", "D", "#999999"))
                axis.fill_between(steps, middle - half, middle + half, color=style[2], alpha=0.25, linewidth=0)
                kind = dict(zip(("linestyle", "marker", "color"), style))
                fill = style[2] if quantizer == "SAQ" else "white"
                (line,) = axis.plot(steps, middle, **kind, markerfacecolor=fill, markersize=5, linewidth=1.8)
                lines[{"": "continuous actions"}.get(quantizer, quantizer)] = line
            lines["the data"] = axis.axhline(scored[dataset], color="#777777", linewidth=1)
            axis.xaxis.set_major_locator(plt.MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))
            axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
            axis.grid(color="#e4e4e4")
            axis.set_axisbelow(True)
    figure.supxlabel("gradient steps", fontsize=11)
    figure.supylabel("score", fontsize=11)
    figure.legend(lines.values(), lines, loc="outside upper center", ncols=len(lines), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_summary(made: list[dict[str, Any]], path: Path) -> None:
    """Interquartile means and probabilities of improvement with their intervals; filled: SAQ."""
    parts = [[row for row in made if not row["over"]], [row for row in made if row["over"]]]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.32 * max(map(len, parts)) + 1.1), layout="constrained")
    for axis, part in zip(axes, parts):
        for place, row in enumerate(part):
            hue = color(row["algorithm"])
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [place, place], color=hue, linewidth=5, alpha=0.35)
            fill = hue if row["algorithm"].startswith("SAQ-") else "white"
            axis.plot(row["value"], place, "o", color=hue, markerfacecolor=fill)
        names = [" over ".join(filter(None, (row["algorithm"], row["over"]))) for row in part]
        counts = ["" if row["all_datasets"] else f"\n(datasets: {row['datasets']})" for row in part]
        axis.set_yticks(range(len(part)), map(str.__add__, names, counts))
        axis.invert_yaxis()
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_xlabel("interquartile mean of the score")
    axes[1].set_xlabel("probability of improvement")
    axes[1].set_xlim(-0.02, 1.02)
    axes[1].axvline(0.5, color="#888888", linewidth=1)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: Args) -> None:
    runs, wanted = load(args.folders), args.datasets
    runs = [run for run in runs if not wanted or any(word in run.dataset for word in wanted)]
    if not runs:
        fail(f"--datasets {' '.join(wanted)}: no run is of such a dataset")
    settings = choose(runs, args.select)
    words = {id(run): setting.words for setting in settings for run in setting.runs}
    shown = sorted((run for setting in settings if setting.shown for run in setting.runs), key=lambda run: run.row)
    cells = by(shown, lambda run: (run.dataset, run.algorithm))
    made = statistics(cells, args.resamples)
    modes = by(shown, lambda run: run.asked)
    acting = [f"{mode}: {', '.join(sorted({r.algorithm for r in modes[mode]}, key=order))}" for mode in sorted(modes)]
    tables, details = ("".join(part) for part in zip(*(block_tables(b, cells) for b in by(shown, lambda r: r.block))))
    text = f"""# Results

Score of the last checkpoint, mean over seeds ± half the width of its 95% t interval over seeds (one seed: none) [the
paper's number]. *data*: the dataset's own mean score. Empty: no run. Acting {"; ".join(acting)}.

{tables}{statistics_tables(made, args.resamples)}{settings_table(settings, args.select)}## Details

{details}"""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    write_runs(out, runs, words)
    facts = [cell_facts(cell) | {"setting": words[id(cell[0])]} for cell in cells.values()]
    (out / "tables.csv").write_text(csv_text(facts))
    (out / "statistics.csv").write_text(csv_text(made))
    (out / "tables.md").write_text(text.rstrip() + "\n")
    plot_curves(cells, out / "learning_curves.png")
    plot_summary(made, out / "summary.png")
    print(f"wrote {out}")


if __name__ == "__main__":
    plt.switch_backend("Agg")
    main(tyro.cli(Args, description=__doc__))
