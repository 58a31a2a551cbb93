"""benchmark/results.py and report.py on result files with known statistics."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import ROOT

pytest.importorskip("rliable", reason="needs requirements-benchmark.txt")
sys.path.insert(0, str(ROOT / "benchmark"))
import report
import results
from rliable import metrics

COMMAND = ["saq_x.py", "--env-id", "hopper-medium-v2", "--run-dir", "runs/x"]


def make_run(folder, algorithm, seed, scores, dataset="hopper-medium-v2", flags="", curve=(), others=None, **result):
    """A run's folder with the files that `results.read` reads. `others` are scores in other action modes."""
    folder = folder / dataset / (algorithm + flags.replace(" ", "")) / str(seed)
    folder.mkdir(parents=True)
    description = {
        "args": {"env_id": dataset, "dataset_path": None, "dataset_filter": None},
        "command": [*COMMAND, f"--seed={seed}", *flags.split()],
        "versions": {"torch": "2"},
        "git_commit": "abcdef012345",
        "machine": "a machine",
    }
    (folder / "args.json").write_text(json.dumps(description))
    result = {
        "algorithm": algorithm,
        "seed": seed,
        "action_mode": "mean",
        "normalized_scores": list(scores),
        "dataset_normalized_return": 44.44,
        "total_steps": 20,
        "wall_clock_seconds": 30.0 + seed,
    } | result
    (folder / "result.json").write_text(json.dumps(result))
    points = [(10, value) for value in curve] + [(20, value) for value in scores]
    steps, values = map(np.array, zip(*points, strict=True))
    np.savez(folder / "eval.npz", step=steps, scores=values)
    for mode, values in (others or {}).items():
        np.savez(folder / f"eval_{mode}.npz", scores=np.array(values))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two datasets, four algorithms, three seeds."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for algorithm in ("saq_bc", "bc", "saq_iql", "aquadem_iql"):
        for dataset in ("hopper-medium-v2", "hopper-expert-v2"):
            for seed in (1, 2, 3):
                scores = np.round(rng.normal(50, 20, 5) + 10 * algorithm.startswith("saq"), 3)
                make_run(folder, algorithm, seed, scores, dataset, curve=scores[:2], others={"sampled": scores + 1})
    return folder


def line(text, start):
    """The cells of the first table line whose first cell is `start`."""
    return next(x for x in text.splitlines() if x.startswith(f"| {start} |"))[2:-2].split(" | ")


def test_frames_hold_every_run_and_episode_and_survive_being_written(many, tmp_path):
    runs, episodes = results.read([many])
    assert len(runs) == 24 and len(episodes) == 24 * (2 + 5 + 5)
    row = runs.iloc[0]
    assert (row["dataset"], row["algorithm"], row["seed"]) == ("hopper-expert-v2", "Aquadem-IQL", 1)  # paper's order
    own = episodes[(episodes["run"] == row["run"]) & (episodes["step"] == 20)].groupby("action_mode")["score"].mean()
    assert row["score"] == pytest.approx(own["mean"], abs=1e-3) == pytest.approx(own["sampled"] - 1, abs=1e-3)
    assert (row["commit"], row["machine"]) == ("abcdef0", "a machine")
    assert row["command"] == "python saq_x.py --env-id hopper-medium-v2 --run-dir runs/x --seed=1"

    results.write(tmp_path / "a", runs, episodes)
    again, episodes_again = results.read([tmp_path / "a", many, tmp_path / "a"])  # every run three times
    pd.testing.assert_frame_equal(runs, again, check_dtype=False)
    pd.testing.assert_frame_equal(episodes, episodes_again)
    results.write(tmp_path / "b", again, episodes_again)
    for name in ("runs.csv", "episodes.csv.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_last_of_equal_runs_counts(tmp_path):
    make_run(tmp_path / "old", "bc", 1, [1.0])
    make_run(tmp_path / "new", "bc", 1, [2.0, 2.0])
    runs, episodes = results.read([tmp_path / "old", tmp_path / "new"])
    assert list(runs["score"]) == [2.0] and list(episodes["score"]) == [2.0, 2.0]


def test_a_setting_is_made_of_the_flags_that_change_what_is_learned():
    command = "benchmark/quantizers.py iql --seed 1 --min-log-pi-b -8 --no-track --no-layer-norm --alpha=5 --device cpu"
    assert results.setting_of(command.split()) == "--alpha 5 --min-log-pi-b -8 --no-layer-norm"


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"env_id": "lift-ph", "dataset_filter": "20_percent"}, "lift-ph (20_percent)"),
        ({"dataset_path": "/d/can/mh/low_dim_v141.hdf5"}, "can-mh"),
        ({"dataset_path": "/d/cube-v0.npz", "env_id": "cube-singletask-v0"}, "cube-v0"),
        ({"dataset_path": "/d/cube-v0.npz", "env_id": "cube-singletask-task3-v0"}, "cube-v0 task3"),
        ({"env_id": "scene-singletask-v0", "sparse_rewards": True}, "scene-singletask-v0 (sparse rewards)"),
        ({"dataset_path": "/d/lift.hdf5"}, "lift"),
    ],
)
def test_dataset_names(args, name):
    assert results.dataset_name({"env_id": "x", "dataset_path": None, "dataset_filter": None, **args}) == name


