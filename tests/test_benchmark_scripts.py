"""benchmark/launch.py with a fake command that only waits and writes files; the commands of the benchmark's scripts."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from conftest import ROOT

import tasks

sys.path.insert(0, str(ROOT / "benchmark" / "baselines"))

SCRIPTS = ("locomotion", "antmaze", "adroit", "kitchen", "robomimic")
LAUNCH = [sys.executable, str(ROOT / "benchmark" / "launch.py")]

COMMAND = """
import os, sys, time
from pathlib import Path
flags = dict(zip(sys.argv, sys.argv[1:]))
run = Path(flags["--run-dir"])
checkpoint = run / "checkpoint.pt"
first = int(checkpoint.read_text()) if checkpoint.exists() else 0
print("begin at", first, "MPS", os.environ.get("CUDA_MPS_PIPE_DIRECTORY"), flush=True)
if "--read" in flags:
    Path(flags["--read"]).read_text()
for step in range(first, int(flags.get("--steps", 0))):
    (run / "part").write_text(str(step))
    os.replace(run / "part", checkpoint)
    time.sleep(0.05)
if "--meet" in flags:  # two jobs at once wait for each other
    (Path(flags["--meet"]) / run.name).touch()
    while len(list(Path(flags["--meet"]).iterdir())) < 2:
        time.sleep(0.05)
if "--fail" in flags:
    sys.exit("it did not work")
(run / "result.json").write_text("{}")
"""


class Bench:
    """Job lists for launch.py in a folder of their own; `X` in a line stands for the fake command."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, folder / "runs"
        (folder / "command.py").write_text(COMMAND)

    def start(self, *lines: str, **env: str) -> subprocess.Popen:
        text = "".join(line.replace("X", f"python {self.folder}/command.py") + "\n" for line in lines)
        (self.folder / "jobs").write_text(text)
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "SLURM", "JOBS"))}
        with open(self.folder / "jobs") as jobs, open(self.folder / "printed", "w") as printed:
            return subprocess.Popen(
                LAUNCH, env=clean | {"RUNS_DIR": str(self.runs)} | env, stdin=jobs, stdout=printed, stderr=printed
            )

    def run(self, *lines: str, code: int = 0, **env: str) -> str:
        returned = self.start(*lines, **env).wait(60)
        assert returned == code, self.printed()
        return self.printed()

    def printed(self) -> str:
        return (self.folder / "printed").read_text()

    def log(self, name: str) -> str:
        path = self.runs / name / "log.txt"
        return path.read_text() if path.exists() else ""

    def begun(self, name: str) -> int:
        return self.log(name).count("begin at")

    def until(self, condition) -> None:
        end = time.time() + 20
        while not condition():
            assert time.time() < end, self.printed()
            time.sleep(0.02)

    def process(self, name: str) -> int:
        """Of the job's command, from its lock."""
        self.until(lambda: self.begun(name) and "process" in (self.runs / name / "job.lock").read_text())
        return int((self.runs / name / "job.lock").read_text().split()[1])


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_runs_in_order_with_prerequisites_first_and_skips_what_is_finished(bench):
    lines = ["a/second X --read {b/first}/result.json", "c/third X", "b/first X", "", "# d X"]
    printed = bench.run(*lines)
    names = re.findall(r"^(\w/\w+): finished", printed, re.M)
    assert names == ["b/first", "a/second", "c/third"]
    command = f"{sys.executable} {bench.folder}/command.py --read {bench.runs}/b/first/result.json"
    assert f"{command} --run-dir {bench.runs}/a/second" in printed
    assert "MPS None" in bench.log("a/second")
    assert "3 jobs finished, 3 of them before; 0 failed" in bench.run(*lines)
    assert [bench.begun(name) for name in names] == [1, 1, 1]


def test_several_at_once(bench):
    meet = bench.folder / "meet"
    meet.mkdir()
    bench.run(f"a X --meet {meet}", f"b X --meet {meet}", JOBS="2")


