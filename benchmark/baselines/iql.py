"""IQL: implicit Q-learning with advantage-weighted regression, the continuous counterpart of SAQ-IQL.

    V           mean |expectile - 1(u < 0)| u^2,  u = min Q_target(s, a) - V(s)
    Q           mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2,  y = w r + gamma (1 - terminal) V(s')
    policy      mean -min (exp (beta u), 100) log pi(a|s),  pi(a|s) = N(mean(s), diag std^2);  acts by its mean

Kostrikov et al., ICLR 2022, equations 5 to 7. Departs from it where saq_iql.py departs from SAQ-IQL's paper, each by a
flag: n-step targets, gamma and the reward factor w by one rule for every task, observations standardized, every network
layer-normalized, weight decay, an average of the policy's weights acts, beta is about 1 / SAQ-IQL's temperature; no
cosine schedule, no dropout. Data, evaluation and outputs are those of saq_iql.py.

    python benchmark/baselines/iql.py                                # this repository's demo dataset
    python benchmark/baselines/iql.py --env-id hopper-medium-v2      # or another id that `python -m tasks` lists
"""

import copy
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the slow imports without a word

import torch
import torch.nn as nn
from bc import GaussianPolicy, default_steps
from cql import TwinQ, n_step_transitions

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_iql import Auto, Batch, Count, Fraction, Positive, Run, Weight, load_task, mlp, parse_args
from vqvae import Standardize, ema_weight, follow, gradient_step, minimize


class Method(NamedTuple):
    total_steps: Auto = None  # gradient steps of Q, V and policy; default twice 0.15 a transition, from 6000 to 100,000
    batch_size: Count = 256  # transitions per gradient step
    hidden_dim: Count = 256  # width of the hidden layers of every network
    learning_rate: Positive = 3e-3  # of every network (the paper: 3e-4)
    weight_decay: Weight = 1e-3  # AdamW's, for Q (the paper: 0)
    standardize: bool = True  # standardize observations with the dataset's mean and deviation (the paper: raw)
    layer_norm: bool = True  # normalize the hidden layers of every network (the paper: no)
    ema_decay: Fraction = 0.9995  # decay of the averaged weights, which act; 0: last weights (the paper)
    gamma: Annotated[float | None, (0, 1)] = None  # discount; default: 1 - 1/h, h: mean trajectory, play: limit / 4
    n_step: Auto = None  # rewards per target; default: h / 50, 1 in play data (the paper: 1)
    value_scale: Weight = 100.0  # largest discounted return of the data after scaling rewards; 0: no scaling
    expectile: Fraction = 0.7  # of V over the actions of the data; 0.5: their mean
    beta: Weight = 0.3  # inverse temperature of the weights: 0 imitates, high follows Q (the paper: 3 for locomotion)
    tau: Fraction = 0.05  # weight of Q in each Polyak update of its target network (the paper: 0.005)
    acting: Literal["mean", "sampled"] = "mean"  # the policy's mean, or a sample


def iql_loss(
    q: TwinQ, q_target: TwinQ, v: nn.Module, actor: GaussianPolicy, batch: Batch, expectile: float, beta: float
) -> Batch:
    """IQL's three losses (Kostrikov et al., 2022, equations 5 to 7), which share no parameter, as one sum.

    Args:
        v: maps observations to values (B, 1) of the states.
        batch: as `n_step_transitions` has it, B rows.

    Returns:
        Scalars: `loss` to minimize, its parts `v_loss`, `q_loss`, `actor_loss`, and the means `v_values`, `q_values`.
    """
    observations, actions = batch["observations"], batch["actions"]
    with torch.no_grad():
        targets = batch["returns"] + batch["discounts"] * v(batch["next_observations"]).squeeze(1)
        target_taken = q_target(observations, actions).amin(0)
    values = v(observations).squeeze(1)
    taken = q(observations, actions)
    u = target_taken - values
    weights = (beta * u.detach()).exp().clamp(max=100.0)
    v_loss = (torch.where(u < 0, 1.0 - expectile, expectile) * u.square()).mean()
    q_loss = (taken - targets).square().mean(1).sum()
    actor_loss = -(weights * actor.log_prob(observations, actions)).mean()
    parts = {"v_loss": v_loss.detach(), "q_loss": q_loss.detach(), "actor_loss": actor_loss.detach()}
    means = {"v_values": values.detach().mean(), "q_values": taken.detach().mean()}
    return {"loss": v_loss + q_loss + actor_loss, **parts, **means}


if __name__ == "__main__":
    args = parse_args(Method)
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, and on a CPU that has it
    torch.set_flush_denormal(True)  # moments of dead units get subnormal, which slows a CPU down
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # more are faster on idle cores, and several times slower on cores that others use
    torch.manual_seed(args.seed)
    generator = torch.Generator(device).manual_seed(args.seed)
    data, task = load_task(args)
    data = {name: torch.from_numpy(column).to(device) for name, column in data.items()}
    args.total_steps = args.total_steps or 2 * default_steps(len(data["actions"]))
    standardize, action_dim = Standardize.for_data(data["observations"], args.standardize), data["actions"].shape[1]

    q = TwinQ(standardize, action_dim, args.hidden_dim, args.layer_norm).to(device)
    v = mlp(standardize, 1, args.hidden_dim, args.layer_norm).to(device)
    actor = GaussianPolicy(standardize, action_dim, args.hidden_dim, args.layer_norm).to(device)
    q_target, actor_acting = copy.deepcopy(q), copy.deepcopy(actor)
    no_decay = [*v.parameters(), *actor.parameters()]
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    adam = adamw([{"params": q.parameters()}, {"params": no_decay, "weight_decay": 0.0}])
    networks = {"q": q, "q_target": q_target, "v": v, "actor": actor, "actor_acting": actor_acting}
    run = Run(args, task, nn.ModuleDict(networks), [adam], generator)
    transitions, facts = n_step_transitions(args, data, task)

    @gradient_step(adam, generator, len(data["actions"]), args.batch_size, args.compile)
    def iql_step(rows: torch.Tensor, ema: torch.Tensor) -> Batch:
        batch = {name: column[rows] for name, column in transitions.items()}
        metrics = iql_loss(q, q_target, v, actor, batch, args.expectile, args.beta)
        minimize(metrics["loss"], adam)
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema)
        return metrics

    for step in run.steps("rl", args.total_steps, "losses/"):
        run.metrics = iql_step(ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(actor_acting.act, args.acting, args.eval_episodes, step)

    run.finish(actor_acting.act, ("mean", "sampled"), {"q": q, "v": v, "actor": actor_acting}, facts)
