"""What all sources share: checks and scaling of data, evaluation, video, the demo, and `python -m tasks`."""

import os
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import ROOT
from test_tasks_d4rl import hopper_rows, write

import tasks
from tasks.transitions import Transitions, check_columns, make_float32

DEMO = "fetch-pick-and-place-demo-v0"
DEMO_FILE = ROOT / "demo" / f"{DEMO}.hdf5"


class Points(gym.Env):
    """Observes zeros, and puts the last action in `info`."""

    def __init__(self, action_space=None):
        self.observation_space = gym.spaces.Box(-1, 1, (3,))
        self.action_space = action_space or gym.spaces.Box(np.float32([-4, 0.5]), np.float32([2, 0.6]))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 0.0, False, False, {"action": action}


class Made(tasks.Task):
    """A task of columns made here: six rows of play data, whose goal (row 2) does not end the trajectory."""

    max_episode_steps, min_return, max_return = 6, 1.0, 3.0

    def __init__(self, action_space=None, **columns):
        super().__init__("made-v0")
        self.action_space = action_space
        rng = np.random.default_rng(0)
        self.columns = {
            "observations": rng.normal(size=(6, 3)),
            "next_observations": rng.normal(size=(6, 3)),
            "actions": np.stack([np.linspace(-4, 2, 6), np.linspace(0.5, 0.6, 6)], 1).astype(np.float32),
            "rewards": np.arange(6.0),
            "terminals": np.arange(6) == 2,
            "ends": np.arange(6) == 3,
        } | columns

    def read(self):
        return Transitions(check_columns(self.columns), np.array([6.0, 9.0]), ["made by hand"])

    def make_env(self, render_mode=None):
        return Points(self.action_space)


def test_terminals_and_ends_are_two_things():
    task = Made()
    data = task.dataset()
    assert np.flatnonzero(data["terminals"]).tolist() == [2]
    assert np.flatnonzero(data["ends"]).tolist() == [3, 5]  # the last row always ends a trajectory
    assert {key: (values.shape, str(values.dtype)) for key, values in data.items()} == {
        "observations": ((6, 3), "float32"),
        "next_observations": ((6, 3), "float32"),
        "actions": ((6, 2), "float32"),
        "rewards": ((6,), "float32"),
        "terminals": ((6,), "float32"),
        "ends": ((6,), "bool"),
    }


def test_describe_has_a_line_of_statistics_and_the_notes():
    task = Made(actions=np.float32([[0, 0.55]] * 5 + [[0, 0.61]]))
    for _ in range(2):  # reading again does not repeat notes
        data = task.dataset()
        assert task.dataset_scores.tolist() == [250.0, 400.0]
        assert task.describe(data).splitlines() == [
            "made-v0: 6 transitions, 1 terminal, 2 trajectories, mean return 7.50 (score 325.0)",
            "made by hand",
            "1 of 6 actions lie outside the action space and are clipped",
            "1 of 2 trajectories go on after a terminal transition: this is play data, whose discount follows from the "
            "step limit, not from the length of trajectories",
        ]


def test_rewards_that_are_all_zero_are_noted():
    task = Made(rewards=np.zeros(6), terminals=np.zeros(6, bool))
    assert task.describe(task.dataset()).splitlines()[2] == (
        "all rewards are 0, so RL has nothing to learn from; SAQ-BC is what fits"
    )


def observations_with(rows, value, dtype=np.float32):
    observations = np.random.default_rng(0).uniform(-1, 1, (1000, 3)).astype(dtype)
    observations[rows, 1] = value
    return observations


def prepare(observations, next_observations=None):
    """What make_float32 makes of observations, and its notes."""
    if next_observations is None:
        next_observations = np.roll(observations, -1, 0)
    columns = {"observations": observations.copy(), "next_observations": next_observations.copy()}
    columns["actions"] = np.zeros((len(observations), 1))
    notes = []
    make_float32(columns, notes)
    assert columns["observations"].dtype == columns["next_observations"].dtype == np.float32
    return columns["observations"], columns["next_observations"], notes


