"""BRAC with value penalty: behavior-regularized actor-critic, the continuous counterpart of SAQ-BRAC.

    behavior    mean -log pi_b(a|s),  before Q-learning
    target      y = w r + gamma (1 - terminal) (min Q_target(s', a') - alpha KL(pi(.|s') || pi_b(.|s'))),  a' ~ pi(.|s')
    Q           mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    policy      mean (alpha KL(pi(.|s) || pi_b(.|s)) - min Q(s, a)),  a ~ pi(.|s)

pi and pi_b are Gaussians behind the same tanh, a bijection, so that their KL is that of the Gaussians and has a closed
form, where BRAC (Wu et al., 2019, section 3) estimates it from samples. pi starts as pi_b. Departs from BRAC where
saq_brac.py departs from the paper, each by a flag: n-step targets, gamma and reward factor w by one rule for all tasks,
observations standardized, every network layer-normalized, weight decay, an average of the weights acts. Data,
evaluation and outputs are those of saq_brac.py.

    python benchmark/baselines/brac.py                                # this repository's demo dataset
    python benchmark/baselines/brac.py --env-id hopper-medium-v2      # or another id that `python -m tasks` lists
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

import numpy as np
import torch
import torch.nn as nn
from bc import default_steps
from cql import TanhGaussianPolicy, TwinQ, n_step_transitions
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from saq_brac import Auto, Batch, Count, Fraction, Positive, Run, Weight, load_task, parse_args
from vqvae import Standardize, ema_weight, follow, gradient_step, minimize


class Method(NamedTuple):
    bc_steps: Annotated[int | None, (0, np.inf)] = None  # steps of the behavior policy; default: as total_steps
    total_steps: Auto = None  # gradient steps of Q and policy; default: 0.15 per transition, 3000 to 50,000
    batch_size: Count = 256  # transitions per gradient step
    hidden_dim: Count = 256  # width of the hidden layers of every network
    learning_rate: Positive = 3e-3  # of every network (the paper: 3e-4)
    weight_decay: Weight = 1e-3  # AdamW's, for Q and behavior policy
    standardize: bool = True  # standardize observations with the dataset's mean and deviation (the paper: raw)
    layer_norm: bool = True  # normalize the hidden layers of every network (the paper: no)
    ema_decay: Fraction = 0.9995  # decay of the averaged weights, which act; 0: last weights (the paper)
    gamma: Annotated[float | None, (0, 1)] = None  # discount; default: 1 - 1/h, h: mean trajectory, play: limit / 4
    n_step: Auto = None  # rewards per target; default: h / 50, 1 in play data (the paper: 1)
    value_scale: Weight = 100.0  # largest discounted return of the data after scaling rewards; 0: no scaling
    alpha: Positive = 3.0  # weight of the KL from the behavior policy, in the policy's loss and in the target
    tau: Fraction = 0.05  # weight of Q in each Polyak update of its target network (the paper: 0.005)
    acting: Literal["mean", "sampled"] = "mean"  # the policy's mean, or a sample


def behavior_loss(behavior: TanhGaussianPolicy, observations: torch.Tensor, actions: torch.Tensor) -> Batch:
    """Negative log-likelihood, in nats, of the dataset's actions (B, action_dim) at (B, observation_dim)."""
    return {"loss": -behavior.log_prob(behavior(observations), actions.atanh()).mean()}


