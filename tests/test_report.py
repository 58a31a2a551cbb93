"""benchmark/report.py on result files with known statistics."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from conftest import ROOT

pytest.importorskip("rliable", reason="needs requirements-benchmark.txt")
sys.path.insert(0, str(ROOT / "benchmark"))
import ablation
import report
import study

TEXT_FILES = ("tables.md", "tables.csv", "statistics.csv", "runs.csv", "episodes.csv.gz")
_times = itertools.count(10)


def make_run(folder, algorithm, seed, scores, env_id="hopper-medium-v2", curve=(), others=None, command=(), **args):
    """A run's folder with the files that the report reads. `others` are scores in other action modes."""
    args = {"env_id": env_id, "dataset_path": None, "dataset_filter": None, "seed": seed, "action_mode": "mean", **args}
    folder = folder / f"{env_id.replace('/', '_')}__{algorithm}__{seed}__{next(_times)}"
    folder.mkdir(parents=True)
    description = {"args": args, "versions": {"torch": "2"}, "git_commit": "abc", "command": list(command)}
    (folder / "args.json").write_text(json.dumps(description))
    result = {
        "env_id": env_id,
        "algorithm": algorithm,
        "seed": seed,
        "action_mode": args["action_mode"],
        "normalized_score": float(np.mean(scores)),
        "normalized_scores": list(scores),
        "dataset_normalized_return": 44.44,
        "total_steps": 20,
        "wall_clock_seconds": 30.0,
        "training_seconds": 20.0 + seed,
    }
    if algorithm.startswith("saq"):
        keys = ("reconstruction_error", "action_variance", "codes_used", "perplexity")
        result["vqvae"] = dict(zip(keys, (0.05, 1.2, 60, 50.5), strict=True))
    (folder / "result.json").write_text(json.dumps(result))
    points = [(10, value) for value in curve] + [(20, value) for value in scores]
    step, score = map(np.array, zip(*points, strict=True))
    np.savez(folder / "eval.npz", step=step, scores=score)
    for mode, values in (others or {}).items():
        np.savez(folder / f"eval_{mode}.npz", scores=np.array(values))
    return folder


def make_report(out, *folders, figures=False, **args):
    """What main writes: tables.csv and statistics.csv by their first columns, and the text of tables.md."""
    with pytest.MonkeyPatch.context() as patch:
        if not figures:  # they take most of the time
            patch.setattr(report, "plot_curves", lambda *_: None)
            patch.setattr(report, "plot_summary", lambda *_: None)
        report.main(report.Args(tuple(map(str, folders)), str(out), **{"resamples": 50, **args}))
    with open(out / "tables.csv") as file:
        cells = {(row["dataset"], row["algorithm"]): row for row in report.csv.DictReader(file)}
    with open(out / "statistics.csv") as file:
        statistics = {(row["algorithm"], row["over"]): row for row in report.csv.DictReader(file)}
    return cells, statistics, (out / "tables.md").read_text()


def line(text, start):
    """The cells of the first table line whose first cell is `start`."""
    return next(x for x in text.splitlines() if x.startswith(f"| {start} |"))[2:-2].split(" | ")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two hopper datasets, four algorithms, three seeds, and the scores (algorithm, dataset, seed) of their runs."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    scores = {}
    for algorithm, dataset, seed in itertools.product(
        ("saq_bc", "bc", "saq_iql", "aquadem_iql"), ("hopper-medium-v2", "hopper-expert-v2"), (1, 2, 3)
    ):
        episodes = np.round(rng.normal(50, 20, 5) + 10 * algorithm.startswith("saq"), 3)
        others = {"sampled": episodes + 1}
        make_run(folder / "x" / "y", algorithm, seed, episodes, dataset, curve=episodes[:2] / 2, others=others)
        scores[algorithm, dataset, seed] = episodes.mean()
    return folder, scores