@pytest.mark.parametrize("value", [1e9, -999.0, np.float64(1e17)])
@pytest.mark.parametrize("count", [1, 3, 200])
def test_values_that_stand_for_missing_readings_are_clipped_and_noted(value, count):
    rows = np.random.default_rng(1).choice(1000, count, replace=False)
    observations = observations_with(rows, value)
    prepared, prepared_next, notes = prepare(observations)
    clean = np.delete(observations[:, 1], rows)
    assert prepared[rows, 1] == pytest.approx(clean.max() if value > 0 else clean.min())
    np.testing.assert_array_equal(np.delete(prepared, rows, 0), np.delete(observations, rows, 0))
    np.testing.assert_array_equal(prepared_next, np.roll(prepared, -1, 0))
    assert notes == [
        f"observations: {count} of 1000 transitions have values far outside all others, such as "
        f"{np.float32(value):.4g} in transition {rows.min()}, in columns 1; they are clipped"
    ]


def test_missing_readings_in_next_observations_alone_are_clipped_and_noted():
    observations = observations_with([], 0.0)
    prepared, prepared_next, notes = prepare(observations, observations_with([7], 1e9))
    np.testing.assert_array_equal(prepared, observations)
    assert prepared_next.max() <= 1 and notes[0].startswith("next_observations: 1 of 1000") and len(notes) == 1


def test_different_values_and_columns_are_clipped_with_one_note():
    observations = observations_with([3, 4], [-1e9, 1e6])
    observations[3, 2] = 1e9
    prepared, _, notes = prepare(observations)
    assert np.abs(prepared).max() <= 1
    assert len(notes) == 1 and "2 of 1000" in notes[0] and "-1e+09 in transition 3, in columns 1, 2;" in notes[0]


RNG = np.random.default_rng(2)
UNUSUAL_COLUMNS = {
    "constant": 0.0,
    "constant except in one row": np.arange(1000) < 1,
    "a long tail": np.linspace(0, 1, 1000) ** 50,
    "two values far apart": np.arange(1000) % 2 * 500.0,
    "an angle that wraps": np.angle(np.exp(1j * (np.pi - 0.003 + 0.01 * RNG.normal(size=1000)))),
    "a switch with noise": 5.0 * (RNG.random(1000) < 0.1) + 0.002 * RNG.normal(size=1000),
    "numbers of objects": RNG.choice([0, 1, 2, 3, 7000], 1000),
}


@pytest.mark.parametrize("kind", UNUSUAL_COLUMNS)
def test_unusual_columns_stay_as_they_are(kind):
    observations = observations_with(slice(None), UNUSUAL_COLUMNS[kind])
    prepared, _, notes = prepare(observations)
    np.testing.assert_array_equal(prepared, observations)
    assert notes == []


@pytest.mark.parametrize(
    "rows, values",
    [
        ([5, 300], [1e6, -1e6]),
        ([5, 300], [1e9, 1e8]),
        (slice(0, 600), -999.0),  # a marker that is lost most of the time
        (slice(0, 10), 15.0 * 2),  # 15 times the range, repeated
    ],
)
def test_outliers_on_both_sides_of_two_sizes_or_in_many_rows_are_clipped(rows, values):
    prepared, _, notes = prepare(observations_with(rows, values))
    assert np.abs(prepared).max() <= 1 and len(notes) == 1


def test_a_single_transition_stays_as_it_is():
    prepared, _, notes = prepare(np.float32([[1, 2, 3]]))
    assert prepared.tolist() == [[1, 2, 3]] and notes == []


@pytest.mark.parametrize("movement, is_noted", [(1e-3, True), (1.0, True), (1e4, False), (0.0, False)])
def test_movement_that_float32_cannot_resolve_at_its_offset_is_noted(movement, is_noted):
    observations = np.random.default_rng(0).uniform(-1, 1, (1000, 3)) * movement + 5e5
    observations[7, 0] = 0.0  # a missing reading
    _, _, notes = prepare(observations)
    resolution = [note for note in notes if "float32" in note]
    assert len(resolution) == is_noted and len(notes) == is_noted + (movement > 0)
    for words in ("columns 0, 1, 2 vary too little", "in steps of 0.031); subtract the offset") if is_noted else ():
        assert words in resolution[0]


def test_actions_that_float32_cannot_resolve_and_equal_actions_are_noted():
    columns = {key: np.random.default_rng(0).normal(size=(50, 2)) for key in ("observations", "next_observations")}
    columns["actions"] = np.int64(2e9) + np.arange(100).reshape(50, 2)
    notes = []
    make_float32(columns, notes)
    assert len(notes) == 1 and notes[0].startswith("actions: columns 0, 1 vary too little beside their offset")
    task = Made(actions=np.tile(np.float32([0.5, 0.55]), (6, 1)))
    assert "all actions are equal" in task.describe(task.dataset())