def test_the_multi_process_service_runs_as_long_as_the_jobs(bench):
    """With a control program that notes what it is told."""
    control = bench.folder / "nvidia-cuda-mps-control"
    control.write_text('#!/usr/bin/env bash\necho "$1 $([ -n "$1" ] || cat) $CUDA_MPS_PIPE_DIRECTORY" >> "$0.log"\n')
    control.chmod(0o755)
    bench.run("a X", MPS="1", PATH=f"{bench.folder}:{os.environ['PATH']}")
    (pipe,) = re.findall("MPS (/.*)", bench.log("a"))
    assert control.with_suffix(".log").read_text() == f"-d  {pipe}\n quit {pipe}\n"
    assert not Path(pipe).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_continues_with_the_same_command(bench, number):
    lines = ["a X --steps 30", "b X"]
    launcher = bench.start(*lines)
    child = bench.process("a")
    bench.until((bench.runs / "a" / "checkpoint.pt").exists)
    launcher.send_signal(number)
    assert launcher.wait(20) == 128 + number
    assert "the same command again continues" in bench.printed()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert "killed" in bench.run(*lines, code=1, CHECK="1")
    bench.run(*lines)
    first, second = re.findall(r"begin at (\d+)", bench.log("a"))
    commands = [line for line in bench.log("a").splitlines() if line.startswith("$")]
    assert int(first) == 0 < int(second) and commands[0] == commands[1]


def test_a_failure_is_reported_and_holds_up_only_what_needs_it(bench):
    lines = ["a X --fail 1", "b X --read {a}/result.json", "c X --read {b}/result.json", "d X"]
    wanted = [
        "1 jobs finished",
        "1 failed; 2 others",
        f"  a: failed with exit code 1, {bench.runs}/a/log.txt: it did not work",
        "  b: not started, it needs a",
        "  c: not started, it needs b",
    ]
    printed = bench.run(*lines, code=1)
    assert all(line in printed for line in wanted), printed
    checked = bench.run(*lines, code=1, CHECK="1")
    assert all(line in checked for line in wanted), checked
    bench.run(*lines, code=1)  # a is tried again
    assert [bench.begun(name) for name in "abcd"] == [2, 0, 0, 1]


def test_a_job_whose_launcher_was_killed_is_waited_for_not_started_twice(bench):
    launcher = bench.start("a X --steps 40")
    child = bench.process("a")
    launcher.kill()
    launcher.wait()
    assert f"a: running as process {child}" in bench.run("a X --steps 40", code=1, CHECK="1")
    assert f"a: waiting, it is running already, as process {child}" in bench.run("a X --steps 40")
    assert bench.begun("a") == 1


def test_two_launchers_share_the_jobs(bench):
    lines = [f"{name} X --steps 5" for name in "abcd"]
    launchers = [bench.start(*lines) for _ in range(2)]
    assert [launcher.wait(30) for launcher in launchers] == [0, 0]
    assert [bench.begun(name) for name in "abcd"] == [1, 1, 1, 1]


def test_a_finished_run_of_another_command_is_not_taken_for_this_one(bench):
    bench.run("a X --steps 1")
    printed = bench.run("a X --steps 2", "b X --read {a}/result.json", code=1)
    assert "has a run of another command; remove it" in printed and "b: not started" in printed
    assert bench.begun("a") == 1 and bench.begun("b") == 0


def test_extra_words_and_a_choice_of_jobs(bench):
    lines = ["a X", "b X --read {a}/result.json", "c X"]
    printed = bench.run(*lines, EXTRA="--steps 1", ONLY="^b")
    assert "2 jobs finished" in printed and bench.begun("c") == 0
    assert printed.count("--steps 1 --run-dir") == 2


def test_dry_runs_nothing(bench):
    printed = bench.run("b X --read {a}/result.json", "a X", DRY="1")
    command = f"{sys.executable} {bench.folder}/command.py"
    assert printed.splitlines() == [
        f"{command} --run-dir {bench.runs}/a",
        f"{command} --read {bench.runs}/a/result.json --run-dir {bench.runs}/b",
    ]
    assert not bench.runs.exists()


