"""Run the jobs of a benchmark: in order, several at once, or on SLURM. Finished jobs are skipped, killed ones continue.

Jobs are lines on stdin, `FOLDER COMMAND...`; `{OTHER}` is the folder of another job, which runs first:

    demo/saq_bc/1 python saq_bc.py --seed 1 --vqvae-steps 10000
    demo/saq_iql/1 python saq_iql.py --seed 1 --vqvae-path {demo/saq_bc/1}/vqvae.pt

Commands run in the repository with `--run-dir $RUNS_DIR/FOLDER` added, so the same command continues a killed run. What
they print is added to log.txt in this folder. A job is finished when the folder has a result.json.

Environment:
    RUNS_DIR   folder of the jobs' folders; default runs
    ONLY       regular expression for the folders of the jobs to run; their prerequisites run, too
    EXTRA      words added to every command, such as "--device cuda"
    JOBS       jobs at once, default 1; with SLURM: tasks of an array at once, default no limit
    MPS=1      let the jobs' kernels run side by side on a GPU (NVIDIA's Multi-Process Service); not with SLURM
    DRY=1      print the commands, run nothing
    CHECK=1    report what is finished, running and failed, run nothing
    SLURM=1    submit one job array per level of prerequisites; or, in place of 1, options of sbatch: "-c 2 --mem 8G"

Exit code: 0 when every job is finished (SLURM: submitted), 1 when one is not, 2 for bad input, 130 for Ctrl-C.
"""

import argparse
import fcntl
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
RUNS = (ROOT / os.environ.get("RUNS_DIR", "runs")).resolve()
OTHER = re.compile(r"\{([^{}]+)\}")
MAX_ARRAY = 1000  # tasks; SLURM's MaxArraySize is 1001 by default


def fail(message: str) -> NoReturn:
    print("error:", message, file=sys.stderr)
    raise SystemExit(2)


class Job(NamedTuple):
    """A job and the state in its folder."""

    name: str  # of its folder, below RUNS
    words: tuple[str, ...]  # its command, with {OTHER}

    @property
    def folder(self) -> Path:
        return RUNS / self.name

    @property
    def needs(self) -> list[str]:
        """The jobs that come first."""
        return OTHER.findall(" ".join(self.words))

    def read(self, file: str) -> str:
        path = self.folder / file
        return path.read_text(errors="replace").strip() if path.exists() else ""

    def conflict(self) -> str | None:
        """Why the finished run in the folder is not the one that this job asks for."""
        before, now = self.read("command.txt"), shlex.join(self.words)
        if finished(self.name) and before not in ("", now):
            return (
                f"{self.folder} has a run of another command; remove it to run this one. It was: {before}; now: {now}"
            )
        return None

    def command(self) -> list[str]:
        words = [OTHER.sub(lambda match: str(RUNS / match[1]), word) for word in self.words]
        if words[0] == "python":
            words[0] = sys.executable
        return [*words, "--run-dir", str(self.folder)]

    def lock(self) -> int | None:
        """A descriptor that holds the folder until all processes that inherit it are gone; None if one does already.

        The command inherits it: a launcher that is killed while its command runs on leaves the folder locked.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "job.lock", os.O_RDWR | os.O_CREAT)
        if held(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            return None
        return descriptor

    def state(self, queue: frozenset[str] | set[str] = frozenset()) -> str:
        """`finished`, or what else the job is."""
        if conflict := self.conflict():
            return conflict
        if finished(self.name):
            return "finished"
        if (place := self.read("slurm.txt")) in queue:
            return f"in the queue as {place}"
        if code := self.read("exit_code"):
            last_line = self.read("log.txt").rpartition("\n")[2]
            return f"failed with exit code {code}, {self.folder / 'log.txt'}: {last_line}"
        if (self.folder / "job.lock").exists():
            with open(self.folder / "job.lock") as file:
                if held(file.fileno(), fcntl.LOCK_SH):  # which a file of somebody else's allows
                    return f"running as {self.read('job.lock')}"
        if missing := [need for need in self.needs if not finished(need)]:
            return f"not started, it needs {missing[0]}"
        where = f", see {RUNS / 'slurm' / place}.txt" if place else ""
        return ("killed" if (self.folder / "checkpoint.pt").exists() else "not started") + where

    def start(self) -> subprocess.Popen | str:
        """Start or continue; or `locked`, `finished`, `conflict` where there is nothing to start."""
        if (descriptor := self.lock()) is None:
            return "locked"
        try:
            if self.conflict():
                return "conflict"
            if finished(self.name):
                return "finished"
            (self.folder / "exit_code").unlink(missing_ok=True)
            (self.folder / "command.txt").write_text(shlex.join(self.words) + "\n")
            words = self.command()
            print(f"{self.name}: {shlex.join(words)}", flush=True)
            with open(self.folder / "log.txt", "a") as log:
                print("$", shlex.join(words), file=log, flush=True)
                pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [descriptor]}
                # a session of its own: Ctrl-C reaches it once, by way of this program
                process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipes)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {process.pid} on {socket.gethostname()}\n".encode(), 0)
            return process
        finally:
            os.close(descriptor)


def read_jobs(lines: list[str], extra: list[str], only: re.Pattern) -> list[Job]:
    """The jobs that `only` matches, prerequisites first, otherwise in the order of the lines."""
    jobs: dict[str, Job] = {}
    for line in lines:
        try:
            name, *words = shlex.split(line, comments=True) or [""]
        except ValueError as error:
            fail(f"{error} in the line: {line.strip()}")
        if name and not words:
            fail(f"no command in the line: {line.strip()}")
        if name in jobs:
            fail(f"two jobs have the folder {name}")
        if name:
            jobs[name] = Job(name, (*words, *extra))
    ordered: dict[str, Job] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        if name not in jobs:
            fail(f"{path[-1]} needs {name}, which is no job")
        if name in path:
            fail(f"jobs that need each other: {' -> '.join((*path, name))}")
        for need in jobs[name].needs:
            add(need, (*path, name))
        ordered.setdefault(name, jobs[name])

    for name in jobs:
        if only.search(name):
            add(name, ())
    return list(ordered.values())


def held(descriptor: int, kind: int) -> bool:
    """Whether another process holds the file's lock; if none does, it is taken, where the file system has locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def finished(name: str) -> bool:
    """Whether the job has a result."""
    return (RUNS / name / "result.json").exists()