def test_flags_that_stay_on_are_noted():
    task = Made(ends=np.arange(6) > 1)
    assert "3 of 4 trajectories have a single transition" in task.describe(task.dataset())


def test_actions_are_scaled_by_the_environments_bounds_in_data_and_environment():
    task = Made()
    actions = task.dataset()["actions"]
    wanted = np.clip(np.linspace(-1, 1, 6), -0.999, 0.999)
    np.testing.assert_allclose(actions, np.stack([wanted, wanted], 1), atol=1e-5)
    assert (task.action_low, task.action_high) == ([-4.0, 0.5], [2.0, float(np.float32(0.6))])
    env = task.env()
    assert env.action_space == gym.spaces.Box(-1, 1, (2,))
    env.reset()
    for action, own in ((actions[2], task.columns["actions"][2]), (np.ones(2), [2, 0.6]), (-np.ones(2), [-4, 0.5])):
        np.testing.assert_allclose(env.step(action.astype(np.float32))[4]["action"], own, atol=1e-6)
    data = Made(actions=np.float32([[0, 0.61]] * 6)).dataset()
    np.testing.assert_allclose(data["actions"], [[1 / 3, 0.999]] * 6, rtol=1e-6)


def test_bounds_of_1_leave_actions_as_they_are():
    actions = np.random.default_rng(0).uniform(-0.99, 0.99, (6, 2)).astype(np.float32)
    data = Made(gym.spaces.Box(-1, 1, (2,)), actions=actions).dataset()
    np.testing.assert_array_equal(data["actions"], actions)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"rewards": np.full(6, np.nan)}, "rewards has a NaN or an infinity in row 0"),
        ({"ends": np.zeros(5, bool)}, "ends has 5 rows"),
        ({"rewards": np.full(6, 1e39)}, "rewards has a value too large for float32 in row 0"),
        ({"rewards": np.float32([0, 0, 0, -1e19, 0, 0])}, "rewards has a value too large for float32 in row 3"),
        ({"actions": np.array([["a", "b"]] * 6)}, "not numbers"),
        ({"terminals": np.full(6, 0.5)}, "terminals is 0.5 in row 0"),
        ({"observations": np.zeros((6, 4)), "next_observations": np.zeros((6, 4))}, "those of made-v0 have (3,)"),
        (
            {"actions": np.float32([[0, 0.71]] * 6)},
            "dimension 1 of the actions reaches 0.71, far outside the range of made-v0, from 0.5 to 0.6",
        ),
        ({key: values[:0] for key, values in Made().columns.items()}, "made-v0: it contains no transitions"),
        ({"action_space": gym.spaces.Discrete(2)}, "has actions in Discrete(2)"),
        ({"action_space": gym.spaces.Box(-1, 1, (2, 2))}, "vectors of continuous actions"),
        ({"action_space": gym.spaces.Box(0, 9, (2,), np.int64)}, "vectors of continuous actions"),
        ({"action_space": gym.spaces.Box(-np.inf, 1, (2,))}, "bounds"),
        ({"action_space": gym.spaces.Box(np.float32([0, 1]), np.float32([1, 1]))}, "bounds"),
    ],
)
def test_invalid_data_and_action_spaces_raise_an_error(columns, message):
    with pytest.raises(tasks.TaskError, match=re.escape(message)):
        Made(**columns).dataset()


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodes", [1, 3, 10, 11, 25])
def test_evaluation_runs_every_episode_once_from_its_own_seed(tmp_path, episodes):
    """Against one environment that runs the episodes one after the other; they end after different numbers of steps."""
    task = tasks.make("hopper-medium-v2", str(write(tmp_path / "data.hdf5", hopper_rows())))
    weights = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)

    def policy(observations):
        assert observations.dtype == np.float32
        return 1.5 * np.tanh((observations[:, :, None] * weights).sum(1))  # partly beyond 1, and then clipped

    result = task.evaluate(policy, episodes, 2)
    env = task.env()
    for i in range(episodes):
        observation, _ = env.reset(seed=20_000 + i)
        total, steps, ended = 0.0, 0, False
        while not ended:
            action = np.clip(policy(observation[None].astype(np.float32))[0], -1, 1)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, steps, ended = total + reward, steps + 1, terminated or truncated
        assert (result["seeds"][i], result["lengths"][i]) == (20_000 + i, steps)
        assert result["returns"][i] == total
    np.testing.assert_array_equal(result["scores"], task.score(result["returns"]))
    assert len(result["scores"]) == episodes
    assert episodes < 10 or len(set(result["lengths"].tolist())) > 1


