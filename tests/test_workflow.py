"""The benchmark scripts: the commands they list, and runs of a few steps that are killed and continued."""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
import tyro
import yaml
from conftest import ROOT

import tasks

pytest.importorskip("snakemake", reason="needs requirements-benchmark.txt")
sys.path.insert(0, str(ROOT / "benchmark"))
import results

ENV = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
PAPER = ("locomotion", "antmaze", "adroit", "kitchen", "robomimic")
SIZES = {"locomotion": 720, "antmaze": 408, "adroit": 888, "kitchen": 306, "robomimic": 270}
SIZES |= {"small": 24, "study": 138, "ablation": 108}  # the last three: of the demo
TINY = "--hidden-dim 16 --batch-size 32 --final-eval-episodes 1 --device cpu"


def snakemake(script, *words, code=0, **config) -> str:
    """What a script prints."""
    config = [f"{key}={value}" for key, value in config.items()]
    command = [ROOT / "benchmark" / f"{script}.sh", *words, "--config", *config]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def listed(script, runs, **config) -> list[list[str]]:
    """The words of the commands that a script would run."""
    printed = snakemake(script, "-n", runs=runs, **config)
    commands = [shlex.split(line) for line in re.findall(r"^Shell command: (.*?) >> ", printed, re.MULTILINE)]
    assert all(words[0] == "python" for words in commands)
    return commands


def args_of(words: list[str]):
    """The arguments of a command, as its script reads them."""
    script, *flags = words[1:]
    if script in ("benchmark/baselines/aquadem.py", "benchmark/quantizers.py"):
        script, *flags = f"saq_{flags[0]}.py", *flags[1:]
    sys.path.insert(0, str(ROOT / "benchmark" / "baselines"))
    return tyro.cli(import_module(Path(script).stem).Args, args=flags)


@pytest.mark.parametrize("script", SIZES)
def test_a_script_lists_as_many_runs_as_it_says_and_every_form_of_command_parses(tmp_path, script):
    config = {} if script in PAPER else {"datasets": "demo", "seeds": "1 2 3"}
    commands = listed(script, tmp_path, **config)
    folders = [words[words.index("--run-dir") + 1] for words in commands]
    assert len(commands) == len(set(folders)) == SIZES[script]
    assert f" {SIZES[script]} runs" in (ROOT / "benchmark" / f"{script}.sh").read_text()

    forms = {}
    for words in commands:
        if script in PAPER:
            assert words[words.index("--env-id") + 1] in [*tasks.ids(), *minari_ids()]
        forms.setdefault(re.sub(rf"--(env-id|seed) \S+|{tmp_path}\S+", "", shlex.join(words)), words)
    for words in list(forms.values())[:: 1 + len(forms) // 20]:  # a parse takes a while
        args = args_of(words)
        if script in PAPER:
            assert vars(args).get("rl_steps", vars(args).get("bc_steps")) == 1_000_000
            assert (args.hidden_dim, args.learning_rate, args.ema_decay) == (512, 3e-4, 0)


def minari_ids():
    mazes = ("medium-diverse", "medium-play", "large-diverse", "large-play")
    kitchens = ("mixed", "complete", "partial")
    return [f"D4RL/antmaze/{name}-v1" for name in mazes] + [f"D4RL/kitchen/{name}-v2" for name in kitchens]


def test_the_papers_tables_have_rows_for_all_its_datasets():
    spec = yaml.safe_load((ROOT / "benchmark" / "settings" / "paper.yaml").read_text())
    rows = pd.read_csv(ROOT / "benchmark" / "paper.csv").groupby("block")["dataset"].unique()
    assert {block: set(rows[block]) for block in PAPER} == {block: set(spec[block]["datasets"]) for block in PAPER}


def test_runs_share_the_vqvae_that_has_their_flags(tmp_path):
    for words in listed("study", tmp_path, datasets="demo", seeds=7):
        flags = " ".join(words)
        if "--vqvae-path" not in flags:
            continue
        source = re.search(rf"--vqvae-path {tmp_path}/(\S+)/7/vqvae.pt", flags)[1]
        own = re.search(rf"--run-dir {tmp_path}/\S+?(__\S+)?/7$", flags)[1] or ""
        changed = own.removeprefix("__") in (
            *("learning-rate", "standardize", "dead-code-reset-every", "layer-norm", "ema-decay", "paper"),
        )
        assert source == (f"study/demo/saq_bc{own}" if changed else "small/demo/saq_bc"), flags


def test_only_datasets_whose_files_are_there_run_unless_they_are_named(tmp_path):
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "hopper-medium-expert-sb3-v0.hdf5").touch()
    commands = listed("small", tmp_path / "runs", files=folder, seeds=4)
    paths = {args_of(words).dataset_path for words in commands[:16]}
    assert paths == {None, str(folder / "hopper-medium-expert-sb3-v0.hdf5")} and len(commands) == 16
    (words, *_) = listed("small", tmp_path / "runs", files=folder, datasets="door")
    assert args_of(words).dataset_path == str(folder / "door-human-v0.hdf5")


