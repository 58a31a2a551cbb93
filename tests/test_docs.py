"""README.md and docs/: links lead somewhere, commands run or parse, snippets run."""

import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from conftest import ALGORITHMS, ROOT

import tasks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHORT = [
    "--vqvae-steps=4",
    "--bc-steps=4",
    "--rl-steps=4",
    "--final-eval-episodes=1",
    "--hidden-dim=16",
    "--batch-size=16",
    "--device=cpu",
]


def code_blocks(text: str) -> str:
    """The lines of indented code blocks, without comments, and with continued lines joined."""
    lines = [line[4:] for line in text.replace("\\\n", " ").splitlines() if line.startswith("    ")]
    return "\n".join(re.sub(r"\s+#\s.*", "", line).strip() for line in lines)


def commands() -> list[str]:
    """Every command of the pages once, in order: in code blocks, and in the tables of README."""
    found = []
    for page in PAGES:
        text = page.read_text()
        found += code_blocks(text).splitlines() + re.findall(r"\| `(python \S+\.py[^`]*)`", text)
    known = r"(([A-Z_]+=(\"[^\"]*\"|'[^']*'|\S+)\s+)*(benchmark/\w+\.sh|python\s)|pip |tensorboard )"
    return list(dict.fromkeys(re.sub(r"\s+", " ", line) for line in found if re.match(known, line)))


def split(line: str) -> tuple[dict[str, str], list[str]]:
    """Environment variables, and the words of a command."""
    words = shlex.split(line)
    variables = {}
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    return variables, words


def anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmark/README.md", ROOT / "benchmark/results/NOTES.md"])
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"`[^`]*`", "", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and ROOT in target.parents, link
        assert not anchor or anchor in anchors(target.read_text()), link


def shortened(words: list[str]) -> list[str]:
    """The command of an algorithm file for a few steps."""
    names = vars(importlib.import_module(words[1].removesuffix(".py")).Args())
    flags = [flag for flag in SHORT if flag.partition("=")[0].removeprefix("--").replace("-", "_") in names]
    if "--bc-steps 0" in " ".join(words):
        flags.remove("--bc-steps=4")
    return [*words, *flags]


def test_commands_on_the_demo_run(tmp_path, monkeypatch):
    """Algorithm files on the demo, examples/act.py and export.py, in the order of the pages and in one folder."""
    monkeypatch.chdir(tmp_path)
    algorithms = set()
    for line in commands():
        _, words = split(line)
        if "--env-id" in words or "--dataset-path" in words or "RUN" in words or words[0] != "python":
            continue
        if words[1].startswith("saq_"):
            algorithms.add(words[1].removesuffix(".py"))
            words = shortened(words)
        elif words[1] == "examples/export.py":
            if "*" not in line or importlib.util.find_spec("onnxruntime") is None:
                continue
        elif words[1] != "examples/act.py":
            continue
        else:
            words = ["--episodes=1" if word == "100" else word for word in words if word != "--episodes"]
        words = [str(sorted(tmp_path.glob(word))[0]) if "runs/" in word and "*" in word else word for word in words]
        module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
        monkeypatch.setattr(sys, "argv", words[1:])
        module.main(tyro.cli(module.Args, args=words[2:]))
    assert algorithms == set(ALGORITHMS)


def test_commands_on_other_data_parse():
    """Their flags are in range, and their ids, scripts and files exist."""
    for line in commands():
        _, words = split(line)
        if words[0] in ("pip", "tensorboard"):
            assert all((ROOT / word).is_file() for word in words if word.endswith(".txt")), line
        elif words[:2] == ["python", "-m"]:
            assert words[2] in ("pytest", "tasks") and (len(words) == 3 or words[3] in [*tasks.ids(), "ID"]), line
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), line
            if "--env-id" in words:
                env_id = words[words.index("--env-id") + 1]
                assert env_id in [*tasks.ids(), "none"] or "/" in env_id, line
            if words[1].startswith("saq_"):
                tyro.cli(importlib.import_module(words[1].removesuffix(".py")).Args, args=words[2:])
            else:
                source = (ROOT / words[1]).read_text()
                for flag in [word for word in words[2:] if word.startswith("--")]:
                    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
                    assert re.search(rf"(^    |, ){name}:", source, re.MULTILINE), f"{words[1]} has no {flag}"


def test_shell_scripts_of_the_pages_list_their_runs():
    pytest.importorskip("snakemake")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in commands():
        if re.match(r"(\w+=\S+ )*benchmark/", line):
            command = line.replace(".sh", ".sh -n", 1)
            done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0 and "This was a dry-run" in done.stdout + done.stderr, line + done.stderr


def test_snippets_of_the_readme_run(tmp_path, monkeypatch):
    quantize, act = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    names = {
        "observations": torch.tensor(rng.normal(size=(300, 3)), dtype=torch.float32),
        "actions": torch.tensor(rng.uniform(-1, 1, (300, 2)), dtype=torch.float32),
    }
    exec(quantize.replace("20_000", "4"), names)
    assert names["codes"].shape == (300,) and names["actions"].shape == (300, 2)

    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("saq_iql")
    words = [*SHORT, "--run-dir=runs/my-run"]
    module.main(tyro.cli(module.Args, args=words))
    names = {"observations": torch.zeros(5, 28)}
    exec(act, names)
    assert names["actions"].shape == (5, 4)
    assert json.loads(Path("runs/my-run/args.json").read_text())["algorithm"] == "saq_iql"


class FakeRobot:
    """The driver of docs/robot.md, for five steps of a robot whose action dimensions are its joints."""

    def __init__(self):
        self.sent, self.times = [], []

    def limits(self):
        return np.array([-1.0, 80.0]), np.array([1.0, 120.0])

    def holding_action(self):
        return np.array([0.0, 81.0])

    def is_enabled(self):
        return len(self.sent) < 5

    def observe(self):
        return [0.1, 0.2, 0.3]

    def send(self, action):
        self.sent.append(action)
        self.times.append(time.monotonic())

    def stop(self):
        self.stopped = True


def test_the_robots_page_runs(tmp_path, monkeypatch, capsys):
    """Its snippet for recording, its commands and its control loop, from the first to the last."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    page = (ROOT / "docs" / "robot.md").read_text()
    record, control = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(20):
        observations = rng.normal(size=(15, 3))
        actions = rng.uniform([-1, 90], [1, 110], (15, 2))
        episodes.append({"observations": observations, "actions": actions, "success": number % 2 == 0})
    exec(record, {"episodes": episodes})
    data = tasks.make("none", "my_robot.hdf5").dataset()
    assert data["terminals"].sum() == data["rewards"].sum() == 10 and data["ends"].sum() == 18

    for line in code_blocks(re.sub(r"```python\n.*?```", "", page, flags=re.DOTALL)).splitlines():
        words = shlex.split(line)
        if words[:1] != ["python"]:
            continue
        if words[1].startswith("saq_"):
            words = shortened(words)
        module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
        module.main(tyro.cli(module.Args, args=words[2:]))

    robot, clock = FakeRobot(), [0.0]
    with monkeypatch.context() as patch:  # a clock that only sleeping moves, so that a busy machine changes nothing
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
        exec(control, {"robot": robot})
    sent = np.array(robot.sent)
    assert sent.shape == (5, 2) and robot.stopped
    np.testing.assert_allclose(np.diff(sent[:, 1], prepend=81.0), 2.0)  # 0.05 of 40, towards the data from 90 on
    np.testing.assert_allclose(np.diff(robot.times), 1 / 20)
