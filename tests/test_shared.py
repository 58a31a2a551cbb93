"""What the algorithm files repeat is identical to the letter."""

import ast
import itertools

import pytest
from conftest import ALGORITHMS, ROOT

BEGIN = "# ---- shared by all algorithm files, identical to the letter -"
END = "# ---- end of the shared section -"
# arguments that every file, or every file with the phase they belong to, has
COMMON = ["env_id", "dataset_path", "seed", "vqvae_steps", "bc_steps", "batch_size", "codebook_size", "hidden_dim"]
COMMON += ["standardize", "restart_every", "learning_rate", "gamma", "tau", "eval_episodes", "final_eval_episodes"]
COMMON += [
    "layer_norm",
    "ema_decay",
    "checkpoint_every",
    "runs_dir",
    "resume",
    "vqvae_path",
    "device",
    "compile",
    "track",
    "capture_video",
]


def named(tree: ast.Module | ast.ClassDef, source: str, prefix: str = "") -> dict[str, str]:
    """Source of every function and method by its name, of a class's and the file's other statements by their text."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name != "Args":
            header = ast.unparse(node).partition("\n")[0]
            found |= {f"{prefix}{node.name}": header} | named(node, source, f"{prefix}{node.name}.")
            continue
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        text = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
        found[prefix + getattr(node, "name", text)] = text
    return found


def differences(source_a: str, source_b: str) -> list[str]:
    """What must not differ between two algorithm files and does: names of functions, classes and arguments."""
    shared = [source[source.index(BEGIN) : source.index(END)] for source in (source_a, source_b)]
    a, b = (named(ast.parse(part), part) for part in shared)
    found = [name for name in a.keys() | b.keys() if a.get(name) != b.get(name)]
    if shared[0] != shared[1] and not found:
        found.append("comments, blank lines or order")
    # Outside the section: what two files repeat by name, but for what is each algorithm's own.
    a, b = (named(ast.parse(source), source) for source in (source_a, source_b))
    own = {"Args", "policy_logits"}
    found += [name for name in (a.keys() & b.keys()) - own if a[name] != b[name] and name not in found]
    for name in COMMON:
        fields = [field(source["Args"], name) for source in (a, b)]
        if None not in fields and fields[0] != fields[1]:
            found.append(f"Args.{name}")
    return sorted(found)


def field(source: str, name: str) -> tuple[str, str] | None:
    """Declaration and docstring of an argument."""
    (arguments,) = ast.parse(source).body
    for node, doc in itertools.pairwise(arguments.body):
        if isinstance(node, ast.AnnAssign) and node.target.id == name:
            return ast.unparse(node), ast.unparse(doc)
    return None


@pytest.mark.parametrize("pair", list(itertools.combinations(ALGORITHMS, 2)), ids=" and ".join)
def test_shared_code_is_identical(pair):
    """Of every pair, since some functions are shared by some files only."""
    drifted = differences(*((ROOT / f"{name}.py").read_text() for name in pair))
    assert not drifted, f"{pair[0]}.py and {pair[1]}.py differ in: {', '.join(drifted)}"


def test_the_way_of_acting_is_one_argument_with_a_default_of_saq_bcs_own():
    sources = [(ROOT / f"{algorithm}.py").read_text() for algorithm in ALGORITHMS]
    (declared, doc), *others = (field(named(ast.parse(source), source)["Args"], "acting") for source in sources)
    assert declared.endswith("= 'greedy'")
    assert others == [(declared.removesuffix("'greedy'") + "'mean'", doc)] * 3


@pytest.mark.parametrize(
    "old, new, name",
    [
        ("min(episodes, 10)", "min(episodes, 11)", "evaluate"),
        ("LOG_EVERY = 500 ", "LOG_EVERY = 501 ", "LOG_EVERY"),
        (
            "    def load_checkpoint(self) -> None:\n",
            "    def load_checkpoint(self) -> None:  # here\n",
            "Run.load_checkpoint",
        ),
        ("F.cross_entropy(behavior(observations), codes)", "F.cross_entropy(behavior(0), codes)", "behavior_loss"),
        ("seed: int = 1\n", "seed: int = 2\n", "Args.seed"),
        (END, f"# only here\n{END}", "comments"),
    ],
)
def test_drift_is_found_and_named(old, new, name):
    source = (ROOT / "saq_iql.py").read_text()
    assert source.count(old) == 1
    assert any(drifted.startswith(name) for drifted in differences(source, source.replace(old, new)))


def test_an_algorithm_file_imports_nothing_of_the_project_but_the_vqvae():
    project = {path.stem for folder in (ROOT, ROOT / "benchmark", ROOT / "demo") for path in folder.glob("*.py")}
    for algorithm in ALGORITHMS:
        nodes = list(ast.walk(ast.parse((ROOT / f"{algorithm}.py").read_text())))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert imported & project == {"vqvae"}
