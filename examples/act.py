"""Evaluate a finished run of any saq_*.py, in its own action mode or in another one.

    python examples/act.py RUN                           # e.g. runs/hopper-medium-v2__saq_cql__1__...
    python examples/act.py RUN --action-mode greedy

Prints the return of each episode and the mean score, and keeps them as eval_{action_mode}.npz in the run's folder. Same
episodes and seed as the run: same episodes as in its last evaluation.
"""

import sys
from collections.abc import Callable
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

Policy = Callable[[torch.Tensor, str, torch.Generator | None], torch.Tensor]


@dataclass
class Args:
    run: Annotated[Path, tyro.conf.Positional]  # folder of a finished run
    action_mode: Literal["mean", "greedy", "sampled"] | None = None  # None: as in the run
    episodes: int = 100
    seed: int = 1


def load_policy(folder: str | Path) -> tuple[Policy, dict[str, Any]]:
    """The policy of a finished run, on the CPU.

    Returns:
        policy: a function of observations (B, observation_dim) float32, an action mode (mean, greedy or sampled) and a
            generator, which only sampled needs. It returns actions (B, action_dim), scaled to [-1, 1].
        model: the content of model.pt: algorithm, args, weights, and action_low and action_high, the bounds of the
            environment's actions.

    Raises:
        OSError: if the folder is not the one of a finished run.
    """
    folder = Path(folder)
    vqvae = VQVAE.load(folder / "vqvae.pt")
    try:
        model = torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
        algorithm, args = model["algorithm"], SimpleNamespace(**model["args"])
        if algorithm not in ("saq_bc", "saq_iql", "saq_cql", "saq_brac"):
            raise ValueError(f"it is a run of {algorithm}")
        behavior = mlp(vqvae.standardize, args.codebook_size, args)
        behavior.load_state_dict(model["behavior"])
        if algorithm != "saq_bc":
            q = mlp(vqvae.standardize, args.codebook_size, args)
            q.load_state_dict(model["q"])
    except Exception as error:  # damaged files fail in many ways
        raise OSError(f"{folder} does not contain a readable model.pt of saq_*.py ({error!r:.200})") from error

    def logits(obs):
        if algorithm == "saq_bc":
            return behavior(obs)
        if algorithm == "saq_iql":
            return saq_iql.policy_logits(q(obs), behavior(obs), args.temperature, args.min_log_pi_b)
        if algorithm == "saq_cql":
            return q(obs) + behavior(obs)
        return saq_brac.policy_logits(q(obs), behavior(obs).log_softmax(1), args.alpha)

    @torch.no_grad()
    def policy(observations, action_mode, generator=None):
        return vqvae.act(observations, logits(observations), action_mode, generator)

    return policy, model


def main(args: Args) -> dict[str, np.ndarray]:
    try:
        policy, model = load_policy(args.run)
        result = evaluate(policy, model, args)
    except (tasks.TaskError, OSError) as error:
        fail(error)
    for episode, (episode_return, length) in enumerate(zip(result["returns"], result["lengths"])):
        print(f"episode {episode}: return {episode_return:.2f}, {length} steps")
    action_mode = args.action_mode or model["args"]["action_mode"]
    path = args.run / f"eval_{action_mode}.npz"
    replace_file(path, lambda file: np.savez(file, **result))
    print(f"mean score {result['scores'].mean():.1f}; kept as {path}")
    return result


def evaluate(policy: Policy, model: dict[str, Any], args: Args) -> dict[str, np.ndarray]:
    """Seeds, returns, lengths and scores of episodes in the run's environment."""
    run = SimpleNamespace(**model["args"])
    task = tasks.make(run.env_id, run.dataset_path, **{name: getattr(run, name) for name in tasks.OPTIONS})
    if not task.has_env:  # then the evaluation is on trajectories that the dataset holds out
        task.dataset()
    generator = torch.Generator().manual_seed(args.seed)

    def act(observations):
        return policy(torch.from_numpy(observations), args.action_mode or run.action_mode, generator).numpy()

    return task.evaluate(act, args.episodes, args.seed)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