def test_statistics(many, tmp_path, capsys):
    folder, scores = many
    cells, statistics, text = make_report(tmp_path / "a", folder)
    assert "24 runs\n" in capsys.readouterr().out

    values = [scores["saq_bc", "hopper-medium-v2", seed] for seed in (1, 2, 3)]
    mean, half = np.mean(values), 4.302653 * np.std(values, ddof=1) / 3**0.5  # the t distribution's 97.5% for n = 3
    row = cells["hopper-medium-v2", "SAQ-BC"]
    assert float(row["score"]) == pytest.approx(mean, abs=1e-3)
    assert float(row["interval"]) == pytest.approx(half, abs=1e-3)
    assert float(row["sampled"]) == pytest.approx(mean + 1, abs=1e-3)
    assert (row["seeds"], row["episodes"], row["training_seconds"]) == ("3", "5", "22.0")
    header = line(text, "dataset")
    assert header == ["dataset", "data", "Aquadem-IQL", "SAQ-IQL", "BC", "SAQ-BC"]
    assert line(text, "hopper-medium-v2")[1] == "44.4"
    assert line(text, "hopper-medium-v2")[-1] == f"{mean:.1f} ± {half:.1f} [42.5]"

    def of(algorithm):
        return np.array(
            [[scores[algorithm, f"hopper-{d}-v2", seed] for d in ("expert", "medium")] for seed in (1, 2, 3)]
        )

    iqm = statistics["SAQ-BC", ""]
    assert float(iqm["value"]) == pytest.approx(scipy.stats.trim_mean(of("saq_bc").ravel(), 0.25), abs=1e-3)
    assert of("saq_bc").min() < float(iqm["low"]) < float(iqm["value"]) < float(iqm["high"]) < of("saq_bc").max()
    assert {over for _, over in statistics} == {"", "BC", "Aquadem-IQL"}
    wins = np.mean([x > y for k in (0, 1) for x in of("saq_bc")[:, k] for y in of("bc")[:, k]])
    row = statistics["SAQ-BC", "BC"]
    assert float(row["value"]) == pytest.approx(wins, abs=1e-3)
    assert 0 <= float(row["low"]) <= wins <= float(row["high"]) <= 1 and row["datasets"] == "2"


def test_an_action_mode_that_one_run_lacks_has_no_average(tmp_path):
    make_run(tmp_path / "a", "cql", 1, [10.0], others={"sampled": [5.0]})
    make_run(tmp_path / "a", "cql", 2, [10.0], others={"sampled": [5.0], "softmax": [30.0]})
    cells, _, text = make_report(tmp_path / "b", tmp_path / "a")
    row = cells["hopper-medium-v2", "CQL"]
    assert (row["mean"], row["sampled"], row["softmax"]) == ("10.0", "5.0", "")
    assert "| hopper-medium-v2 | mean 10.0, sampled 5.0 |" in text


def test_gamma_and_n_step_by_the_data_are_no_settings(tmp_path):
    """A run stores the values that it used; the setting has them if the command gave them."""
    for seed, gamma in ((1, 0.9), (2, 0.95)):
        make_run(tmp_path / "a", "saq_iql", seed, [1.0], gamma=gamma, n_step=seed)
    make_run(tmp_path / "a", "saq_iql", 1, [5.0], gamma=0.99, n_step=1, command=["saq_iql.py", "--gamma", "0.99"])
    cells, _, text = make_report(tmp_path / "b", tmp_path / "a")
    assert cells["hopper-medium-v2", "SAQ-IQL"]["setting"] == "gamma=0.99"
    assert "`gamma=null` | 1 | 2 |" in text


def test_improvement_equals_rliables():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (4, 3)), rng.integers(0, 5, (6, 3))  # with ties
    by_dataset = [scores for pair in zip(x.T, y.T) for scores in pair]
    assert report.improvement(*by_dataset) == pytest.approx(report.metrics.probability_of_improvement(x, y))


def test_improvement_and_its_interval_count_every_run():
    better, worse = [1.0, 2.0, 3.0, 4.0, 9.0], [2.0, 5.0]  # wins 0 of 2, half, 1, 1, 2
    runs = {("a", "SAQ-BC"): better, ("a", "BC"): worse, ("b", "SAQ-BC"): [1.0, 1.0], ("b", "BC"): [0.0, 0.0, 0.0]}
    cells = {cell: [type("R", (), {"score": score}) for score in scores] for cell, scores in runs.items()}
    row = report.statistic(cells, 2000, "SAQ-BC", "BC")
    assert (row["value"], row["seeds"], row["trimmed"]) == (pytest.approx((4.5 / 10 + 1) / 2), 2, False)
    rng = np.random.default_rng(0)
    picked = [rng.choice(better, 5)[:, None] - rng.choice(worse, 2) for _ in range(2000)]
    expected = np.percentile([(np.sign(part).mean() / 2 + 1.5) / 2 for part in picked], [2.5, 97.5])
    assert (row["low"], row["high"]) == pytest.approx(expected, abs=0.06)  # 0.025 is a step