@pytest.mark.parametrize(
    "lines, env, words",
    [
        (["a X --read {b}/result.json"], {}, "a needs b, which is no job"),
        (["a X", "a X"], {}, "two jobs have the folder a"),
        (["a X {b}", "b X {c}", "c X {a}"], {}, "jobs that need each other: a -> b -> c -> a"),
        (["a"], {}, "no command in the line: a"),
        (["a X 'b"], {}, "No closing quotation"),
        (["a X"], {"JOBS": "0"}, "JOBS must be a number above 0, it is 0"),
        (["a X"], {"ONLY": "("}, "EXTRA or ONLY"),
        (["a X"], {"MPS": "1", "PATH": "/nowhere"}, "leave MPS out"),
        (["a X"], {"SLURM": "1", "PATH": "/nowhere"}, "sbatch"),
    ],
)
def test_bad_input_is_one_line(bench, lines, env, words):
    printed = bench.run(*lines, code=2, **env)
    assert printed.startswith("error: ") and words in printed and printed.count("\n") == 1


def test_slurm_gets_an_array_per_level_and_runs_its_tasks_by_the_same_rules(bench):
    """With an sbatch that runs the tasks at once, and a squeue that shows what a file says."""
    sbatch = """#!/usr/bin/env bash
    number=$(($(ls "$0".* 2>/dev/null | wc -l) + 1))
    printf '%s\\n' "$@" > "$0.$number"
    for word in "$@"; do
        case $word in
            --array=*) last=${word##*-}; last=${last%%\\%*} ;;
            --wrap=*) wrap=${word#--wrap=} ;;
        esac
    done
    for SLURM_ARRAY_TASK_ID in $(seq 0 $last); do
        export SLURM_ARRAY_TASK_ID
        bash -c "$wrap" >> "${0%/*}/tasks" 2>&1
    done
    echo "$number;cluster"
    """
    tools = bench.folder / "bin"
    tools.mkdir()
    (tools / "sbatch").write_text(sbatch)
    (tools / "squeue").write_text(f"#!/usr/bin/env bash\ncat {bench.folder}/queue\n")
    (bench.folder / "queue").write_text("")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = {"SLURM": "1", "JOBS": "3", "PATH": f"{tools}:{os.environ['PATH']}", "EXTRA": "--steps 1"}
    lines = ["a X", "b X --fail 1", "c X --read {a}/result.json", "d X --read {b}/result.json"]
    printed = bench.run(*lines, **env)
    assert "submitted 1: 2 jobs, a to b" in printed and "submitted 2: 2 jobs, c to d" in printed
    first, second = ((tools / f"sbatch.{number}").read_text().splitlines() for number in (1, 2))
    assert "--array=0-1%3" in first and not any("dependency" in word for word in first)
    assert "--array=0-1%3" in second and "--dependency=afterany:1" in second
    assert [bench.begun(name) for name in "abcd"] == [1, 1, 1, 0]
    assert "--steps 1 --steps 1" not in (tools / "tasks").read_text()  # EXTRA once
    checked = bench.run(*lines, code=1, **env | {"CHECK": "1"})
    assert "b: failed with exit code 1" in checked and "d: not started, it needs b" in checked
    # b is in the queue already, so that only d is submitted, behind it
    (bench.folder / "queue").write_text("1_0\n1_1\n")
    printed = bench.run(*lines, **env)
    assert "submitted 3: 1 jobs, d to d" in printed
    assert "--dependency=afterany:1" in (tools / "sbatch.3").read_text()
    assert "b: in the queue as 1_1" in bench.run(*lines, code=1, **env | {"CHECK": "1"})
    # a has run with other words, so that what needs it is not submitted
    printed = bench.run("a X --steps 2", "e X --read {a}/result.json", code=1, **env)
    assert "a has a run of another command" in printed and "submitted" not in printed and not bench.begun("e")


def args_of(words: list[str]):
    """The arguments of a command, as its script reads them."""
    script, *flags = words[1:]
    if script in ("benchmark/baselines/aquadem.py", "benchmark/quantizers.py"):
        script, *flags = f"saq_{flags[0]}.py", *flags[1:]
    return tyro.cli(import_module(Path(script).stem).Args, args=flags)


def steps_of(args) -> int:
    """The gradient steps of the algorithm itself."""
    return vars(args).get("rl_steps", vars(args).get("bc_steps"))