def test_columns_are_in_the_papers_order():
    stems = ["saq_bc", "aquadem_bc", "bc", "saq_cql", "iql", "saq_brac", "brac", "mine"]
    names = results.in_order(map(results.algorithm_name, stems))
    assert names == ["BRAC", "SAQ-BRAC", "IQL", "SAQ-CQL", "BC", "Aquadem-BC", "SAQ-BC", "MINE"]


def test_the_papers_averages_follow_from_its_rows():
    rows = results.PAPER[results.PAPER["block"] == "locomotion"].groupby("algorithm")["score"].mean()
    assert rows["Aquadem-IQL"] == pytest.approx(68.25, abs=0.01) and rows["SAQ-IQL"] == pytest.approx(72.62, abs=0.01)
    assert len(results.PAPER) == 23 * 11 + 5 * 8


def frame(scores):
    """`runs` from {(dataset, algorithm): scores of seeds}."""
    rows = []
    for (dataset, algorithm), values in scores.items():
        for seed, score in enumerate(values):
            rows.append({"dataset": dataset, "algorithm": algorithm, "setting": "", "seed": seed, "score": score})
    return pd.DataFrame(rows)


def test_interquartile_mean_and_its_interval_equal_plain_resampling():
    scores = np.random.default_rng(0).normal(50, 20, (5, 3))
    row = results.interquartile_means(frame({(f"d{j}", "BC"): scores[:, j] for j in range(3)}), 4000).iloc[0]
    assert row["value"] == pytest.approx(scipy.stats.trim_mean(scores.ravel(), 0.25))
    picks = np.random.default_rng(1).integers(5, size=(4000, 5, 3))
    means = scipy.stats.trim_mean(scores[picks, np.arange(3)].reshape(4000, -1), 0.25, axis=1)
    assert (row["low"], row["high"]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1.5)


def test_an_interquartile_mean_takes_as_many_seeds_from_every_dataset():
    row = results.interquartile_means(frame({("a", "BC"): [1, 2, 30], ("b", "BC"): [10, 10]}), 50).iloc[0]
    assert row["seeds"] == 2 and row["value"] == pytest.approx(scipy.stats.trim_mean([1, 2, 10, 10], 0.25))


def test_probability_of_improvement_equals_rliables():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (4, 3)), rng.integers(0, 5, (6, 3))  # with ties
    by_dataset = [scores for pair in zip(x.T, y.T) for scores in pair]
    assert results.improvement(*by_dataset) == pytest.approx(metrics.probability_of_improvement(x, y))


def test_improvement_and_its_interval_count_every_run():
    better, worse = [1.0, 2.0, 3.0, 4.0, 9.0], [2.0, 5.0]  # wins 0 of 2, half, 1, 1, 2
    scores = {("a", "SAQ-BC"): better, ("a", "BC"): worse, ("b", "SAQ-BC"): [1.0, 1.0], ("b", "BC"): [0.0, 0.0, 0.0]}
    scores |= {("c", "SAQ-BC"): [1.0], ("c", "SAQ-IQL"): [5.0]}  # no counterparts
    (row,) = results.improvements(frame(scores), 2000).itertuples()
    assert (row.algorithm, row.over, row.datasets) == ("SAQ-BC", "BC", 2)
    assert row.value == pytest.approx((4.5 / 10 + 1) / 2)
    rng = np.random.default_rng(0)
    picked = [np.subtract.outer(rng.choice(better, 5), rng.choice(worse, 2)) for _ in range(2000)]
    expected = np.percentile([(np.sign(part).mean() / 2 + 1.5) / 2 for part in picked], [2.5, 97.5])
    assert (row.low, row.high) == pytest.approx(expected, abs=0.06)  # 0.025 is a step


def test_tables_show_means_intervals_and_the_papers_scores(many, tmp_path):
    runs, _ = results.read([many])
    report.tables((many,), tmp_path)
    text = (tmp_path / "tables.md").read_text()
    values = runs.query("dataset == 'hopper-medium-v2' and algorithm == 'SAQ-BC'")["score"]
    half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # the t distribution's 97.5% quantile for three seeds
    assert line(text, "dataset") == ["dataset", "data", "Aquadem-IQL", "SAQ-IQL", "BC", "SAQ-BC"]
    assert line(text, "hopper-medium-v2")[1] == "44.4"
    assert line(text, "hopper-medium-v2")[-1] == f"{values.mean():.1f} ± {half:.1f} [42.5]"
    assert line(text, "walker2d-medium-v2") == ["walker2d-medium-v2"] + [""] * 5
    assert line(text, "average") == ["average"] + [""] * 5  # of all datasets or none
    assert all((tmp_path / name).stat().st_size > 10_000 for name in ("learning_curves.png", "summary.png"))


