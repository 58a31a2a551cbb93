"""Finished runs as pandas frames, and their statistics.

    runs, episodes = read(["runs/adroit"])

`runs` has a row for every finished run. `episodes` has a row for every episode that the runs were evaluated with: the
run, the action mode, the gradient step and the score. `write` keeps both as runs.csv and episodes.csv.gz, and `read`
takes a folder with these files like a folder of runs.
"""

import gzip
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from rliable import library, metrics

FAMILIES = ("BRAC", "IQL", "CQL", "BC")  # the order of the paper's columns
PAPER = pd.read_csv(Path(__file__).parent / "paper.csv")  # tables 1 and 2 under our ids, without their averages
BLOCKS = PAPER.drop_duplicates("dataset").set_index("dataset")["block"]
TITLES = {  # of datasets, and the number of their transitions
    "cube-single-play-v0": ("OGBench cube-single", "1M"),
    "scene-play-v0": ("OGBench scene", "1M"),
    "halfcheetah-medium-expert-sb3-v0": ("halfcheetah mix", "100k"),
    "square_v15_scripted": ("Square", "21k"),
    "lift_v15_scripted (valid)": ("Lift, 20 demonstrations", "1k"),
    "hopper-medium-expert-sb3-v0": ("hopper mix", "100k"),
    "fetch-pick-and-place-demo-v0": ("demo", "22k"),
    "door-human-v0": ("door", "7k"),
}
# Flags of data, machine and evaluation. All others make up a run's setting.
NO_SETTING = ("env-id", "dataset-path", "dataset-filter", "seed", "run-dir", "vqvae-path", "device", "compile", "track")
NO_SETTING += ("checkpoint-every", "eval-every", "eval-episodes", "final-eval-episodes", "capture-video")
QUALITY = ("reconstruction_error", "action_variance", "codes_used", "perplexity")  # of a VQ-VAE


def dataset_name(args: dict) -> str:
    """A dataset's id, or the name of its file where the run was given one."""
    name = args["env_id"]
    if args["dataset_path"]:
        path = Path(args["dataset_path"])
        # robomimic's file names, such as lift/ph/low_dim_v15.hdf5, are all alike
        name = "-".join(path.parts[-3:-1]) if path.stem.startswith("low_dim") else path.stem
        if "-singletask-task" in str(args["env_id"]):  # OGBench's tasks share a file
            name += " " + args["env_id"].split("-")[-2]
    if args["dataset_filter"]:
        name += f" ({args['dataset_filter']})"
    if args.get("sparse_rewards"):
        name += " (sparse rewards)"
    return name


def title_of(dataset: str) -> str:
    """A dataset's title, or its name where it has none."""
    return TITLES.get(dataset, (dataset,))[0]


def algorithm_name(stem: str) -> str:
    """saq_iql: SAQ-IQL, iql: IQL, aquadem_iql: Aquadem-IQL."""
    quantizer, _, family = stem.rpartition("_")
    if not quantizer:
        return family.upper()
    return f"{'SAQ' if quantizer == 'saq' else quantizer.capitalize()}-{family.upper()}"


def in_order(algorithms: Iterable[str]) -> list[str]:
    """The algorithms, each once, in the order of the paper's columns."""

    def place(algorithm: str) -> tuple:
        quantizer, _, family = algorithm.rpartition("-")
        rank = FAMILIES.index(family) if family in FAMILIES else len(FAMILIES)
        return rank, quantizer == "SAQ", quantizer, algorithm

    return sorted(set(algorithms), key=place)


def setting_of(command: list[str]) -> str:
    """The flags of a command that change what is learned, in alphabetical order, e.g. `--alpha 5 --no-layer-norm`."""
    flags = []
    for word in command[1:]:
        if word.startswith("--"):
            flags.append(word.replace("=", " ", 1))
        elif flags:
            flags[-1] += f" {word}"
    kept = [flag for flag in flags if flag.split()[0].removeprefix("--").removeprefix("no-") not in NO_SETTING]
    return " ".join(sorted(kept))


