"""README.md and docs/: their lengths, links and commands."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT
from prose import anchors, blocks, commands, links, paragraphs, sentences, words

import tasks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SHORT = "--vqvae-steps 4 --total-steps 4 --final-eval-episodes 1 --hidden-dim 16 --batch-size 16 --device cpu"

# Runs the commands of a JSON list in one process, which imports once what takes long; prints code and output of each.
RUN = """
import contextlib, gc, io, json, os, runpy, sys, traceback
sys.path[:0] = sys.argv[1:]
import filelock, torch
torch.set_num_threads(1)
results = []
for words in json.load(sys.stdin):
    sys.argv[:], code, printed = words, 0, io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            sys.path.insert(0, os.path.dirname(os.path.realpath(words[0])))
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            code = traceback.format_exc()
    results.append([code, printed.getvalue()])
    for lock in (thing for thing in gc.get_objects() if isinstance(thing, filelock.BaseFileLock)):
        lock.release(force=True)  # as the end of a process does
print(json.dumps(results))
"""


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_are_short_and_so_are_their_paragraphs_and_sentences(page):
    text = page.read_text()
    assert len(text.splitlines()) <= (200 if page.name == "README.md" else 150)
    assert [part for part in paragraphs(text) if part.count("\n") > 3] == []
    assert [sentence for sentence in sentences(text) if words(sentence) > 30] == []


def test_sentences_are_counted_as_a_reader_does():
    text = "# Not this\n\nOne two `a b`. [Three four](x.md) five\nsix? Seven.\n\n    not this\n\n| a | b c d |\n"
    counts = [words(sentence) for sentence in sentences(text)]
    assert counts == [3, 4, 1, 1, 3]


def test_the_first_screen_says_what_it_is_and_how_to_run_it():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    kinds = [kind for kind, _ in blocks(screen)]
    assert kinds[0] == "heading" and kinds.count("code") == 2  # commands, and what they print
    assert screen.count("![") == 1 and "pip install" in screen and "SAQ-IQL, sampled" in screen


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmark/README.md", ROOT / "benchmark/results/README.md"])
def test_links_lead_to_files_and_headings(page):
    for link in links(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and ROOT in target.parents, link
        if anchor:
            assert anchor in anchors(target.read_text()), link


def all_commands():
    """Every command of the pages once, as words, variables apart, in order."""
    return list(dict.fromkeys(line for page in PAGES for line in commands(page.read_text())))


def split(line):
    """Variables, and the other words, of a command."""
    own = shlex.split(line)
    count = next(i for i, word in enumerate(own) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in own[:count]), own[count:]


def runs_offline(line):
    """Whether it is an algorithm file's command on the demo."""
    return re.match(r"python saq_\w+\.py", line) and "--env-id" not in line and "--dataset-path" not in line