def commands_of(script: str, tmp_path: Path, **env: str) -> list[str]:
    env = os.environ | {"DRY": "1", "RUNS_DIR": str(tmp_path)} | env
    path = ROOT / "benchmark" / f"{script}.sh"
    return subprocess.run([path], env=env, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_of_a_script_parses(script, tmp_path):
    minari = {f"D4RL/antmaze/{maze}-v1" for maze in ("medium-diverse", "medium-play", "large-diverse", "large-play")}
    minari |= {f"D4RL/kitchen/{kind}-v2" for kind in ("mixed", "complete", "partial")}
    commands, forms = commands_of(script, tmp_path), {}
    for command in commands:
        forms.setdefault(re.sub(rf"--(env-id|seed) \S+|{tmp_path}\S+", "", command), command)
        env_id = re.search(r"--env-id (\S+)", command)[1]
        assert env_id in tasks.ids() or env_id in minari
    for command in forms.values():
        args = args_of(command.split())
        assert steps_of(args) == 1_000_000 and args.seed == 1
    jobs = re.search(r"(\d+) jobs with three seeds", (ROOT / "benchmark" / f"{script}.sh").read_text())[1]
    assert len(forms) > 10 and len(commands) == len(set(commands)) == int(jobs)


def test_every_dataset_of_the_papers_tables_is_there(shared_datasets, tmp_path):
    tables = (shared_datasets.parent / "paper").glob("table*.csv")
    rows = {line.split(",")[0] for table in tables for line in table.read_text().splitlines()[1:]}
    rows = {row for row in rows if "average" not in row}
    commands = [command for script in SCRIPTS for command in commands_of(script, tmp_path, SEEDS="1")]
    ids = {re.search(r"--env-id (\S+)", command)[1] for command in commands}
    assert len(ids) == len(rows)
    for row in rows:
        name = row.replace("tool-hang", "tool_hang").removesuffix("-v0").removesuffix("-v2")
        assert any(name in env_id.removeprefix("D4RL/").replace("/", "-") for env_id in ids), row


@pytest.mark.parametrize("script", ["small", "study", "ablation"])
def test_the_folder_of_datasets_must_exist_and_may_have_a_space_in_its_name(tmp_path, script):
    command = [ROOT / "benchmark" / f"{script}.sh"]
    env = os.environ | {"DRY": "1", "RUNS_DIR": str(tmp_path), "DATASETS_DIR": str(tmp_path / "my data")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "my data is no folder" in done.stderr
    path = tmp_path / "my data" / "hopper-medium-expert-sb3-v0.hdf5"
    path.parent.mkdir()
    path.touch()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert {args_of(shlex.split(line)).dataset_path for line in done.stdout.splitlines()[::20]} == {None, str(path)}


@pytest.mark.parametrize(("script", "count"), [("small", 72), ("study", 368), ("ablation", 72)])
def test_the_other_scripts_commands_parse_and_their_steps_can_be_set(tmp_path, script, count):
    datasets = (ROOT / "benchmark" / "datasets.sh").read_text()
    for name in set(re.findall(r"\S+\.(?:hdf5|npz)", datasets)):
        (tmp_path / name).touch()
    env = {"VQVAE_STEPS": "7", "BC_STEPS": "8", "STEPS": "9", "SEEDS": "4", "DATASETS_DIR": str(tmp_path)}
    commands = commands_of(script, tmp_path, **env)
    assert len(set(commands)) == len(commands) == count
    for command in commands[:: count // 36]:  # a parse takes a while
        args = args_of(command.split())
        assert steps_of(args) in (8, 9, 17) and args.seed == 4
        assert getattr(args, "vqvae_path", None) or getattr(args, "vqvae_steps", 7) == 7
        assert getattr(args, "bc_steps", 8) in (0, 8, 9)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmark").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_bash(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_speed_runs_every_loss_as_the_files_do():
    flags = ["--hidden-dim", "8", "--batch-size", "4", "--steps", "2", "--threads", "1"]
    command = [sys.executable, ROOT / "benchmark" / "speed.py", *flags]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(re.findall(r"^(VQ-VAE|SAQ-BC, pi_b|SAQ-(?:CQL|IQL|BRAC)) .*ratio [\d.]+$", printed, re.M)) == 5