def read_run(folder: Path) -> tuple[dict, pd.DataFrame]:
    """A row of `runs`, and the rows of `episodes`. Missing or damaged files raise errors of many kinds."""
    result = json.loads((folder / "result.json").read_text())
    description = json.loads((folder / "args.json").read_text())
    mode, last_step = result["action_mode"], result["total_steps"]
    if not result["normalized_scores"]:
        raise ValueError("it has no scores")
    with np.load(folder / "eval.npz") as evaluation:
        steps, scores = evaluation["step"], evaluation["scores"]
    episodes = [pd.DataFrame({"action_mode": mode, "step": steps, "score": scores})]
    for path in sorted(folder.glob("eval_*.npz")):  # examples/act.py in another action mode
        other_mode = path.stem.removeprefix("eval_")
        if other_mode != mode:
            with np.load(path) as evaluation:
                scores = evaluation["scores"]
            episodes.append(pd.DataFrame({"action_mode": other_mode, "step": last_step, "score": scores}))
    row = {
        "dataset": dataset_name(description["args"]),
        "algorithm": algorithm_name(result["algorithm"]),
        "setting": setting_of(description["command"]),
        "seed": result["seed"],
        "score": np.mean(result["normalized_scores"]),
        "action_mode": mode,
        "episodes": len(result["normalized_scores"]),
        "dataset_score": result["dataset_normalized_return"],
        "total_steps": last_step,
        "seconds": round(result["wall_clock_seconds"]),
        **{name: result.get("vqvae", {}).get(name, np.nan) for name in QUALITY},
        "commit": description["git_commit"][:7],
        "torch": description["versions"]["torch"],
        "machine": description["machine"],
        "command": "python " + shlex.join(description["command"]),
        "run": folder.as_posix(),
    }
    return row, pd.concat(episodes, ignore_index=True).assign(run=folder.as_posix())