def run_all(lines, folder):
    """Run the words of each line in `folder`; what each prints. None may fail."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, ROOT], cwd=folder, input=json.dumps(lines), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [(line, *result) for line, result in zip(lines, results, strict=True) if result[0]] == []
    return [printed for _, printed in results]


def shortened(own, *more):
    """The command of an algorithm file, for a few steps."""
    bc = ["--bc-steps", "4"] if own[0] != "saq_bc.py" and "--bc-steps 0" not in " ".join(own) else []
    return [str(ROOT / own[0]), *own[1:], *SHORT.split(), *bc, *more]


def test_commands_on_the_demo_run(tmp_path):
    """Commands that name no run come first; `runs/fetch*saq_bc__1__*` is the run of the first one of SAQ-BC."""
    chosen = [line for line in all_commands() if runs_offline(line) or "examples/act.py" in line]
    own = [split(line)[1][1:] for line in chosen]
    plain = [words_ for words_ in own if not any("runs/" in word for word in words_)]
    assert {words_[0] for words_ in plain} == {f"{algorithm}.py" for algorithm in ALGORITHMS}
    run_all([shortened(words_, "--runs-dir", f"runs/{i}") for i, words_ in enumerate(plain)], tmp_path)

    def real(word):
        if not (match := re.fullmatch(r"runs/fetch\*(\w+?)__1__\*(.*)", word)):
            return word
        first = next(i for i, words_ in enumerate(plain) if words_[0] == f"{match[1]}.py")
        (run,) = (tmp_path / f"runs/{first}").glob("*__*")
        return f"{run}{match[2]}"

    rest = [[*map(real, words_)] for words_ in own if words_ not in plain]
    rest = [shortened(w) if "--vqvae-path" in w else [str(ROOT / w[0]), *w[1:]] for w in rest]
    assert len(rest) >= 5
    run_all(rest, tmp_path)


def importable(script):
    """Whether the packages of requirements-benchmark.txt are here, if the script needs them."""
    needs = re.search(r"matplotlib|^from report", (ROOT / script).read_text(), re.M)
    return not needs or all(map(importlib.util.find_spec, ("matplotlib", "rliable")))


def test_commands_of_other_data_parse(tmp_path):
    """Flags within their bounds, ids that exist, scripts and flags that exist."""
    known, checks, seen = set(tasks.ids()), [], set()
    for line in all_commands():
        _, own = split(line)
        if own[0] in ("pip", "tensorboard"):
            assert all((ROOT / word).is_file() for word in own if word.endswith(".txt")), line
            continue
        if own[0].startswith("benchmark/"):
            continue  # below
        if own[1] == "-m":
            assert own[2] in ("pytest", "tasks") and (len(own) == 3 or own[3] in known | {"ID"}), line
            continue
        script, flags = own[1], [word for word in own[2:] if word.startswith("--")]
        assert (ROOT / script).is_file(), line
        if "--env-id" in own:
            env_id = own[own.index("--env-id") + 1]
            assert env_id in known | {"none"} or "/" in env_id, line
        if script.startswith("saq_") and "--resume" not in own:
            code = f"import {script[:-3]} as file; file.parse_args(file.Method)"
            (tmp_path / f"{len(checks)}.py").write_text(f"import sys; sys.argv[0] = {script!r}\n{code}\n")
            checks.append([f"{len(checks)}.py", *" ".join(own[2:]).replace("--device cuda", "--device auto").split()])
        elif script not in seen and script != "examples/act.py" and importable(script):
            seen.add(script)
            checks.append([str(ROOT / script), "--help"])
        if script not in ("examples/act.py",) and not script.startswith("saq_"):
            source = (ROOT / script).read_text()
            for flag in flags:
                name = flag.removeprefix("--").replace("no-", "").replace("-", "_")
                assert flag in ("--help",) or re.search(rf"^    {name}:", source, re.M), (
                    f"{script} has no {flag}: {line}"
                )
    assert len(checks) > 10
    run_all(checks, tmp_path)


def test_shell_scripts_of_the_pages_print_their_commands(tmp_path):
    for name in re.findall(r"^(\S+) (\S+) ", (ROOT / "benchmark" / "datasets.sh").read_text(), re.M):
        (tmp_path / name[1]).touch()
    for line in all_commands():
        variables, own = split(line)
        if own[0].startswith("benchmark/"):
            (word,) = own
            variables.pop("CHECK", None)
            if "ONLY" in variables:
                variables["ONLY"] = variables["ONLY"].replace("NAME", "demo")
            if "DATASETS_DIR" in variables:
                variables["DATASETS_DIR"] = str(tmp_path)
            environment = {k: v for k, v in os.environ.items() if k not in ("DATASETS_DIR", "SLURM", "ONLY", "EXTRA")}
            environment |= {"RUNS_DIR": str(tmp_path / "runs"), "SEEDS": "1", "DRY": "1"} | variables
            environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
            done = subprocess.run(["bash", ROOT / word], env=environment, capture_output=True, text=True)
            assert done.returncode == 0 and ".py --" in done.stdout, line + done.stderr
            assert not (tmp_path / "runs").exists(), line


def fences(page):
    return [block.partition("\n")[2] for kind, block in blocks(page.read_text()) if kind == "fence"]


def test_snippets_of_the_readme_run():
    import torch

    quantize, act = fences(PAGES[0])
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.normal(size=(300, 3)), "actions": rng.uniform(-1, 1, (300, 2))}
    names = {key: torch.tensor(value, dtype=torch.float32) for key, value in arrays.items()}
    exec(quantize.replace("20_000", "4"), names)
    assert names["codes"].shape == (300,) and names["actions"].shape == (300, 2)
    script = [line.strip() for line in (ROOT / "examples" / "act.py").read_text().splitlines()]
    assert [line for line in act.splitlines() if line.strip() not in script] == []
    assert len(script) <= 40


def test_act_replays_the_evaluation_of_every_algorithms_runs(tmp_path):
    """On a task with a return of many digits: the same policy returns the same."""
    rng, rows = np.random.default_rng(0), 400
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(rows, 17)), rng.uniform(-1, 1, (rows, 6))
        file["rewards"], file["terminals"] = rng.normal(size=rows), np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % 20 == 19
    data = "--env-id halfcheetah-expert-v2 --dataset-path data.hdf5 --max-episode-steps 20 --final-eval-episodes 2"
    run_all([shortened([f"{name}.py"], *data.split(), "--total-steps=40") for name in ALGORITHMS], tmp_path)
    runs = sorted(tmp_path.glob("runs/*"))
    printed = run_all([[str(ROOT / "examples" / "act.py"), str(run), "2"] for run in runs], tmp_path)
    for run, lines in zip(runs, printed, strict=True):
        returns = [float(line.rpartition(" ")[2]) for line in lines.splitlines()]
        assert returns == pytest.approx(np.load(run / "eval.npz")["returns"].tolist(), abs=0.006), run