def test_the_default_number_of_episodes_is_the_tasks():
    task = tasks.make()
    task.eval_episodes = 2
    result = task.evaluate(lambda observations: np.zeros((len(observations), 4)))
    assert result["seeds"].tolist() == [10_000, 10_001] and result["lengths"].tolist() == [50, 50]


def test_max_episode_steps_changes_the_environment_and_not_the_data(tmp_path):
    rows = hopper_rows(1500, timeouts=None)
    path = str(write(tmp_path / "data.hdf5", rows))
    usual, own = tasks.make("hopper-medium-v2", path), tasks.make("hopper-medium-v2", path, max_episode_steps=3)
    ends = [np.flatnonzero(task.dataset()["ends"]).tolist() for task in (usual, own)]
    assert ends[0] == ends[1] == [998, 1497] and usual.max_episode_steps == 1000
    result = own.evaluate(lambda observations: np.zeros((len(observations), 3)), 2)
    assert result["lengths"].tolist() == [3, 3]
    result = tasks.make(max_episode_steps=7).evaluate(lambda observations: np.zeros((len(observations), 4)), 1)
    assert result["lengths"].tolist() == [7]


@pytest.mark.parametrize("seed", [-1, 20240115, 10**30])
def test_every_integer_is_a_valid_seed(seed):
    task = tasks.make(max_episode_steps=1)
    seeds = task.evaluate(lambda observations: np.zeros((len(observations), 4)), 3, seed)["seeds"]
    assert seeds.tolist() == [(10_000 * seed + i) % 2**32 for i in range(3)]


class Rendered(Points):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def render(self):
        return np.random.default_rng().integers(255, size=(64, 64, 3)).astype(np.uint8)


def test_video_is_a_gif_of_the_first_three_episodes(tmp_path, monkeypatch):
    task = tasks.make()
    monkeypatch.setattr(task, "make_env", lambda render_mode=None: gym.wrappers.TimeLimit(Rendered(), 4))
    task.check_video()
    calls = []

    def policy(observations):
        calls.append(len(observations))
        return np.zeros((len(observations), 2))

    task.evaluate(policy, episodes=2, video=tmp_path / "video.gif")
    assert calls == [2] * 4 + [1] * 12
    assert (tmp_path / "video.gif").read_bytes().startswith(b"GIF89a")
    assert [path.name for path in tmp_path.iterdir()] == ["video.gif"]


def test_an_environment_that_cannot_be_rendered_is_found_at_the_start(monkeypatch, capfd):
    task = tasks.make()

    def no_library(render_mode):
        raise RuntimeError("no such library")

    monkeypatch.setattr(task, "make_env", no_library)
    with pytest.raises(tasks.TaskError, match=r"cannot render a video here.*install EGL.*no such library"):
        task.check_video()

    monkeypatch.setattr(task, "make_env", lambda render_mode: os._exit(3))  # as a crash in a graphics library
    with pytest.raises(tasks.TaskError, match="ended with code 3"):
        task.check_video()
    assert capfd.readouterr() == ("", "")


# ---- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_environment_ends_at_success_with_reward_1():
    sys.path.insert(0, str(ROOT / "demo"))
    from collect import Operator

    env, successes = tasks.make().env(), 0
    for seed in range(5):
        operator = Operator(np.random.default_rng(seed), careful=True)
        observation, _ = env.reset(seed=seed)
        terminated, truncated, steps = False, False, 0
        while not (terminated or truncated):
            steps += 1
            observation, reward, terminated, truncated, info = env.step(operator.act(observation))
            assert env.observation_space.contains(observation)
            assert (reward, terminated) == (float(info["is_success"]), bool(info["is_success"]))
        assert terminated or steps == 50
        successes += terminated
    assert successes >= 4


def test_the_demo_dataset_has_600_trajectories_of_which_half_succeed():
    task = tasks.make()
    data = task.dataset()
    assert (task.env_id, task.eval_episodes, task.processes) == (DEMO, 100, False)
    assert task.score(np.array([0.0, 1.0])).tolist() == [0.0, 100.0]
    assert len(task.dataset_returns) == data["ends"].sum() == 600
    assert 45 < task.dataset_scores.mean() < 60
    assert set(np.unique(data["rewards"])) == {0.0, 1.0}
    np.testing.assert_array_equal(data["rewards"], data["terminals"])


# ---- make, ids, locate, python -m tasks ------------------------------------------------------------------------------


