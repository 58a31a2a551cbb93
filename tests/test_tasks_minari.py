"""Minari datasets, collected here with Minari's own collector on real environments, against Minari's own episodes."""

import contextlib
import io
import json
import re
import shutil
import sys
import types
import warnings
from collections import OrderedDict

import gymnasium as gym
import h5py
import numpy as np
import pytest
from conftest import ROOT

import tasks


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder with datasets of random policies: FrankaKitchen, an AntMaze, Hopper, a pendulum without step limit."""
    minari = pytest.importorskip("minari")
    pytest.importorskip("jax")
    with contextlib.redirect_stderr(io.StringIO()):
        import gymnasium_robotics
    gym.register_envs(gymnasium_robotics)
    folder, patch = tmp_path_factory.mktemp("minari"), pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(folder))
    warnings.simplefilter("ignore")  # Minari warns about missing author and code; pytest restores the filters

    def collect(dataset_id, env, episodes, steps, **kwargs):
        rng, env = np.random.default_rng(0), minari.DataCollector(env)
        for seed in range(episodes):
            env.reset(seed=seed)
            for _ in range(steps):
                space = env.action_space
                action = rng.uniform(space.low, space.high).astype(space.dtype) if hasattr(space, "low") else 0
                if any(env.step(action)[2:4]):
                    break
        env.create_dataset(dataset_id, algorithm_name="random", author="test", **kwargs)
        env.close()

    goals = ["microwave", "kettle"]
    kitchen = gym.make("FrankaKitchen-v1", tasks_to_complete=goals, max_episode_steps=30)
    shorter = gym.make("FrankaKitchen-v1", tasks_to_complete=goals, max_episode_steps=20)
    collect("test/kitchen/random-v0", kitchen, 4, 30, eval_env=shorter, ref_min_score=0.0, ref_max_score=2.0)
    collect("test/antmaze/random-v1", gym.make("AntMaze_UMaze-v5", max_episode_steps=40), 3, 100)
    collect("hopper-random-v0", gym.make("Hopper-v5"), 12, 15)
    collect("test/endless-v0", gym.make("Pendulum-v1", max_episode_steps=-1), 2, 25)
    collect("test/discrete-v0", gym.make("CartPole-v1"), 1, 5)
    collect("test/cut-v0", gym.make("Hopper-v5"), 2, 5)
    with h5py.File(folder / "test" / "cut-v0" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/actions"]
    spec = {"action_space": gym.spaces.Box(0.5, 1.0, (1,)), "observation_space": gym.spaces.Box(-9, 9, (3,))}
    minari.create_dataset_from_buffers("test/empty-v0", [], env="Pendulum-v1", **spec)
    yield folder
    patch.undo()


def load(dataset_id):
    task = tasks.make(dataset_id)
    return task, task.dataset()


@pytest.mark.parametrize("dataset_id", ["test/kitchen/random-v0", "test/antmaze/random-v1", "hopper-random-v0"])
def test_transitions_match_minaris_episodes(datasets, dataset_id):
    import minari

    task, data = load(dataset_id)
    stored = minari.load_dataset(dataset_id)
    expected, returns = [], []
    for episode in stored.iterate_episodes():
        returns.append(episode.rewards.sum())
        for t in range(len(episode)):
            now, after = (
                gym.spaces.flatten(stored.observation_space, pick(episode.observations, t + i)) for i in (0, 1)
            )
            expected.append((now, episode.actions[t], episode.rewards[t], episode.terminations[t], after))
    assert len(data["ends"]) == stored.total_steps == len(expected)
    for key, theirs in zip(("observations", "actions", "rewards", "terminals", "next_observations"), zip(*expected)):
        limit = 0.999 if key == "actions" else np.inf
        np.testing.assert_allclose(data[key], np.clip(np.array(theirs), -limit, limit), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(task.dataset_returns, returns)
    lengths = np.diff(np.flatnonzero(data["ends"]), prepend=-1)
    assert lengths.tolist() == [len(episode) for episode in stored.iterate_episodes()]
    terminal = sum(episode.terminations[-1] for episode in stored.iterate_episodes())
    assert data["terminals"].sum() == (terminal if "hopper" in dataset_id else 0)
    ours, theirs = task.env(), stored.recover_environment(eval_env=True)
    theirs.reset(seed=0), ours.reset(seed=0)
    action = ours.action_space.sample()
    expected = gym.spaces.flatten(stored.observation_space, theirs.step(action)[0])
    np.testing.assert_allclose(ours.step(action)[0], expected, atol=1e-6)  # the same entries in the same order


def pick(observations, t):
    """Time step t of an episode's observations, which are an array or a dict of them."""
    if isinstance(observations, dict):
        return {key: pick(values, t) for key, values in observations.items()}
    return observations[t]


def test_hopper_has_terminals_and_time_outs(datasets):
    _, data = load("hopper-random-v0")
    terminals = data["terminals"] == 1
    assert data["ends"].sum() == 12
    assert 0 < terminals.sum() < 12 and not (terminals & ~data["ends"]).any()


def test_scores_use_the_reference_returns_or_are_returns(datasets):
    task = tasks.make("test/kitchen/random-v0")
    assert task.score(np.array([0.0, 1.0, 2.0])).tolist() == [0.0, 50.0, 100.0]
    task = tasks.make("hopper-random-v0")
    assert task.score(np.array([0.0, 24.0])).tolist() == [0.0, 24.0]