def read(folders: Iterable[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The finished runs below `folders` and their episodes.

    A folder without runs is read from the runs.csv and episodes.csv.gz that it may have. Of runs with the same dataset,
    algorithm, setting and seed the last one counts, in the order of folders and paths. Raises ValueError if there is no
    finished run, or if the files of one are damaged.
    """
    rows, parts = [], []
    for source, folder in enumerate(map(Path, folders)):
        paths = sorted(folder.rglob("result.json"))
        if not paths and (folder / "runs.csv").exists():
            rows.append(pd.read_csv(folder / "runs.csv", dtype={"commit": str, "torch": str}).assign(source=source))
            parts.append(pd.read_csv(folder / "episodes.csv.gz").assign(source=source))
            continue
        found = []
        for path in paths:
            try:
                row, episodes = read_run(path.parent)
            except Exception as error:
                raise ValueError(f"{path.parent} is not the folder of a finished run ({error!r})") from error
            found.append(row)
            parts.append(episodes.assign(source=source))
        if found:
            rows.append(pd.DataFrame(found).assign(source=source))
    if not rows:
        raise ValueError(f"no finished run (result.json) and no runs.csv in {', '.join(map(str, folders))}")

    runs = pd.concat(rows, ignore_index=True).round(4).fillna({"setting": ""})
    runs = runs.drop_duplicates(["dataset", "algorithm", "setting", "seed"], keep="last")
    datasets = list(dict.fromkeys([*BLOCKS.index, *sorted(runs["dataset"])]))
    algorithms = in_order(runs["algorithm"])
    places = runs.assign(dataset=runs["dataset"].map(datasets.index), algorithm=runs["algorithm"].map(algorithms.index))
    runs = runs.loc[places.sort_values(["dataset", "algorithm", "setting", "seed"]).index].reset_index(drop=True)
    episodes = runs[["source", "run"]].merge(pd.concat(parts).round(4), on=["source", "run"])
    return runs.drop(columns="source"), episodes.drop(columns="source")


def write(folder: Path, runs: pd.DataFrame, episodes: pd.DataFrame) -> None:
    """Write runs.csv and episodes.csv.gz. The same frames give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.to_csv(folder / "runs.csv", index=False)
    text = episodes.to_csv(index=False).encode()
    (folder / "episodes.csv.gz").write_bytes(gzip.compress(text, mtime=0))


def with_group(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with a column `group`: datasets of a group are shown at one setting."""
    return runs.assign(group=runs["dataset"].map(BLOCKS).fillna(runs["dataset"]))


def choose(runs: pd.DataFrame) -> pd.DataFrame:
    """Every algorithm's settings in every block of the paper's tables, and on every other dataset.

    Columns: group (a block or dataset), algorithm, setting, datasets, average, and shown, which marks one setting of a
    group: among those with runs on the most datasets the one with the highest average over the datasets and seeds that
    all of these have, if there are any. Selection by the scores that are shown favours algorithms with more settings.
    """
    rows = []
    for (name, algorithm), group in with_group(runs).groupby(["group", "algorithm"], sort=False):
        counts = group.groupby("setting")["dataset"].nunique()
        widest = group[group["setting"].map(counts) == counts.max()]
        # the settings that a dataset and seed have runs of
        settings_of_cell = widest.groupby(["dataset", "seed"])["setting"].transform("nunique")
        shared = widest[settings_of_cell == widest["setting"].nunique()]
        if shared.empty:
            shared = widest
        averages = shared.groupby(["setting", "dataset"])["score"].mean().groupby("setting").mean()
        for setting, count in counts.items():
            row = {"group": name, "algorithm": algorithm, "setting": setting, "datasets": count}
            rows.append(row | {"average": averages.get(setting), "shown": setting == averages.idxmax()})
    return pd.DataFrame(rows)


def shown_runs(runs: pd.DataFrame, settings: pd.DataFrame) -> pd.DataFrame:
    """The runs of the settings that `choose` marks, with their block."""
    runs = with_group(runs).merge(settings.loc[settings["shown"], ["group", "algorithm", "setting"]])
    return runs.assign(block=runs["dataset"].map(BLOCKS).fillna("other"))


def half_interval(scores: Iterable[float]) -> float:
    """Half the width of the 95% t interval of a mean; NaN for one value."""
    scores = list(scores)
    if len(scores) < 2:
        return float("nan")
    return float(scipy.stats.t.ppf(0.975, len(scores) - 1) * scipy.stats.sem(scores))


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean of scores (seeds, datasets), as the array (1,) that rliable wants."""
    return np.array([metrics.aggregate_iqm(scores)])


def interquartile_means(runs: pd.DataFrame, resamples: int = 5000) -> pd.DataFrame:
    """Interquartile mean of every algorithm over all its runs, with a 95% stratified bootstrap interval over seeds.

    Agarwal et al., *Deep Reinforcement Learning at the Edge of the Statistical Precipice*, NeurIPS 2021. rliable wants
    as many runs on every dataset: those of the first seeds count, as many as the dataset with the fewest has.

    Columns: algorithm, value, low, high, datasets, seeds.
    """
    rows = []
    for algorithm in in_order(runs["algorithm"]):
        scores = [list(group) for _, group in runs[runs["algorithm"] == algorithm].groupby("dataset")["score"]]
        seeds = min(map(len, scores))
        matrix = np.array([values[:seeds] for values in scores]).T
        low = high = None
        if seeds > 1:
            np.random.seed(0)  # noqa: NPY002  (rliable 1.2.0 draws from this generator, whatever random_state it is given)
            _, intervals = library.get_interval_estimates({"": matrix}, iqm, reps=resamples)
            low, high = intervals[""][:, 0]
        row = {"algorithm": algorithm, "value": iqm(matrix)[0], "low": low, "high": high}
        rows.append(row | {"datasets": len(scores), "seeds": seeds})
    return pd.DataFrame(rows)


def improvement(*scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean over datasets of P(X > Y) + P(X = Y) / 2, from the scores of X and Y on a dataset, on the next one, ...

    With as many runs on every dataset this is rliable's `probability_of_improvement`. `axis` (the last one) holds the
    runs; axes before it are resamples.
    """
    signs = []
    for x, y in zip(scores[::2], scores[1::2], strict=True):
        signs.append(np.sign(np.asarray(x)[..., :, None] - np.asarray(y)[..., None, :]).mean((-2, -1)))
    return 0.5 + 0.5 * np.mean(signs, axis=0)


def improvements(runs: pd.DataFrame, resamples: int = 5000) -> pd.DataFrame:
    """Probability that a run of SAQ scores more than a run of another algorithm of its family on the same dataset.

    The mean over the datasets that both have, with a 95% bootstrap interval over seeds. Columns: algorithm, over,
    value, low, high, datasets.
    """
    rows = []
    for algorithm in in_order(runs["algorithm"]):
        quantizer, _, family = algorithm.rpartition("-")
        if quantizer == "SAQ" or f"SAQ-{family}" not in set(runs["algorithm"]):
            continue
        samples = []
        for _, group in runs.groupby("dataset"):
            pair = [list(group.loc[group["algorithm"] == name, "score"]) for name in (f"SAQ-{family}", algorithm)]
            samples += pair if all(pair) else []
        if not samples:
            continue
        low = high = None
        if min(map(len, samples)) > 1:
            bootstrap = scipy.stats.bootstrap(
                samples, improvement, n_resamples=resamples, method="percentile", rng=np.random.default_rng(0)
            )
            low, high = bootstrap.confidence_interval
        row = {"algorithm": f"SAQ-{family}", "over": algorithm, "value": improvement(*samples)}
        rows.append(row | {"low": low, "high": high, "datasets": len(samples) // 2})
    return pd.DataFrame(rows, columns=["algorithm", "over", "value", "low", "high", "datasets"])