def run(jobs: list[Job], slots: int) -> int:
    """Run the jobs, at most `slots` at once, each when its prerequisites are finished; the exit code."""
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda number, _: signals.append(number))
    waiting, running, started, locked = {job.name: job for job in jobs}, {}, set(), set()
    done = {need for job in jobs for need in job.needs if need not in waiting and finished(need)}
    while (waiting or running) and not signals:
        for name, (job, process) in list(running.items()):
            if (code := process.poll()) is None:
                continue
            del running[name]
            if code == 0 and finished(name):
                done.add(name)
            else:
                (job.folder / "exit_code").write_text(f"{code}\n")
            print(f"{name}: {job.state()}", flush=True)
        for name, job in list(waiting.items()):
            missing = [need for need in job.needs if need not in done]
            if any(need not in waiting and need not in running for need in missing):
                del waiting[name]  # what it needs has failed
            if missing or len(running) == slots:
                continue
            outcome = job.start()
            if outcome == "locked":
                if name not in locked:
                    print(f"{name}: waiting, it is running already, as {job.read('job.lock')}", flush=True)
                locked.add(name)
                continue
            del waiting[name]
            if outcome == "finished":
                done.add(name)
            elif outcome != "conflict":
                running[name] = (job, outcome)
                started.add(name)
        time.sleep(0.2)
    if signals:
        for _, process in running.values():
            process.send_signal(signal.SIGINT)
        deadline = time.time() + 30  # time to end the writing of a checkpoint
        for _, process in running.values():
            try:
                process.wait(max(0.0, deadline - time.time()))
            except subprocess.TimeoutExpired:
                process.kill()
        print("interrupted; the same command again continues", file=sys.stderr)
        return 128 + signals[0]
    before = len(done & {job.name for job in jobs} - started - locked)
    return report(jobs, {}, f", {before} of them before")


@contextmanager
def multi_process_service() -> Iterator[None]:
    """NVIDIA's Multi-Process Service for the processes that are started meanwhile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # the service may still write there
        os.environ |= {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        try:
            subprocess.run(["nvidia-cuda-mps-control", "-d"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            fail(f"MPS=1: {error}; leave MPS out where there is no NVIDIA GPU")
        try:
            yield
        finally:
            subprocess.run(["nvidia-cuda-mps-control"], input="quit\n", text=True)


def report(jobs: list[Job], queue: set[str], note: str = "") -> int:
    """Print how many jobs are finished and what the others are; the exit code."""
    states = {job.name: job.state(queue) for job in jobs}
    others = {name: state for name, state in states.items() if state != "finished"}
    failed = sum(state.startswith("failed") for state in others.values())
    print(f"{len(jobs) - len(others)} jobs finished{note}; {failed} failed; {len(others) - failed} others not finished")
    for name, state in others.items():
        print(f"  {name}: {state}")
    return 1 if others else 0


def in_queue(jobs: list[Job]) -> set[str]:
    """ARRAY_TASK of the user's SLURM jobs that wait or run; not asked for if none of the jobs was ever submitted."""
    if not any(job.read("slurm.txt") for job in jobs):
        return set()
    return set(slurm("squeue", "--me", "-h", "-r", "-o", "%F_%K").split())