def test_bootstrap_interval_equals_plain_resampling():
    rng = np.random.default_rng(0)
    scores = rng.normal(50, 20, (5, 3))
    runs = {(f"d{j}", "BC"): [type("R", (), {"score": scores[i, j]}) for i in range(5)] for j in range(3)}
    row = report.statistic(runs, 4000, "BC")
    picks = rng.integers(5, size=(4000, 5, 3))
    means = scipy.stats.trim_mean(scores[picks, np.arange(3)].reshape(4000, -1), 0.25, axis=1)
    assert (row["low"], row["high"]) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1.5)


def test_datasets_can_be_chosen(many, tmp_path, capsys):
    cells, statistics, _ = make_report(tmp_path / "out", many[0], datasets=("expert", "door"))
    assert {dataset for dataset, _ in cells} == {"hopper-expert-v2"}
    assert {row["datasets"] for row in statistics.values()} == {"1"}
    with pytest.raises(SystemExit):
        make_report(tmp_path / "none", many[0], datasets=("door",))
    assert capsys.readouterr().err == "error: --datasets door: no run is of such a dataset\n"


def test_same_runs_same_bytes_and_round_trip(many, tmp_path):
    folder, _ = many
    make_report(tmp_path / "a", folder, figures=True)
    make_report(tmp_path / "b", folder)
    make_report(tmp_path / "c", tmp_path / "a", figures=True)
    make_report(tmp_path / "d", tmp_path / "a", folder)  # every run twice
    for outs, names in (("abcd", TEXT_FILES), ("ac", ("learning_curves.png", "summary.png"))):
        for name in names:
            assert len({(tmp_path / out / name).read_bytes() for out in outs}) == 1, name
    assert (tmp_path / "a" / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert str(folder) not in (tmp_path / "a" / "runs.csv").read_text()


def test_one_setting_for_a_block(tmp_path):
    for seed, dataset, (low, high) in (
        (1, "hopper-medium-v2", (10, 40)),
        (1, "hopper-expert-v2", (60, 50)),
        (2, "hopper-expert-v2", (60, 50)),
        (1, "door-human-v0", (9, 3)),  # of another block, with other steps
    ):
        for alpha, score in ((1.0, low), (5.0, high)):
            steps = 7 if dataset == "door-human-v0" else 9
            make_run(tmp_path, "saq_cql", seed, [score], dataset, alpha=alpha, rl_steps=steps, device=f"c{seed}")
    make_run(tmp_path, "saq_cql", 3, [0.0], "hopper-expert-v2", alpha=5.0, rl_steps=9)  # not a seed of alpha 1
    make_run(tmp_path, "saq_cql", 1, [99.0], "hopper-expert-v2", alpha=7.0, rl_steps=9)  # not on all datasets
    cells, _, text = make_report(tmp_path / "a", tmp_path)
    assert {cell: row["setting"] for cell, row in cells.items()} == {
        ("hopper-expert-v2", "SAQ-CQL"): "alpha=5.0",
        ("hopper-medium-v2", "SAQ-CQL"): "alpha=5.0",
        ("door-human-v0", "SAQ-CQL"): "alpha=1.0",
    }
    assert float(cells["hopper-expert-v2", "SAQ-CQL"]["score"]) == pytest.approx(100 / 3, abs=1e-3)
    assert "- locomotion: SAQ-CQL 3\n- adroit: SAQ-CQL 2\n" in text
    assert "| locomotion | SAQ-CQL | `alpha=1.0` | 2 | 1 or 2 | 35.0 | 35.0 |  |" in text
    assert "| locomotion | SAQ-CQL | `alpha=5.0` | 2 | 1 or 3 | 36.7 | 45.0 | yes |" in text
    assert "| locomotion | SAQ-CQL | `alpha=7.0` | 1 | 1 | 99.0 | 99.0 |  |" in text

    cells, _, text = make_report(tmp_path / "b", tmp_path / "a", select="all")
    assert {row["setting"] for row in cells.values()} == {"alpha=5.0"}
    assert "- all: SAQ-CQL 3\n" in text


def test_arguments_that_make_no_setting(tmp_path):
    for seed, path in ((1, "/a/vqvae.pt"), (2, "/b/vqvae.pt")):
        make_run(tmp_path, "saq_bc", seed, [1.0], vqvae_path=path, vqvae_steps=seed, eval_every=seed, run_dir=path)
    cells, _, _ = make_report(tmp_path / "a", tmp_path)
    assert (cells["hopper-medium-v2", "SAQ-BC"]["seeds"], cells["hopper-medium-v2", "SAQ-BC"]["setting"]) == ("2", "")


def test_empty_cells_and_averages(tmp_path):
    for task in ("door", "hammer", "pen", "relocate"):
        for seed in (1, 2):
            make_run(tmp_path, "saq_bc", seed, [10.0 * seed], f"{task}-human-v0")
        if task != "pen":
            make_run(tmp_path, "bc", 1, [3.0], f"{task}-human-v0", action_mode="sampled")
    _, statistics, text = make_report(tmp_path / "out", tmp_path)
    assert line(text, "door-human-v0")[2:] == ["3.0 [3.3]", "15.0 ± 63.5 [9.3]"]
    assert line(text, "pen-human-v0") == ["pen-human-v0", "44.4", "", "15.0 ± 63.5 [73.3]"]
    assert line(text, "average") == ["average", "44.4", "", "15.0 [21.0]"]  # the paper: (9.28 + 1.38 + 73.3 + 0.02) / 4
    assert "Acting mean: SAQ-BC; sampled: BC." in text
    row = statistics["BC", ""]
    assert (row["all_datasets"], row["datasets"], row["low"]) == ("False", "3", "")  # one seed: no interval
    assert statistics["SAQ-BC", "BC"]["value"] == "1.0"


def test_the_papers_averages_follow_from_its_rows():
    rows = [row for row, block in report.BLOCKS.items() if block == "locomotion"]
    assert np.mean([report.PAPER[row, "Aquadem-IQL"] for row in rows]) == pytest.approx(68.25, abs=0.01)
    assert np.mean([report.PAPER[row, "SAQ-IQL"] for row in rows]) == pytest.approx(72.62, abs=0.01)
    assert len(report.PAPER) == 23 * 11 + 5 * 8


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"env_id": "lift-ph"}, "lift"),
        ({"env_id": "tool_hang-ph"}, "tool-hang"),
        ({"env_id": "lift-mh"}, "lift-mh"),
        ({"env_id": "lift-ph", "dataset_filter": "20_percent"}, "lift (20_percent)"),
        ({"dataset_path": "/d/lift.hdf5"}, "lift.hdf5"),
        ({"dataset_path": "/d/lift/ph/low_dim_v141.hdf5"}, "lift"),
        ({"dataset_path": "/d/can/mh/low_dim_v141.hdf5"}, "can-mh"),
        ({"dataset_path": "/d/lift/mg/low_dim_sparse_v15.hdf5"}, "lift-mg"),
        ({"dataset_path": "/d/lift/mg/low_dim_dense_v15.hdf5"}, "lift-mg-dense"),
        ({"dataset_path": "low_dim_v141.hdf5"}, "low_dim_v141"),
        ({"dataset_path": "/d/cube-v0.npz", "env_id": "cube-singletask-v0"}, "cube-v0"),
        ({"dataset_path": "/d/cube-v0.npz", "env_id": "cube-singletask-task3-v0"}, "cube-v0-task3"),
        ({"dataset_path": "/d/door-human-v0.hdf5"}, "door-human-v0"),
        ({"dataset_path": "/d/lift_scripted_low_dim.hdf5", "dataset_filter": "valid"}, "lift_scripted_low_dim (valid)"),
        ({"env_id": "D4RL/kitchen/complete-v2"}, "kitchen-complete-v0"),
        ({"env_id": "D4RL/antmaze/medium-play-v1"}, "antmaze-medium-play-v2"),
        ({"env_id": "D4RL/antmaze/umaze-v1"}, "D4RL/antmaze/umaze-v1"),
        ({"env_id": "door-human-v1"}, "door-human-v1"),
    ],
)
def test_dataset_names(args, name):
    assert report.dataset_name({"env_id": "x", "dataset_path": None, "dataset_filter": None, **args}) == name


