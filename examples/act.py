"""Act with a finished run of any saq_*.py: replay the first episodes of its evaluation and print their returns.

A run of `--acting sampled` starts alike and draws other codes.

python examples/act.py RUN_DIR [EPISODES]
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tasks
from saq_bc import mlp
from vqvae import VQVAE

run, episodes = Path(*sys.argv[1:2] or sys.exit(__doc__)), int((sys.argv[2:] or ["3"])[0])
vqvae = VQVAE.load(run / "vqvae.pt")
model = torch.load(run / "model.pt", map_location="cpu", weights_only=True)
args = model["args"]
networks = {}
for name in {"behavior", "q"} & set(model):  # SAQ-BC has no Q
    networks[name] = mlp(vqvae.standardize, args["codebook_size"], args["hidden_dim"], args["layer_norm"])
    networks[name].load_state_dict(model[name])
temperature = args.get("temperature", 1.0 if "backup" in args else args.get("alpha"))  # SAQ-CQL: 1; SAQ-BRAC: alpha
source = {name: args[name] for name in ("env_id", "dataset_path", "dataset_filter", "observation_keys")}
env = tasks.make(**source, max_episode_steps=args["max_episode_steps"]).env()
for episode in range(episodes):
    (observation, _), total, ended = env.reset(seed=(10_000 * args["seed"] + episode) % 2**32), 0.0, False
    while not ended:
        with torch.no_grad():
            seen = torch.as_tensor(observation, dtype=torch.float32)[None]
            logits = networks["behavior"](seen).log_softmax(1).clamp(min=args.get("behavior_floor", -torch.inf))
            if "q" in networks:
                logits += networks["q"](seen) / temperature
            action = vqvae.act(seen, logits, args["acting"])[0].clamp(-1, 1)
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        total, ended = total + float(reward), terminated or truncated
    print(f"episode {episode}: return {total:.2f}")
