"""What the algorithm files repeat is identical to the letter, and each stands alone with vqvae.py."""

import ast
import re

import pytest
from conftest import ALGORITHMS, ROOT

SOURCES = {name: (ROOT / f"{name}.py").read_text() for name in ALGORITHMS}


def the_rest(algorithm: str) -> str:
    """What follows the line that says so."""
    source = SOURCES[algorithm]
    return source[source.index("# The rest is the same in every algorithm file") :]


def functions(source: str) -> dict[str, str]:
    """Source of every function and class at the top level."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    lines = source.splitlines()
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in nodes}


def argument_lines(source: str) -> dict[str, str]:
    """The line of every argument, with its help."""
    return dict(re.findall(r"^    (\w+)(: .*)$", functions(source)["Args"], re.MULTILINE))


def assert_same(a: dict[str, str], b: dict[str, str], except_for: set[str]) -> None:
    """Entries of the same name must be the same."""
    for name in sorted((a.keys() & b.keys()) - except_for):
        assert a[name] == b[name], f"{name} differs"


@pytest.mark.parametrize("algorithm", ["saq_cql", "saq_brac"])
def test_the_rest_of_a_file_is_identical(algorithm):
    assert the_rest(algorithm) == the_rest("saq_iql")


def test_the_rest_of_saq_bc_has_fewer_defaults_and_no_rewards():
    theirs, ours = functions(the_rest("saq_iql")), functions(the_rest("saq_bc"))
    assert list(ours) == [name for name in theirs if name != "reward_scale"]
    assert_same(ours, theirs, except_for={"fill_in_defaults"})


@pytest.mark.parametrize("algorithm", ALGORITHMS[2:])
def test_what_the_stories_repeat_is_identical(algorithm):
    theirs, ours = functions(SOURCES["saq_iql"]), functions(SOURCES[algorithm])
    assert ours["n_step_targets"] == theirs["n_step_targets"]
    for begin, end in {"# ---- 1. Codes": "# ---- 2.", "# ---- 2. Behavior policy": "# ---- 3."}.items():
        sections = [main[main.index(begin) : main.index(end)] for main in (theirs["main"], ours["main"])]
        assert sections[0] == sections[1], f"{begin} differs"
    assert functions(SOURCES["saq_cql"])["log_probs"] == functions(SOURCES["saq_brac"])["log_probs"]
    codes_of_bc = SOURCES["saq_bc"].partition("# ---- 1. Codes")[2].partition("# ---- 2.")[0]
    assert codes_of_bc in SOURCES[algorithm]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_arguments_of_the_same_name_have_the_same_default_and_help(algorithm):
    own = {"bc_steps", "rl_steps", "alpha", "weight_decay"}
    if algorithm == "saq_bc":
        own.add("action_mode")
    assert_same(argument_lines(SOURCES["saq_brac"]), argument_lines(SOURCES[algorithm]), except_for=own)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_file_imports_the_vqvae_and_tasks_only_in_load_task(algorithm):
    project = {path.stem for folder in (ROOT, ROOT / "benchmark", ROOT / "demo") for path in folder.glob("*.py")}
    imported = set()
    for statement in ast.parse(SOURCES[algorithm]).body:
        place = getattr(statement, "name", "")
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                imported |= {(alias.name, place) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module, place))
    of_the_project = {(name, place) for name, place in imported if name.partition(".")[0] in project | {"tasks"}}
    assert of_the_project == {("vqvae", ""), ("tasks", "load_task")}