def test_evaluation_uses_the_evaluation_environment_and_is_seeded(datasets):
    task, data = load("test/kitchen/random-v0")
    assert (task.max_episode_steps, task.eval_episodes, task.processes) == (20, 100, True)
    weights = np.random.default_rng(0).normal(size=(data["observations"].shape[1], 9))
    first, second = (task.evaluate(lambda observations: np.tanh(observations @ weights), 3) for _ in range(2))
    assert first["lengths"].tolist() == [20, 20, 20]  # the data: 30
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize("dataset_id", ["test/kitchen/random-v0", "test/endless-v0"])
def test_max_episode_steps_replaces_the_datasets_limit(datasets, dataset_id):
    env = tasks.make(dataset_id, max_episode_steps=3).env()
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]


def test_without_a_step_limit_the_longest_episode_sets_it(datasets):
    task = tasks.make("test/endless-v0")
    env = task.env()
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(25)] == [False] * 24 + [True]


class Reach(gym.Env):
    """Move the hand to the goal. The keys of its observations are not in alphabetical order."""

    def __init__(self, odd=False):
        box = gym.spaces.Box(-2, 2, (2,), np.float64)
        self.observation_space = gym.spaces.Dict(OrderedDict([("palm" if odd else "hand", box), ("goal", box)]))
        self.action_space = gym.spaces.Box(np.float32([-1, -0.01]), np.float32([1, 0.01]))  # the second in other units

    def seen(self):
        return dict(zip(self.observation_space, (self.hand.copy(), self.goal.copy())))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.hand, self.goal = np.zeros(2), self.np_random.uniform(-1, 1, 2)
        return self.seen(), {}

    def step(self, action):
        self.hand = self.hand + 0.1 * action * [1, 100]
        near = bool(np.linalg.norm(self.hand - self.goal) < 0.1)
        return self.seen(), float(near), near, False, {}


@pytest.fixture
def reach(datasets, monkeypatch):
    """Ids of two expert datasets of Reach. The evaluation environment of the second has another key."""
    import minari

    monkeypatch.setitem(sys.modules, "reach_env", types.SimpleNamespace(Reach=Reach))
    if "Reach-v0" not in gym.registry:
        gym.register("Reach-v0", "reach_env:Reach", max_episode_steps=40)
    ids = ("test/reach-v0", "test/reach-odd-v0")
    for dataset_id in ids:
        if (datasets / dataset_id).exists():
            continue
        env = minari.DataCollector(gym.make("Reach-v0", disable_env_checker=True))
        for seed in range(10):
            seen, _ = env.reset(seed=seed)
            ended = False
            while not ended:
                action = np.clip(10 * (seen["goal"] - seen["hand"]), -1, 1) * [1, 0.01]
                seen, _, terminated, truncated, _ = env.step(action.astype(np.float32))
                ended = terminated or truncated
        odd = gym.make("Reach-v0", odd=True, disable_env_checker=True) if dataset_id == ids[1] else None
        env.create_dataset(dataset_id, eval_env=odd, algorithm_name="expert", author="test")
    return ids


@pytest.mark.filterwarnings("ignore")  # Minari warns about missing author and code
def test_data_and_environment_share_the_order_of_keys_and_the_units_of_actions(reach):
    task, data = load(reach[0])
    env = task.env()
    start = np.append(True, data["ends"][:-1])
    np.testing.assert_allclose(data["observations"][start][3], env.reset(seed=3)[0], atol=1e-6)
    assert np.abs(data["actions"][:, 1]).max() == np.float32(0.999)
    first = np.flatnonzero(start)[3]
    for row in range(first, first + 3):  # the same actions lead to the same observations
        observation = env.step(data["actions"][row])[0]
        np.testing.assert_allclose(observation, data["next_observations"][row], atol=1e-3)

    def expert(observations):  # in the data's order: goal, hand
        return np.clip(10 * (observations[:, :2] - observations[:, 2:]), -1, 1)

    assert list(task.stored.observation_space) == ["goal", "hand"] != list(env.unwrapped.observation_space)
    assert task.evaluate(expert, 10)["returns"].tolist() == [1.0] * 10


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_collected_in_a_window_is_evaluated_without_one(datasets, monkeypatch):
    """The stored specification has render_mode="human", as on the desktop where the data were collected."""
    folder = datasets / "test" / "pendulum-v0"
    shutil.copytree(datasets / "test" / "endless-v0", folder)
    file = folder / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    spec = json.loads(metadata["env_spec"])
    spec["kwargs"]["render_mode"] = "human"
    file.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec), "dataset_id": "test/pendulum-v0"}))
    task, _ = load("test/pendulum-v0")
    assert task.env().render_mode is None
    assert task.env("rgb_array").render_mode == "rgb_array"


@pytest.mark.filterwarnings("ignore")
def test_an_environment_with_other_observations_than_the_data_raises_an_error(reach):
    with pytest.raises(tasks.TaskError, match=r"hand.*palm"):
        load(reach[1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["test/discrete-v0"], "test/discrete-v0 has actions in Discrete(2)"),
        (["test/none-v0"], "cannot load test/none-v0 with Minari"),
        (["test/cut-v0"], "test/cut-v0: KeyError"),
        (["test/empty-v0"], "test/empty-v0: it contains no transitions"),
        (["hopper-randon-v0"], "unknown id hopper-randon-v0; did you mean hopper-random-v0"),
        (["hopper-random-v0", ROOT / "demo" / "fetch-pick-and-place-demo-v0.hdf5"], "is Minari's, stored in"),
    ],
)
def test_unusable_datasets_and_arguments_raise_an_error(datasets, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(tasks.TaskError, match=re.escape(message)):
        tasks.make(*arguments).dataset()


def test_the_ids_include_minaris_datasets_on_this_machine(datasets):
    assert {"test/kitchen/random-v0", "hopper-random-v0"} <= set(tasks.ids())
    assert tasks.locate("hopper-random-v0") == (datasets / "hopper-random-v0", None)