def run(*flags, code=0, **variables):
    done = subprocess.run(
        [sys.executable, "-m", "tasks", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {key: str(value) for key, value in variables.items()},
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_importing_tasks_is_light():
    heavy = ("torch", "minari", "robosuite", "ogbench", "huggingface_hub", "gymnasium_robotics", "pooch", "imageio")
    code = f"import sys, tasks; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_list_can_be_piped_to_head():
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-m", "tasks"], cwd=ROOT, **pipes)
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b""
    process.wait()


def test_the_list_has_every_id_with_its_file_and_whether_it_is_here(tmp_path, monkeypatch):
    path = write(tmp_path / "hopper_medium-v2.hdf5", hopper_rows())
    (tmp_path / "minari" / "D4RL" / "pen" / "human-v2" / "data").mkdir(parents=True)
    (tmp_path / "minari" / "D4RL" / "pen" / "human-v2" / "data" / "metadata.json").write_text("{}")
    folders = {f"{name}_DATASET_DIR": tmp_path for name in ("D4RL", "ROBOMIMIC", "OGBENCH")}
    done = run(**folders, MINARI_DATASETS_PATH=tmp_path / "minari")
    *lines, last = done.stdout.splitlines()
    assert done.stderr == "" and "Minari" in last
    listed = [line.split()[0] for line in lines]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert listed == tasks.ids() and listed[-1] == "D4RL/pen/human-v2"
    assert len(listed) == 1 + 42 + 14 + 282 + 1 + 1  # demo, D4RL, robomimic, OGBench, PushT, Minari
    here = {line.split()[0]: line.split()[2] for line in lines if " not here " not in line}
    assert here == {
        DEMO: str(DEMO_FILE),
        "hopper-medium-v2": str(path),
        "D4RL/pen/human-v2": str(tmp_path / "minari" / "D4RL" / "pen" / "human-v2"),
    }


def test_the_command_line_describes_a_file(tmp_path):
    rows = hopper_rows(terminals=np.arange(20) == 4, timeouts=np.arange(20) == 12)
    path = write(tmp_path / "data.hdf5", rows)
    done = run("hopper-medium-v2", "--dataset-path", path)
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"{path}: 18 transitions, 1 terminal, 3 trajectories, mean return ")
    assert [" ".join(line.split()) for line in others] == [
        "trajectory lengths 5 to 7, mean 6.0",
        "observations 11 dimensions",
        "actions 3 dimensions",
        "step limit 1000",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"env_id": "hopper-mediun-v2"}, "unknown id hopper-mediun-v2; did you mean hopper-medium-v2"),
        ({"env_id": "hopper-medium-v2", "dataset_path": "none.hdf5"}, "none.hdf5 does not exist"),
        ({"env_id": "antmaze-medium-play-v2"}, "use Minari's D4RL/antmaze/medium-play-v1"),
        ({"env_id": "antmaze-umaze-v0"}, "use Minari's D4RL/antmaze/umaze-v1"),
        ({"env_id": "kitchen-mixed-v0"}, "use Minari's D4RL/kitchen/mixed-v2"),
        ({"max_episode_steps": 0}, "--max-episode-steps must be at least 1, it is 0"),
        ({"dataset_filter": "train"}, "--dataset-filter selects demonstrations of robomimic files"),
        (
            {"observation_keys": ["object"]},
            "--observation-keys selects observations of robomimic files and LeRobot data",
        ),
        ({"assume_success": True}, "--assume-success is for LeRobot data"),
        ({"env_id": "hopper-medium-v2", "dataset_path": DEMO_FILE, "sparse_rewards": True}, "is for OGBench"),
        ({"env_id": "lift-ph", "dataset_path": DEMO_FILE}, "this is not a robomimic file"),
        ({"env_id": "none"}, "name the data with --dataset-path"),
    ],
)
def test_arguments_that_make_no_task_raise_an_error(arguments, message):
    with pytest.raises(tasks.TaskError, match=re.escape(message)):
        tasks.make(**arguments)


def test_locate_raises_an_error_for_unknown_ids():
    with pytest.raises(tasks.TaskError, match="did you mean hopper-medium-v2"):
        tasks.locate("hopper-mediun-v2")


@pytest.mark.parametrize("flags", [["hopper-mediun-v2"], ["hopper-medium-v2", "--dataset-path", DEMO_FILE]])
def test_the_command_line_prints_one_line_and_exits_with_2(flags):
    done = run(*flags, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