def slurm(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{words[0]}: {getattr(error, 'stderr', None) or error}".strip().replace("\n", " "))


def submit(jobs: list[Job], at_once: str, options: list[str]) -> int:
    """Submit what is neither finished nor in the queue, with sbatch's `options`; the exit code."""
    queue, logs = in_queue(jobs), RUNS / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    level, arrays = {}, {}  # of a job: its level, and the SLURM job that it is in
    for job in jobs:
        level[job.name] = 1 + max((level[need] for need in job.needs), default=-1)
        if (place := job.read("slurm.txt")) in queue:
            arrays[job.name] = place.partition("_")[0]
    conflicts = {job.name: conflict for job in jobs if (conflict := job.conflict())}
    blocked = set(conflicts)  # and what needs them
    for job in jobs:
        if blocked & set(job.needs):
            blocked.add(job.name)
    todo = [job for job in jobs if job.name not in arrays and not finished(job.name) and job.name not in blocked]
    for depth in sorted({level[job.name] for job in todo}):
        in_level = [job for job in todo if level[job.name] == depth]
        for part in (in_level[i : i + MAX_ARRAY] for i in range(0, len(in_level), MAX_ARRAY)):
            listing = logs / f"{time.time_ns()}.txt"
            listing.write_text("".join(f"{job.name} {shlex.join(job.words)}\n" for job in part))
            task = shlex.join([sys.executable, str(Path(__file__).resolve()), "--task", str(listing)])
            words = ["sbatch", *options, "--parsable", f"--array=0-{len(part) - 1}{at_once and '%' + at_once}"]
            words += [f"--job-name={part[0].name.split('/')[0]}", f"--output={logs}/%A_%a.txt", "--open-mode=append"]
            if before := sorted({arrays[need] for job in part for need in job.needs if need in arrays}):
                words.append(f"--dependency=afterany:{':'.join(before)}")
            words.append(f"--wrap=RUNS_DIR={shlex.quote(str(RUNS))} exec {task}")
            number = slurm(*words).strip().partition(";")[0]
            print(f"submitted {number}: {len(part)} jobs, {part[0].name} to {part[-1].name}", flush=True)
            for index, job in enumerate(part):
                arrays[job.name] = number
                job.folder.mkdir(parents=True, exist_ok=True)
                (job.folder / "slurm.txt").write_text(f"{number}_{index}\n")
    print("the queue: squeue --me; what is finished and what failed: CHECK=1 in place of SLURM=1")
    for name, conflict in conflicts.items():
        print(f"  {name}: {conflict}")
    return 1 if conflicts else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", metavar="FILE", type=Path, help="for SLURM: run the array task's line of this file")
    if listing := parser.parse_args().task:
        name, *words = shlex.split(listing.read_text().splitlines()[int(os.environ["SLURM_ARRAY_TASK_ID"])])
        return run([Job(name, tuple(words))], slots=1)
    at_once = os.environ.get("JOBS", "")
    if at_once and not (at_once.isdecimal() and int(at_once)):
        fail(f"JOBS must be a number above 0, it is {at_once}")
    try:
        extra, only = shlex.split(os.environ.get("EXTRA", "")), re.compile(os.environ.get("ONLY", ""))
    except (ValueError, re.error) as error:
        fail(f"EXTRA or ONLY: {error}")
    jobs = read_jobs(sys.stdin.read().splitlines(), extra, only)
    if os.environ.get("DRY"):
        for job in jobs:
            print(f"# finished: {job.name}" if finished(job.name) else shlex.join(job.command()))
        return 0
    if os.environ.get("CHECK"):
        return report(jobs, in_queue(jobs))
    if options := os.environ.get("SLURM"):
        return submit(jobs, at_once, [] if options == "1" else shlex.split(options))
    with multi_process_service() if os.environ.get("MPS") else nullcontext():
        return run(jobs, int(at_once or 1))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