def test_only_the_papers_datasets_have_its_numbers(tmp_path):
    path = "hopper-medium-expert-sb3-v0.hdf5"
    make_run(tmp_path, "saq_bc", 1, [50.0], "hopper-medium-expert-v2", dataset_path=path)
    make_run(tmp_path, "saq_bc", 1, [50.0], "fetch-pick-and-place-demo-v0")
    make_run(tmp_path, "saq_bc", 1, [51.0], "fetch-pick-and-place-demo-v0", dataset_path="lift.hdf5")
    make_run(tmp_path, "saq_bc", 1, [52.0], "D4RL/kitchen/mixed-v2")
    cells, _, text = make_report(tmp_path / "out", tmp_path)
    assert {name for (name, _), row in cells.items() if row["paper"]} == {"kitchen-mixed-v0"}
    assert line(text, "hopper-medium-expert-sb3-v0") == ["hopper-medium-expert-sb3-v0", "44.4", "50.0"]
    assert line(text, "kitchen-mixed-v0*")[-1] == "52.0 [34.0]" and "Minari's version" in text


def test_columns_are_in_the_papers_order():
    stems = ["saq_bc", "aquadem_bc", "bc", "action-only_bc", "mine", "saq_cql", "iql", "saq_brac", "brac"]
    names = sorted(map(report.algorithm_name, stems), key=report.order)
    expected = ["BRAC", "SAQ-BRAC", "IQL", "SAQ-CQL", "BC", "Aquadem-BC", "Action-only-BC", "SAQ-BC", "mine"]
    assert names == expected