def brac_loss(
    q: TwinQ,
    q_target: TwinQ,
    actor: TanhGaussianPolicy,
    behavior: TanhGaussianPolicy,
    batch: Batch,
    noise: torch.Tensor,
    alpha: float,
) -> Batch:
    """Losses of Q and policy (Wu et al., 2019, section 3) as one sum: neither's gradient reaches the other's weights.

    Args:
        batch: as `n_step_transitions` has it, B rows.
        noise: (2, B, action_dim) float32, standard normal: of the actions at s and at s'.

    Returns:
        Scalars: `loss` to minimize, its parts `q_loss` and `actor_loss`, the mean `kl` at s, and `q_values`, the mean Q
        of the actions taken.
    """
    observations, next_observations = batch["observations"], batch["next_observations"]
    with torch.no_grad():
        normal = actor(next_observations)
        kl = torch.distributions.kl_divergence(normal, behavior(next_observations)).sum(1)
        next_actions = (normal.mean + normal.stddev * noise[1]).tanh()
        next_values = q_target(next_observations, next_actions).amin(0) - alpha * kl
        targets = batch["returns"] + batch["discounts"] * next_values
        behavior_normal = behavior(observations)
    taken = q(observations, batch["actions"])
    q_loss = (taken - targets).square().mean(1).sum()
    normal = actor(observations)
    kl = torch.distributions.kl_divergence(normal, behavior_normal).sum(1)
    fixed = {name: parameter.detach() for name, parameter in q.named_parameters()}
    chosen = (normal.mean + normal.stddev * noise[0]).tanh()
    actor_loss = (alpha * kl - functional_call(q, fixed, (observations, chosen)).amin(0)).mean()
    parts = {"q_loss": q_loss.detach(), "actor_loss": actor_loss.detach(), "kl": kl.detach().mean()}
    return {"loss": q_loss + actor_loss, **parts, "q_values": taken.detach().mean()}


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
    args.bc_steps = default_steps(len(data["actions"])) if args.bc_steps is None else args.bc_steps
    args.total_steps = args.total_steps or default_steps(len(data["actions"]))
    standardize, action_dim = Standardize.for_data(data["observations"], args.standardize), data["actions"].shape[1]

    sizes = standardize, action_dim, args.hidden_dim, args.layer_norm
    behavior, q = TanhGaussianPolicy(*sizes).to(device), TwinQ(*sizes).to(device)
    behavior_acting, q_target, actor, actor_acting = map(copy.deepcopy, (behavior, q, behavior, behavior))
    adamw = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=args.weight_decay, fused=True)
    behavior_adam = adamw(behavior.parameters())
    adam = adamw([{"params": q.parameters()}, {"params": actor.parameters(), "weight_decay": 0.0}])
    networks = {"behavior": behavior, "behavior_acting": behavior_acting, "q": q, "q_target": q_target}
    networks |= {"actor": actor, "actor_acting": actor_acting}
    run = Run(args, task, nn.ModuleDict(networks), [behavior_adam, adam], generator)
    settings = generator, len(data["actions"]), args.batch_size, args.compile

    # The behavior policy.
    @gradient_step(behavior_adam, *settings)
    def behavior_step(rows: torch.Tensor, ema: torch.Tensor) -> Batch:
        metrics = behavior_loss(behavior, data["observations"][rows], data["actions"][rows])
        minimize(metrics["loss"], behavior_adam)
        follow(behavior_acting, behavior, ema)
        return metrics

    for step in run.steps("bc", args.bc_steps, "losses/bc_"):
        run.metrics = behavior_step(ema_weight(args.ema_decay, step))

    # Behavior-regularized Q-learning.
    transitions, facts = n_step_transitions(args, data, task)
    noise = partial(torch.randn, 2, args.batch_size, action_dim, generator=generator, device=device)

    @gradient_step(adam, *settings, noise)
    def brac_step(rows: torch.Tensor, noise: torch.Tensor, ema: torch.Tensor) -> Batch:
        batch = {name: column[rows] for name, column in transitions.items()}
        metrics = brac_loss(q, q_target, actor, behavior_acting, batch, noise, args.alpha)
        minimize(metrics["loss"], adam)
        follow(q_target, q, args.tau)
        follow(actor_acting, actor, ema)
        return metrics

    for step in run.steps("rl", args.total_steps, "losses/"):
        if step == 1:
            actor.load_state_dict(behavior_acting.state_dict())
        run.metrics = brac_step(ema_weight(args.ema_decay, step))
        if step % args.eval_every == 0 and step < args.total_steps:
            run.evaluate(actor_acting.act, args.acting, args.eval_episodes, step)

    modules = {"q": q, "actor": actor_acting, "behavior": behavior_acting}
    run.finish(actor_acting.act, ("mean", "sampled"), modules, facts)
