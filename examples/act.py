"""Evaluate a finished run of any saq_*.py, in its own action mode or in another one.

    python examples/act.py RUN                           # e.g. runs/hopper-medium-v2__saq_cql__1__...
    python examples/act.py RUN --action-mode greedy

Prints the return of each episode and the mean score, and saves them as eval_{action_mode}.npz in the run's folder. By
default the episodes are those of the run's last evaluation.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import saq_brac
import saq_iql
import tasks
from saq_bc import fail, mlp
from vqvae import VQVAE, replace_file


@dataclass
class Args:
    run: Annotated[list[Path], tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]  # folder of a finished run
    action_mode: Literal["mean", "greedy", "sampled"] | None = None  # None: as in the run
    episodes: int | None = None  # None: as many as in the run's last evaluation
    seed: int | None = None  # None: the run's


class Policy(torch.nn.Module):
    """The policy of a finished run, from its VQ-VAE and the content of its model.pt."""

    def __init__(self, vqvae: VQVAE, model: dict[str, Any]):
        super().__init__()
        self.vqvae, self.algorithm, self.args = vqvae, model["algorithm"], SimpleNamespace(**model["args"])
        if self.algorithm not in ("saq_bc", "saq_iql", "saq_cql", "saq_brac"):
            raise ValueError(f"it is from {self.algorithm}, not from one of saq_*.py")
        self.behavior = mlp(vqvae.standardize, self.args.codebook_size, self.args)
        self.behavior.load_state_dict(model["behavior"])
        if self.algorithm != "saq_bc":
            self.q = mlp(vqvae.standardize, self.args.codebook_size, self.args)
            self.q.load_state_dict(model["q"])

    def logits(self, observations: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of the policy over codes."""
        behavior_logits = self.behavior(observations)
        if self.algorithm == "saq_bc":
            return behavior_logits
        q = self.q(observations)
        if self.algorithm == "saq_iql":
            return saq_iql.policy_logits(q, behavior_logits, self.args.temperature, self.args.min_log_pi_b)
        if self.algorithm == "saq_cql":
            return q + behavior_logits
        return saq_brac.policy_logits(q, behavior_logits.log_softmax(1), self.args.alpha)

    @torch.no_grad()
    def forward(
        self, observations: torch.Tensor, action_mode: str, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return self.vqvae.act(observations, self.logits(observations), action_mode, generator)


def load_policy(folder: str | Path) -> tuple[Policy, dict[str, Any]]:
    """The policy of a finished run, on the CPU.

    Returns:
        policy: a function of observations (B, observation_dim), a float32 tensor, an action mode (mean, greedy or
            sampled) and a generator, which only sampled needs. It returns actions (B, action_dim), scaled to [-1, 1].
        model: the content of model.pt: algorithm, args, weights, and action_low and action_high, the bounds of the
            environment's actions.

    Raises:
        OSError: if the folder is not the one of a finished run.
    """
    folder = Path(folder).expanduser()
    vqvae = VQVAE.load(folder / "vqvae.pt")
    try:
        model = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        return Policy(vqvae, model), model
    except Exception as error:  # damaged files fail in many ways
        raise OSError(f"{folder} does not contain a readable model.pt of saq_*.py ({error!r:.200})") from error


def find_run(folders: list[Path]) -> Path:
    """The folder of the one run on the command line, where a pattern can match several runs or none."""
    if len(folders) == 1 and folders[0].expanduser().is_dir():
        return folders[0].expanduser()
    if len(folders) == 1:
        fail(f"name the folder of one run; {folders[0]} is no folder")
    fail(f"name the folder of one run; there are {len(folders)}")


def main(args: Args) -> dict[str, np.ndarray]:
    folder = find_run(args.run)
    try:
        policy, _ = load_policy(folder)
        result = evaluate(policy, args)
    except (tasks.TaskError, OSError) as error:
        fail(error)
    for episode, (episode_return, length) in enumerate(zip(result["returns"], result["lengths"])):
        print(f"episode {episode}: return {episode_return:.2f}, {length} steps")
    action_mode = args.action_mode or policy.args.action_mode
    path = folder / f"eval_{action_mode}.npz"
    replace_file(path, lambda file: np.savez(file, **result))
    print(f"mean score {result['scores'].mean():.1f}; saved to {path}")
    return result


def make_task(run: SimpleNamespace) -> tasks.Task:
    """The task of a run with these arguments."""
    return tasks.make(run.env_id, run.dataset_path, **{name: getattr(run, name) for name in tasks.OPTIONS})


def evaluate(policy: Policy, args: Args) -> dict[str, np.ndarray]:
    """Seeds, returns, lengths and scores of episodes in the run's environment."""
    run = policy.args
    seed = run.seed if args.seed is None else args.seed
    task = make_task(run)
    if not task.has_env:  # then the evaluation is on trajectories that the dataset holds out
        task.dataset()
    generator = torch.Generator().manual_seed(seed)

    def act(observations):
        return policy(torch.from_numpy(observations), args.action_mode or run.action_mode, generator).numpy()

    return task.evaluate(act, args.episodes or run.final_eval_episodes, seed)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