def test_unequal_seeds_repeated_and_unfinished_runs(tmp_path, capsys):
    for seed in (1, 2, 3):
        make_run(tmp_path, "bc", seed, [seed])
    make_run(tmp_path, "bc", 3, [30.0])  # again, later
    for seed in (1, 2):
        make_run(tmp_path, "bc", seed, [10.0], "hopper-expert-v2")
    (make_run(tmp_path, "bc", 4, [1.0]) / "result.json").unlink()
    cells, statistics, text = make_report(tmp_path / "out", tmp_path)
    printed = capsys.readouterr().out
    assert "1 unfinished runs" in printed and "1 runs left out" in printed and "5 runs" in printed
    assert float(cells["hopper-medium-v2", "BC"]["score"]) == 11.0
    row = statistics["BC", ""]
    assert (row["seeds"], row["trimmed"]) == ("2", "True")
    assert float(row["value"]) == pytest.approx(scipy.stats.trim_mean([1, 2, 10, 10], 0.25))
    assert "2 (trimmed)" in text and "| hopper-medium-v2 | 3 x 1 |" in text


def test_study_sets_each_change_beside_the_defaults(tmp_path):
    runs, base = tmp_path / "runs", {"bc_steps": 7, "dead_code_reset_every": 500, "vqvae_path": "one.pt"}
    rate, recipe = {"learning_rate": 3e-4}, {"learning_rate": 3e-4, "standardize": False, "ema_decay": 0.0}
    for seed, score in enumerate((10.0, 20.0, 60.0, 30.0)):
        make_run(runs, "saq_iql", seed, [score], others={"sampled": [score / 2]}, gamma=0.97, **base)
        make_run(runs, "saq_iql", seed, [score + 1], **base | rate)
        make_run(runs, "saq_iql", seed, [score + 2], **base | {"dead_code_reset_every": 0, "vqvae_path": "other.pt"})
        make_run(runs, "iql", seed, [99.0], **base)
    make_run(runs, "saq_iql", 0, [3.0], **base | recipe | {"action_mode": "sampled"})
    make_run(runs, "saq_bc", 0, [6.0], action_mode="greedy", others={"mean": [5.0]}, **base)
    make_run(runs, "saq_bc", 0, [7.0], action_mode="greedy", **base | {"layer_norm": False})
    for source, out in ((runs, tmp_path / "a"), (tmp_path / "a", tmp_path / "b")):
        study.main(study.Args((str(source),), str(out), resamples=50))
    assert (tmp_path / "b" / "study.png").stat().st_size > 10_000
    text = (tmp_path / "b" / "study.md").read_text()
    assert text == (tmp_path / "a" / "study.md").read_text()
    tables = {part.partition("\n")[0]: part.rstrip().splitlines()[-1] for part in text.split("## ")[1:]}
    cells = {title: [cell.partition(" ")[0] for cell in tables[title].split(" | ")[1:-1]] for title in tables}
    assert cells == {
        "`learning_rate=0.0003`": ["25.0", "26.0"],
        "`dead_code_reset_every=0`": ["25.0", "27.0"],
        "`layer_norm=false`": ["6.0", "7.0"],
        "the paper's recipe": ["10.0", "3.0"],  # over the one seed that has it
        "`action_mode=sampled`": ["25.0", "12.5"],
        "`action_mode=mean`": ["6.0", "5.0"],
    }


