"""What the algorithm files repeat is identical to the letter, and each is as short as it promises."""

import ast
import itertools

import pytest
from conftest import ALGORITHMS, ROOT

BEGIN = "# ---- identical in every algorithm file"
END = 'if __name__ == "__main__":\n    args = '


def named(tree: ast.Module | ast.ClassDef, source: str, prefix: str = "") -> dict[str, str]:
    """Source of every function, method and argument by its name, of other statements but __main__ by their text."""
    found = {}
    for node in tree.body:
        text = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
        if isinstance(node, ast.ClassDef):
            header = ast.unparse(node).partition("\n")[0]
            found |= {f"{prefix}{node.name}": header} | named(node, source, f"{prefix}{node.name}.")
        elif isinstance(node, ast.AnnAssign):  # with the comment that is its help
            found[prefix + node.target.id] = text
        elif not isinstance(node, ast.If):
            found[prefix + getattr(node, "name", text)] = text
    return found


def differences(source_a: str, source_b: str) -> list[str]:
    """What must not differ between two algorithm files and does: names of functions, classes and arguments."""
    a, b = (named(ast.parse(source), source) for source in (source_a, source_b))
    own = {f"Method.{name}" for name in ("total_steps", "weight_decay", "temperature", "alpha", "acting")}
    own.add("policy_logits")  # each algorithm's own
    found = [name for name in (a.keys() & b.keys()) - own if a[name] != b[name]]
    shared = [source[source.index(BEGIN) : source.index(END)] for source in (source_a, source_b)]
    return sorted(found) or ["the section that begins with " + BEGIN] * (shared[0] != shared[1])


@pytest.mark.parametrize("pair", list(itertools.combinations(ALGORITHMS, 2)), ids=" and ".join)
def test_shared_code_is_identical(pair):
    """Of every pair, since some functions are shared by some files only."""
    drifted = differences(*((ROOT / f"{name}.py").read_text() for name in pair))
    assert not drifted, f"{pair[0]}.py and {pair[1]}.py differ in: {', '.join(drifted)}"


def test_the_way_of_acting_is_one_argument_with_a_default_of_saq_bcs_own():
    sources = [(ROOT / f"{algorithm}.py").read_text() for algorithm in ALGORITHMS]
    declared, *others = (named(ast.parse(source), source)["Method.acting"] for source in sources)
    assert '= "greedy"  #' in declared
    assert others == [declared.replace('= "greedy"', '= "mean"')] * 3


@pytest.mark.parametrize(
    "old, new, name",
    [
        ("step % 500 == 0", "step % 501 == 0", "Run.steps"),
        ("    def load(self):\n", "    def load(self):  # here\n", "Run.load"),
        ("hidden_dim), *[nn.LayerNorm", "hidden_dim), *2 * [nn.LayerNorm", "mlp"),
        ("2**63 - 1)] = 1  #", "2**63 - 1)] = 2  #", "Running.seed"),
        ("  # of networks, batches and evaluation episodes", "", "Running.seed"),
        ("    for _ in range(n - 1):", "    for _ in range(n):", "n_step_returns"),
        (END, f"# only here\n{END}", "the section"),
    ],
)
def test_drift_is_found_and_named(old, new, name):
    source, other = ((ROOT / f"saq_{algorithm}.py").read_text() for algorithm in ("iql", "cql"))
    assert source.count(old) == 1
    assert differences(source.replace(old, new), other)[0].startswith(name)


def test_an_algorithm_file_imports_the_vqvae_and_one_function_of_it_the_tasks():
    project = {path.stem for folder in (ROOT, ROOT / "benchmark", ROOT / "demo") for path in folder.glob("*.py")}
    for algorithm in ALGORITHMS:
        tree = ast.parse((ROOT / f"{algorithm}.py").read_text())
        places = {}
        for part in tree.body:
            for node in ast.walk(part):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                places |= {name: getattr(part, "name", None) for name in names}
        assert places.keys() & (project | {"tasks"}) == {"vqvae", "tasks"}
        assert places["tasks"] == "load_task"


def test_files_are_as_short_as_they_promise():
    for algorithm in ALGORITHMS:
        lines = (ROOT / f"{algorithm}.py").read_text().splitlines()
        assert len(lines) <= 400
        assert next(i for i, line in enumerate(lines, 1) if line.startswith("def ") and "_loss(" in line) < 130
    assert len((ROOT / "vqvae.py").read_text().splitlines()) <= 390


@pytest.mark.parametrize("algorithm", ["saq_cql", "saq_brac"])
def test_what_the_stories_repeat_is_identical(algorithm):
    """Machine, steps by the data, codebook, behavior policy, and the rule for gamma, n and the scale of rewards."""
    sections = {
        "    device = ": "    data, task",
        "    steps = min(": "load_weights(args.vqvae_path)",
        "    # The codebook": "behavior_step(ema_weight",
        "A horizon h, mean": 'data["next_observations"][last]',
    }
    ours, theirs = ((ROOT / f"{name}.py").read_text() for name in (algorithm, "saq_iql"))
    for begin, end in sections.items():
        a, b = (source[source.index(begin) : source.index(end, source.index(begin))] for source in (ours, theirs))
        assert a == b, f"{algorithm}.py and saq_iql.py differ after {begin}"