def test_one_setting_for_all_datasets_of_a_block(tmp_path):
    for seed, dataset, (low, high) in (
        (1, "hopper-medium-v2", (10, 40)),
        (1, "hopper-expert-v2", (60, 50)),
        (2, "hopper-expert-v2", (60, 50)),
        (1, "door-human-v0", (9, 3)),  # in another block
    ):
        for alpha, score in ((1, low), (5, high)):
            make_run(tmp_path, "saq_cql", seed, [score], dataset, f"--alpha {alpha}")
    make_run(tmp_path, "saq_cql", 3, [0.0], "hopper-expert-v2", "--alpha 5")  # not a seed of alpha 1
    make_run(tmp_path, "saq_cql", 1, [99.0], "hopper-expert-v2", "--alpha 7")  # not on all datasets
    settings = results.choose(results.read([tmp_path])[0]).set_index(["group", "setting"])
    assert dict(settings["shown"]) == {
        ("adroit", "--alpha 1"): True,
        ("adroit", "--alpha 5"): False,
        ("locomotion", "--alpha 1"): False,
        ("locomotion", "--alpha 5"): True,
        ("locomotion", "--alpha 7"): False,
    }
    assert settings.loc[("locomotion", "--alpha 5"), "average"] == 45.0
    report.tables((tmp_path,), tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert line(text, "hopper-expert-v2")[-1].startswith("33.3 ± ")
    assert "| locomotion | SAQ-CQL | --alpha 7 | 1 |  |  |" in text


def test_study_subtracts_the_defaults_on_the_same_seeds(tmp_path):
    for seed, score in enumerate((10.0, 20.0, 60.0)):
        make_run(tmp_path / "small", "saq_iql", seed, [score])
        make_run(tmp_path / "study", "saq_iql", seed + 1, [score], flags="--gamma 0.99")
    make_run(tmp_path / "study", "saq_iql", 2, [50.0], flags="--a 1 --b 1 --c 1 --d 1 --e 1 --f 1")
    report.study((tmp_path / "small", tmp_path / "study"), tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([-10.0, -40.0])
    assert line(text, "`--gamma 0.99`")[1] == f"-25.0 ± {half:.1f}"
    assert line(text, "the paper's recipe")[1].startswith("-10.0")
    with pytest.raises(ValueError, match="no runs at the defaults"):
        report.study((tmp_path / "study",), tmp_path / "none")


def test_ablation_averages_scores_and_errors_over_seeds(tmp_path):
    def make(algorithm, seed, score, error, flags):
        quality = {"reconstruction_error": error, "action_variance": 2.0, "codes_used": 8, "perplexity": 6.5}
        make_run(tmp_path / "runs", algorithm, seed, [score], flags=flags, vqvae=quality)

    for seed, score in ((1, 40.0), (2, 50.0)):
        make("saq_bc", seed, score, 0.1 * seed, "--codebook-size 8")
    make("saq_bc", 1, 60.0, 0.04, "--codebook-size 16")
    make("saq_bc", 1, 35.0, 0.5, "--codebook-size 8 --no-state-conditioned")
    make("uniform_bc", 1, 30.0, 1.0, "--codebook-size 8")
    report.ablation((tmp_path / "runs",), tmp_path / "out")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert line(text, "codes") == ["codes", "8", "16"]
    assert line(text, "SAQ-BC, state-conditioned")[1:] == ["45.0", "60.0"]
    assert line(text, "SAQ-BC, action only")[1:] == ["35.0", ""]
    assert line(text, "SAQ-BC, uniform grid")[1:] == ["30.0", ""]
    assert line(text, "error, state-conditioned")[1:] == ["7.5%", "2.0%"]
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000


def test_the_pages_are_what_the_tool_writes(tmp_path):
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text()
        assert report.rewritten(text) == text, f"{page}: run python benchmark/report.py pages"
    report.figures(tmp_path)
    for figure in tmp_path.iterdir():
        assert figure.read_bytes() == (ROOT / "docs" / figure.name).read_bytes(), figure.name


@pytest.mark.parametrize("name", ["small", "study", "ablation"])
def test_every_kept_run_has_its_command_commit_machine_and_episodes(name):
    runs, episodes = report.kept(name)
    assert runs["command"].str.len().min() > 10 and runs["machine"].notna().all()
    assert runs["commit"].str.fullmatch("[0-9a-f]{7}").all()
    assert not runs["command"].str.contains("/work/|/tmp/|/home/").any()
    last = episodes.merge(runs[["run", "total_steps", "action_mode"]], on=["run", "action_mode"])
    scores = last[last["step"] == last["total_steps"]].groupby("run")["score"].mean()
    np.testing.assert_allclose(scores[runs["run"]], runs["score"], atol=1e-3)


def test_errors_are_one_line(tmp_path):
    def error(*folders):
        command = [sys.executable, ROOT / "benchmark" / "report.py", "tables", *folders, "--out", tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "no finished run" in error(tmp_path / "nowhere")
    run = make_run(tmp_path / "runs", "bc", 1, [1.0])
    (run / "result.json").write_text("{")
    assert str(run) in error(tmp_path / "runs")
    assert not (tmp_path / "out").exists()