def test_study_needs_runs_at_the_defaults(tmp_path):
    make_run(tmp_path / "runs", "saq_bc", 9, [5.0], layer_norm=False)
    with pytest.raises(SystemExit) as stopped:
        study.main(study.Args((str(tmp_path / "runs"),), str(tmp_path / "out"), resamples=50))
    assert stopped.value.code == 2 and not (tmp_path / "out").exists()


def test_ablation_averages_over_seeds(tmp_path, capsys):
    def draw(source, out):
        ablation.main(ablation.Args(source, tmp_path / out))

    def make(name, seed, score, error, state_conditioned=True):
        own, greedy = [score - 1, score + 1], {"greedy": [0.0, 50.0]}
        sizes = {"codebook_size": 8, "state_conditioned": state_conditioned}
        folder = make_run(tmp_path / "runs", name, seed, own, others=greedy, **sizes)
        result = json.loads((folder / "result.json").read_text())
        result["vqvae"] = {"reconstruction_error": error, "action_variance": 2.0, "codes_used": 8, "perplexity": 6.5}
        (folder / "result.json").write_text(json.dumps(result))

    for seed, score in ((1, 40.0), (2, 50.0)):
        make("saq_bc", seed, score, 0.1 * seed)
    make("saq_bc", 1, 35.0, 0.5, state_conditioned=False)
    make("uniform_bc", 1, 30.0, 1.0)
    draw(tmp_path / "runs", "a")
    draw(tmp_path / "a", "b")
    text = (tmp_path / "a" / "ablation.md").read_text()
    assert text == (tmp_path / "b" / "ablation.md").read_text()
    saq, action_only, uniform = (row[2:-2].split(" | ")[1:] for row in text.splitlines()[2:])
    scores = ["45.0 (7.1)", "25.0 (0.0)", ""]  # no run has sampled codes
    assert saq == ["SAQ-BC", "state-conditioned", "8", "2", *scores, "0.0750 (0.0354)", "8 (0)", "6.5 (0.0)"]
    assert action_only == ["SAQ-BC", "action only", "8", "1", "35.0", "25.0", "", "0.2500", "8", "6.5"]
    assert uniform == ["SAQ-BC", "uniform grid", "8", "1", "30.0", "25.0", "", "0.5000", "8", "6.5"]
    assert (tmp_path / "a" / "ablation.png").stat().st_size > 10_000

    (tmp_path / "b" / "ablation.csv").write_text("dataset,score\nx,1\n")
    make("saq_bc", 1, 0.0, 1.0)
    for folder, message in ((tmp_path / "b", "another version"), (tmp_path / "runs", "two runs")):
        with pytest.raises(SystemExit):
            draw(folder, "c")
        assert message in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_errors_are_one_line(tmp_path, capsys):
    def error(folder):
        with pytest.raises(SystemExit) as stop:
            make_report(tmp_path / "out", folder)
        assert stop.value.code == 2
        (message,) = capsys.readouterr().err.splitlines()
        return message

    assert "no finished run" in error(tmp_path / "nowhere")
    run = make_run(tmp_path / "runs", "bc", 1, [1.0])
    whole = (run / "result.json").read_text()
    for broken in (whole[:50], "[]", whole.replace('"action_mode"', '"mode"'), whole.replace("[1.0]", "[]")):
        (run / "result.json").write_text(broken)
        assert str(run / "result.json") in error(tmp_path / "runs")
    (run / "result.json").write_text(whole)
    (run / "eval.npz").unlink()
    assert "eval.npz" in error(tmp_path / "runs")
    assert not (tmp_path / "out").exists()


def test_command_line_and_a_missing_package(tmp_path):
    make_run(tmp_path / "runs", "bc", 1, [1.0])
    script = [ROOT / "benchmark" / "report.py", tmp_path / "runs", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, *script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1 runs") and not done.stderr
    (tmp_path / "rliable.py").write_text("raise ImportError('No module named rliable')")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path({str(script[0])!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install -r requirements-benchmark.txt" in done.stderr and len(done.stderr.splitlines()) == 1