@pytest.mark.parametrize(("script", "kinds"), [("adroit", 11), ("ablation", 4)])
def test_every_algorithm_of_a_script_runs_on_the_demo(tmp_path, script, kinds):
    config = {"runs": tmp_path, "datasets": "demo", "seeds": 1, "trial_steps": 4, "flags": TINY}
    targets = {}
    for words in listed(script, **config):
        folder = words[words.index("--run-dir") + 1]
        if "codebook-size-32" not in folder:
            targets.setdefault(folder.split("/")[-2].split("__")[0], f"{folder}/result.json")
    assert len(targets) == kinds
    snakemake(script, "-j", "2", *targets.values(), **config)
    runs, _ = results.read([tmp_path])
    assert set(runs["run"]) >= {path.removesuffix("/result.json") for path in targets.values()}


def test_a_killed_workflow_takes_its_runs_along_and_continues_to_the_same_tables(tmp_path):
    targets = ["saq_bc", "saq_iql", "bc"]

    def start(folder):
        config = [f"runs={tmp_path / folder}", "datasets=demo", "seeds=1", "trial_steps=150"]
        config += [f"flags={TINY} --checkpoint-every 20"]
        files = [f"{tmp_path / folder}/small/demo/{name}/1/result.json" for name in targets]
        command = [ROOT / "benchmark" / "small.sh", "-j", "2", *files, "--config", *config]
        return subprocess.Popen(command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def running():
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listing.splitlines() if f"--run-dir {tmp_path}" in line and "python" in line]

    def until(condition):
        end = time.time() + 60
        while not condition():
            assert time.time() < end
            time.sleep(0.1)

    assert start("whole").wait() == 0
    killed = start("killed")
    until(lambda: list((tmp_path / "killed").rglob("checkpoint.pt")))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if shutil.which("setpriv"):
        until(lambda: not running())
    assert not list((tmp_path / "killed").rglob("result.json"))
    assert start("killed").wait() == 0

    (whole, whole_episodes), (killed, killed_episodes) = (results.read([tmp_path / x]) for x in ("whole", "killed"))
    assert len(whole) == len(targets)
    columns = [name for name in whole.columns if name not in ("seconds", "command", "run")]
    pd.testing.assert_frame_equal(whole[columns], killed[columns])
    assert whole_episodes["score"].equals(killed_episodes["score"])


def test_tables_are_of_the_runs_that_are_there_now_and_folders_may_have_spaces(tmp_path):
    config = {"runs": tmp_path / "my runs", "datasets": "demo", "trial_steps": 4, "flags": TINY}
    for seed in (1, 2):
        path = tmp_path / "my runs" / "small" / "demo" / "bc" / str(seed) / "result.json"
        snakemake("small", "-j", "1", path, **config)
        folder = tmp_path / "my runs" / "small"
        report = [sys.executable, ROOT / "benchmark" / "report.py", "tables", folder, "--out", folder]
        subprocess.run(report, check=True)
        row = f"| fetch-pick-and-place-demo-v0 | BC | {seed} |"
        assert row in (folder / "tables.md").read_text()


def test_an_unknown_word_behind_config_is_refused(tmp_path):
    assert "unknown words behind --config: seed" in snakemake("small", "-n", seed=1, code=1)


def test_a_second_workflow_in_the_same_folder_is_refused(tmp_path):
    with open(tmp_path / "snakemake.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        printed = snakemake("small", "-j", "1", runs=tmp_path, datasets="demo", seeds=1, code=1)
    assert "another benchmark is running" in printed and not (tmp_path / "small").exists()


def test_speed_runs_every_loss_as_the_files_do():
    flags = ["--hidden-dim", "8", "--batch-size", "4", "--steps", "2", "--threads", "1"]
    command = [sys.executable, ROOT / "benchmark" / "speed.py", *flags]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^(VQ-VAE|SAQ-BC, pi_b|SAQ-(?:CQL|IQL|BRAC)) .*ratio [\d.]+$", printed, re.M)) == 5
