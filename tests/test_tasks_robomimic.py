"""robomimic's files against robomimic's own reader and a spelled-out one; robosuite's environments; invalid files."""

import builtins
import json
import re

import gymnasium as gym
import h5py
import numpy as np
import pytest

import tasks
from tasks.robomimic import FILES, HUB, INSTALL, Robomimic, environment_name, horizon, older_file, robosuite_version

KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10, "robot0_joint_pos": 7}
PAPER_KEYS = list(KEYS)[:4]
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": {"robots": ["Panda"]}}


class Spaces(gym.Env):
    """Takes the place of the environment where only its spaces matter."""

    action_space = gym.spaces.Box(-1, 1, (7,))

    def __init__(self, observation_dim=19):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_dim,))


def demonstrations(done_mode=2, dense=False, lengths=(4, 6, 3), next_obs=True, keys=KEYS, joined=True):
    """Demonstrations 0, 10 and 2, of which 2 fails, as robomimic's dataset_states_to_obs writes them."""
    rng = np.random.default_rng(0)
    made = {}
    for number, length in zip((0, 10, 2), lengths):
        observed = {key: rng.normal(size=(length + 1, size)) for key, size in keys.items()}
        success = np.zeros(length, bool)
        if number != 2:
            success[-2:] = True  # achieved before the end, as in machine-generated data
        last = np.arange(length) == length - 1
        actions = rng.uniform(-1, 1, (length, 7))
        shaped_rewards = 0.4 * rng.random(length) if dense else np.zeros(length)
        demonstration = {
            "obs": {key: values[:-1] for key, values in observed.items()},
            "actions": actions,
            "rewards": np.where(success, 1.0, shaped_rewards),
            "dones": [success, last, success | last][done_mode].astype(int),
        }
        if next_obs:
            shift = 0.0 if joined else 1.0
            demonstration["next_obs"] = {key: values[1:] + shift for key, values in observed.items()}
        made[f"demo_{number}"] = demonstration
    return made


def write(path, made, env_args=ENV_ARGS, masks=None):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = env_args if isinstance(env_args, str) else json.dumps(env_args)
        for name, columns in made.items():
            group = data.create_group(name)
            group.attrs["num_samples"] = len(columns["actions"])
            for column, values in columns.items():
                if isinstance(values, dict):
                    for key, array in values.items():
                        group[f"{column}/{key}"] = array
                else:
                    group[column] = values
        for name, members in (masks or {}).items():
            file[f"mask/{name}"] = np.array(members, "S")
    return path


def task_of(path, **args):
    return tasks.make(dataset_path=str(path), **args)


def load(path, observation_dim=19, **args):
    """Task and dataset of a file, without robosuite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Robomimic, "make_env", lambda task, render_mode: Spaces(observation_dim))
        task = task_of(path, **args)
        return task, task.dataset()


def transitions_of(data):
    return [data[name] for name in ("observations", "actions", "rewards", "terminals", "next_observations")]


def spelled_out(made, names, keys=PAPER_KEYS):
    """The transitions of these demonstrations, row by row."""
    expected = []
    for name in names:
        demo = made[name]
        for t in range(len(demo["actions"])):
            observation = np.concatenate([demo["obs"][key][t] for key in keys])
            following = np.concatenate([demo["next_obs"][key][t] for key in keys])
            expected.append((observation, demo["actions"][t], demo["rewards"][t], demo["dones"][t], following))
    return [np.array(column) for column in zip(*expected)]


def assert_equal(got, expected):
    observations, actions, *others = expected
    for a, b in zip(got, [observations, np.clip(actions, -0.999, 0.999), *others], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("done_mode", [0, 1, 2])
def test_transitions_are_in_the_order_of_the_demonstrations_numbers(tmp_path, done_mode, dense, joined):
    made = demonstrations(done_mode, dense, joined=joined)
    task, data = load(write(tmp_path / "data.hdf5", made))
    assert_equal(transitions_of(data), spelled_out(made, ("demo_0", "demo_2", "demo_10")))
    assert task.dataset_scores.tolist() == [100.0, 0.0, 100.0]  # demonstrations 0, 2, 10
    assert "13 transitions" in task.describe(data) and "3 trajectories" in task.describe(data)
    assert np.flatnonzero(data["ends"]).tolist() == [3, 6, 12]  # not where the task is achieved before the end


@pytest.mark.parametrize("done_mode", [0, 2])
def test_without_next_observations_the_last_step_is_a_transition_only_if_it_is_done(tmp_path, done_mode):
    made = demonstrations(done_mode, next_obs=False)
    got = transitions_of(load(write(tmp_path / "data.hdf5", made))[1])
    expected = spelled_out(demonstrations(done_mode), ("demo_0", "demo_2", "demo_10"))
    kept = np.ones(13, bool)
    kept[6] = done_mode != 0  # demonstration 2 fails after 3 steps
    expected = [column[kept] for column in expected]
    terminal = expected[3] == 1
    got[4][terminal] = 0.0  # what follows a terminal step is not used
    expected[4][terminal] = 0.0
    assert_equal(got, expected)


def test_filter_key_and_observation_keys_select(tmp_path):
    made = demonstrations()
    path = write(tmp_path / "data.hdf5", made, masks={"train": ["demo_10", "demo_0"], "valid": ["demo_2"]})
    expected = spelled_out(made, ("demo_0", "demo_10"))
    assert_equal(transitions_of(load(path, dataset_filter="train")[1]), expected)
    keys = ["object", "robot0_joint_pos"]
    got = transitions_of(load(path, 17, dataset_filter="valid", observation_keys=keys)[1])
    assert_equal(got, spelled_out(made, ("demo_2",), keys))


def test_the_default_observations_are_those_of_both_arms(tmp_path):
    keys = KEYS | {f"robot1_{key.removeprefix('robot0_')}": size for key, size in KEYS.items() if key != "object"}
    env_args = ENV_ARGS | {"env_name": "TwoArmTransport"}
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(keys=keys), env_args))
    names = ("eef_pos", "eef_quat", "gripper_qpos")
    assert task.observation_keys == [*(f"robot{arm}_{name}" for arm in (0, 1) for name in names), "object"]
    assert (task.env_id, task.max_episode_steps) == ("TwoArmTransport", 700)


@pytest.mark.parametrize("filter_key", [None, "train"])
@pytest.mark.parametrize("made_here", [True, False])
def test_transitions_match_robomimics_sequence_dataset(tmp_path, request, made_here, filter_key):
    reader = pytest.importorskip("robomimic.utils.dataset")
    observations = pytest.importorskip("robomimic.utils.obs_utils")
    if made_here:
        masks = {"train": ["demo_10", "demo_0"]}
        path = write(tmp_path / "data.hdf5", demonstrations(done_mode=0, dense=True), masks=masks)
    else:
        path = request.getfixturevalue("shared_datasets") / "lift_scripted_low_dim.hdf5"
    observations.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": PAPER_KEYS}})
    columns = ("actions", "rewards", "dones")
    oracle = reader.SequenceDataset(
        str(path), PAPER_KEYS, columns, hdf5_cache_mode="low_dim", filter_by_attribute=filter_key
    )
    rows = [oracle[i] for i in range(len(oracle))]
    expected = [
        np.stack([np.concatenate([row["obs"][key][0] for key in PAPER_KEYS]) for row in rows]),
        *(np.stack([row[key][0] for row in rows]) for key in columns),
        np.stack([np.concatenate([row["next_obs"][key][0] for key in PAPER_KEYS]) for row in rows]),
    ]
    assert_equal(transitions_of(load(path, dataset_filter=filter_key)[1]), expected)


def test_ids_horizons_and_older_files_match_robomimics_registry():
    registry = pytest.importorskip("robomimic").DATASET_REGISTRY
    horizons = {}
    for name, kinds in registry.items():
        for kind, files in kinds.items():
            for file, entry in files.items():
                suffix = {"low_dim": "", "low_dim_sparse": "", "low_dim_dense": "-dense"}.get(file)
                if suffix is not None and not name.endswith("_real"):
                    env_id = f"{name}-{kind}{suffix}"
                    assert entry["url"].endswith(str(older_file(env_id)).split("datasets")[1])
                    horizons[env_id] = entry["horizon"]
    assert {env_id: horizon(environment_name(env_id), env_id) for env_id in FILES} == horizons
    assert len(horizons) == 14


@pytest.mark.parametrize(
    "names", [("episode_0", "episode_10", "episode_2"), ("b", "c", "a"), ("demo_0", "last", "demo_2")]
)
def test_demonstrations_can_have_any_names_and_groups_without_actions_are_passed_over(tmp_path, names):
    """Sorted by number if all have one, else in the file's order, which is the alphabet's."""
    made = dict(zip(names, demonstrations().values()))
    path = write(tmp_path / "data.hdf5", made)
    with h5py.File(path, "r+") as file:
        file["data/meta/notes"] = "made by hand"
        file["data/fps"] = 20
    numbered = names[0] == "episode_0"
    order = ("episode_0", "episode_2", "episode_10") if numbered else sorted(names)
    task, data = load(path)
    assert task.max_episode_steps == 400
    expected = np.concatenate([made[name]["actions"] for name in order])
    np.testing.assert_allclose(data["actions"], expected.clip(-0.999, 0.999), rtol=1e-6)


def test_ids_are_files_on_the_hub(monkeypatch, tmp_path):
    """The names in the listing of the Hub."""
    assert FILES["lift-ph"] == "v1.5/lift/ph/low_dim_v15.hdf5"
    assert FILES["tool_hang-ph"] == "v1.5/tool_hang/ph/low_dim_v15.hdf5"
    assert FILES["transport-mh"] == "v1.5/transport/mh/low_dim_v15.hdf5"
    assert FILES["can-mg"] == "v1.5/can/mg/low_dim_sparse_v15.hdf5"
    assert FILES["can-mg-dense"] == "v1.5/can/mg/low_dim_dense_v15.hdf5"
    assert FILES["can-paired"] == "v1.5/can/paired/low_dim_v15.hdf5"
    url = f"https://huggingface.co/datasets/{HUB}/resolve/main/v1.5/lift/ph/low_dim_v15.hdf5"
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    assert tasks.locate("lift-ph") == (tmp_path / FILES["lift-ph"], url)


def broken(column, change):
    made = demonstrations()
    made["demo_10"][column] = change(made["demo_10"][column])
    return made


def set_nan(array):
    array[1] = np.nan
    return array


INVALID_FILES = {
    "demo_10: actions has 5 rows, observations has 6": broken("actions", lambda actions: actions[:-1]),
    "demo_10: rewards has a NaN or an infinity in row 1": broken("rewards", set_nan),
    "demo_10: actions has shape (6,), not (rows, dimensions)": broken("actions", lambda actions: actions[:, 0]),
    "'dones' doesn't exist": {
        name: {k: v for k, v in demo.items() if (name, k) != ("demo_10", "dones")}
        for name, demo in demonstrations().items()
    },
    "JSONDecodeError": (demonstrations(), "{"),
    "there is no observation 'robot0_eef_pos'": demonstrations(keys={"robot0_joint_pos": 7, "object": 10}),
    "do not describe a robosuite environment": (demonstrations(), ENV_ARGS | {"type": 2}),
    "(env_name, env_kwargs, type 1)": (demonstrations(), ENV_ARGS | {"env_kwargs": None}),
    "it contains no transitions": {},
}


@pytest.mark.parametrize("message", INVALID_FILES)
def test_invalid_files_raise_an_error_that_names_the_file(tmp_path, message):
    made = INVALID_FILES[message]
    made, env_args = made if isinstance(made, tuple) else (made, ENV_ARGS)
    path = write(tmp_path / "data.hdf5", made, env_args)
    with pytest.raises(tasks.TaskError, match=re.escape(message)) as raised:
        load(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dataset_filter": "test"}, "no filter key 'test'; filter keys in this file: train"),
        ({"observation_keys": ["objekt"]}, "there is no observation 'objekt'; the file has object, robot0_eef_pos"),
        ({"env_id": "can-ph"}, "holds data of robosuite's Lift, not of can-ph"),
        ({"env_id": "hopper-medium-v2"}, "holds data of robosuite's Lift, not of hopper-medium-v2"),
    ],
)
def test_arguments_that_do_not_fit_the_file_raise_an_error(tmp_path, arguments, message):
    path = write(tmp_path / "data.hdf5", demonstrations(), masks={"train": ["demo_0"]})
    with pytest.raises(tasks.TaskError, match=re.escape(message)):
        load(path, **arguments)


def test_the_file_names_its_environment_and_an_id_of_the_same_one_fits(tmp_path):
    path = write(tmp_path / "data.hdf5", demonstrations())
    for given, wanted, steps in (("", "Lift", 400), ("Lift", "Lift", 400), ("lift-mh", "lift-mh", 500)):
        task = task_of(path, **({"env_id": given} if given else {}))
        assert (task.env_name, task.env_id) == ("Lift", wanted)
        assert (task.eval_episodes, task.processes, task.max_episode_steps) == (50, True, steps)


def test_episodes_are_as_long_as_the_longest_demonstration_or_as_asked_for(tmp_path):
    path = write(tmp_path / "data.hdf5", demonstrations(lengths=(4, 548, 3)))
    assert task_of(path).max_episode_steps == 548
    assert task_of(path, env_id="lift-mh").max_episode_steps == 548
    assert task_of(path, max_episode_steps=7).max_episode_steps == 7


@pytest.mark.parametrize("version", ["1.4.1", "1.5.2"])
def test_the_file_of_an_id_is_the_one_for_the_installed_robosuite(tmp_path, monkeypatch, version):
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: version)
    older = tmp_path / "lift" / "mg" / "low_dim_dense_v141.hdf5"
    newer = tmp_path / "v1.5" / "lift" / "mg" / "low_dim_dense_v15.hdf5"
    for path in (newer, older):
        path.parent.mkdir(parents=True)
        write(path, demonstrations())
    assert tasks.make("lift-mg-dense").path == (older if version == "1.4.1" else newer)


@pytest.mark.parametrize("folder", [True, False])
def test_a_missing_file_is_downloaded_from_the_hub(tmp_path, monkeypatch, folder):
    """With the Hub's own client, into $ROBOMIMIC_DATASET_DIR or the client's cache."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: "1.5.2")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv("ROBOMIMIC_DATASET_DIR", raising=False)
    if folder:
        monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    calls = []

    def download(repository, name, repo_type, local_dir):
        calls.append((repository, name, repo_type, local_dir))
        return str(write(tmp_path / "data.hdf5", demonstrations()))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert tasks.make("lift-ph").path == tmp_path / "data.hdf5"
    assert calls == [(HUB, "v1.5/lift/ph/low_dim_v15.hdf5", "dataset", str(tmp_path) if folder else None)]

    def refuse(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    url = f"https://huggingface.co/datasets/{HUB}/resolve/main/v1.5/lift/ph/low_dim_v15.hdf5"
    with pytest.raises(tasks.TaskError, match=f"{url}.*--dataset-path.*no network"):
        tasks.make("lift-ph")


def test_on_robosuite_1_4_without_the_older_file_the_error_has_the_command_for_1_5(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: "1.4.1")
    older = tmp_path / "lift" / "ph" / "low_dim_v141.hdf5"
    with pytest.raises(tasks.TaskError, match=f"{INSTALL['1.5']}.*{older}"):
        tasks.make("lift-ph")


COMPOSITE = {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE"}}}


@pytest.mark.parametrize(
    "change, installed, install",
    [
        ({"env_version": "1.4.1"}, "1.5.2", INSTALL["1.4"]),
        ({"env_version": None}, "1.5.2", INSTALL["1.4"]),  # from before the version was stored
        ({"env_version": "1.5.1"}, "1.4.1", INSTALL["1.5"]),
        ({"env_version": None, "env_kwargs": {"controller_configs": COMPOSITE}}, "1.4.1", INSTALL["1.5"]),
        ({"env_version": "1.2.0"}, "1.5.2", "pip install --no-deps robosuite==1.2"),
    ],
)
def test_for_another_robosuite_than_the_files_the_error_has_the_command_that_installs_it(
    tmp_path, monkeypatch, change, installed, install
):
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: installed)
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(), ENV_ARGS | change))
    with pytest.raises(tasks.TaskError, match=f"{installed}.*{install}$"):
        task.env()


# ---- with robosuite --------------------------------------------------------------------------------------------------


def record(path, env_name, steps=3, robots="Panda", **others):
    """A robomimic file with random actions in a robosuite environment and the observations robosuite returns."""
    robosuite = pytest.importorskip("robosuite")
    if robosuite_version().startswith("1.4"):
        controllers = robosuite.load_controller_config(default_controller="OSC_POSE")
    else:
        controllers = robosuite.load_composite_controller_config(controller="BASIC", robot=robots)
    kwargs = {
        "robots": [robots] * (2 if env_name.startswith("TwoArm") else 1),
        "controller_configs": controllers,
        "has_renderer": False,
        "has_offscreen_renderer": False,
        "use_camera_obs": False,
        "ignore_done": True,
        "control_freq": 20,
        "reward_shaping": False,
        "camera_heights": 84,
    }
    env = robosuite.make(env_name, **kwargs)
    rng = np.random.default_rng(0)
    observations = [env.reset()]
    actions = []
    rewards = []
    for _ in range(steps):
        action = rng.uniform(*env.action_spec)
        observation, reward, _, _ = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    keys = {key: key for key in observations[0] if key.startswith("robot")} | {"object": "object-state"}
    demo = {
        "obs": {name: np.array([o[key] for o in observations[:-1]]) for name, key in keys.items()},
        "next_obs": {name: np.array([o[key] for o in observations[1:]]) for name, key in keys.items()},
        "actions": np.array(actions),
        "rewards": np.array(rewards),
        "dones": np.arange(steps) == steps - 1,
    }
    env_args = {"env_name": env_name, "type": 1, "env_version": robosuite.__version__, "env_kwargs": kwargs | others}
    return write(path, {"demo_0": demo}, env_args)


def read(task, env, **how):
    """robosuite's own observations under the task's keys."""
    observations = env.unwrapped._get_observations(**how)
    return np.concatenate([observations[key.replace("object", "object-state")] for key in task.observation_keys])


@pytest.mark.parametrize(
    "env_name", ["Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport", "Stack"]
)
def test_the_environment_has_the_observations_of_the_file(tmp_path, env_name, capfd):
    path = record(tmp_path / "data.hdf5", env_name)
    capfd.readouterr()
    task = task_of(path)
    data = task.dataset()
    env = task.env()
    assert task.max_episode_steps == (700 if env_name in ("TwoArmTransport", "ToolHang") else 400)
    first, _ = env.reset(seed=3)
    assert first.shape == data["observations"].shape[1:]
    np.testing.assert_array_equal(first, read(task, env, force_update=True))  # reading again changes nothing
    np.testing.assert_array_equal(first, env.reset(seed=3)[0])
    assert np.abs(first - env.reset(seed=4)[0]).max() > 1e-3
    observation, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
    assert (reward, terminated, truncated) == (0.0, False, False)
    np.testing.assert_array_equal(observation, read(task, env))  # the same keys, in the same order
    assert not np.array_equal(observation, first)
    assert capfd.readouterr() == ("", "")  # robosuite prints nothing


@pytest.fixture(scope="module")
def lift(tmp_path_factory):
    return record(tmp_path_factory.mktemp("lift") / "data.hdf5", "Lift")


def test_success_pays_1_and_ends_the_episode(lift):
    task = task_of(lift)
    task.max_episode_steps = 5
    env = task.env()
    env.reset(seed=0)
    sim = env.unwrapped.sim
    assert env.step(np.zeros(7))[1:4] == (0.0, False, False)
    joint = env.unwrapped.cube.joints[0]
    sim.data.set_joint_qpos(joint, np.concatenate([[0.0, 0.0, 1.2], [1.0, 0.0, 0.0, 0.0]]))  # 37 cm above the table
    sim.forward()
    assert env.step(np.zeros(7))[1:4] == (1.0, True, False)
    env.reset(seed=0)
    assert [env.step(np.zeros(7))[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]


def test_evaluation_in_processes_equals_evaluation_in_one(lift):
    """Twelve episodes in ten environments: two of them run a second episode."""
    task = task_of(lift)
    task.max_episode_steps = 4
    weights = 0.1 * np.random.default_rng(0).normal(size=(19, 7)).astype(np.float32)
    starts = []

    def policy(observations):
        starts.append(observations.copy())
        return observations @ weights

    side_by_side = task.evaluate(policy, 12)
    assert side_by_side["seeds"].tolist() == list(range(10_000, 10_012))
    assert side_by_side["lengths"].tolist() == [4] * 12
    env = task.env()
    for seed in (0, 9):
        np.testing.assert_array_equal(starts[0][seed], env.reset(seed=10_000 + seed)[0].astype(np.float32))
    # four steps and a reset later
    np.testing.assert_array_equal(starts[5][1], env.reset(seed=10_011)[0].astype(np.float32))
    first = np.stack(starts)
    starts.clear()
    task.processes = False
    task.evaluate(policy, 12)
    np.testing.assert_array_equal(np.stack(starts), first)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"env_name": "Juggle"}, "cannot make the environment of Juggle"),
        ({"env_kwargs": {"robots": ["Panda"], "strange": True}}, "cannot make the environment of Lift.*strange"),
    ],
)
def test_an_environment_that_cannot_be_made_raises_an_error(tmp_path, change, message):
    pytest.importorskip("robosuite")
    env_args = ENV_ARGS | {"env_version": robosuite_version()} | change
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(), env_args))
    with pytest.raises(tasks.TaskError, match=message):
        task.env()


@pytest.mark.parametrize("version", ["1.4", "1.5"])
def test_without_robosuite_the_error_has_the_command_that_installs_it(tmp_path, monkeypatch, version):
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: None)
    path = write(tmp_path / "data.hdf5", demonstrations(), ENV_ARGS | {"env_version": f"{version}.1"})
    with pytest.raises(tasks.TaskError, match=f"needs robosuite: {INSTALL[version]}"):
        task_of(path).env()


@pytest.mark.parametrize("error", [OSError("libEGL"), AttributeError("eglQueryDevicesEXT"), RuntimeError("numba")])
def test_a_robosuite_that_cannot_be_imported_raises_an_error(tmp_path, monkeypatch, error):
    original_import = builtins.__import__

    def broken_import(name, *arguments):
        if name.startswith("robosuite"):
            raise error
        return original_import(name, *arguments)

    task = task_of(write(tmp_path / "data.hdf5", demonstrations()))
    monkeypatch.setattr("tasks.robomimic.robosuite_version", lambda: "1.4.1")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", broken_import)
        with pytest.raises(tasks.TaskError, match=str(error)):
            task.env()


def test_robomimics_own_arguments_are_left_out(tmp_path):
    path = record(tmp_path / "data.hdf5", "Lift", lang="lift the cube", env_lang=None)
    assert task_of(path).env().reset(seed=0)[0].shape == (19,)


def test_an_observation_that_robosuite_does_not_have_raises_an_error(tmp_path):
    pytest.importorskip("robosuite")
    made = demonstrations(keys=KEYS | {"robot0_mood": 2})
    path = write(tmp_path / "data.hdf5", made, ENV_ARGS | {"env_version": robosuite_version()})
    with pytest.raises(tasks.TaskError, match="robot0_mood"):
        task_of(path, observation_keys=["robot0_eef_pos", "robot0_mood"]).env()


def test_both_end_effector_quaternions_can_be_observed_on_1_5(tmp_path):
    if not (robosuite_version() or "").startswith("1.5"):
        pytest.skip("robosuite 1.5 is not installed")
    path = record(tmp_path / "data.hdf5", "Lift")
    keys = ["robot0_eef_quat", "robot0_eef_quat_site"]
    task = task_of(path, observation_keys=keys)
    env, data = task.env(), task.dataset()
    first, _ = env.reset(seed=0)
    assert first.shape == data["observations"].shape[1:] == (8,)
    assert np.abs(first[:4] - first[4:]).max() > 0.1
    assert "robot0_eef_quat" in task_of(path).observation_keys  # the paper's


@pytest.mark.parametrize("name", ["lift_v15_scripted", "square_v15_scripted"])
def test_replayed_demonstrations_of_1_5_start_from_their_seeds_and_succeed(shared_datasets, name):
    """Each demonstration in the file has the seed of its reset, set by another program."""
    if not (robosuite_version() or "").startswith("1.5"):
        pytest.skip("robosuite 1.5 is not installed")
    path = shared_datasets / f"{name}.hdf5"
    task = task_of(path)
    env = task.env()
    assert task.max_episode_steps == (500 if name.startswith("square") else 400)
    with h5py.File(path) as file:
        for demo in ("demo_1", "demo_10"):
            demonstration = file["data"][demo]
            first, _ = env.reset(seed=int(demonstration.attrs["seed"]))
            seen = np.concatenate([demonstration["obs"][key][0] for key in task.observation_keys])
            np.testing.assert_allclose(first, seen, atol=1e-6)
            repeated = [env.step(action)[1] for action in demonstration["actions"][()]]
            assert max(repeated) == demonstration["rewards"][()].max()


def test_a_replayed_demonstration_of_1_4_succeeds(shared_datasets):
    if not (robosuite_version() or "").startswith("1.4"):
        pytest.skip("robosuite 1.4 is not installed")
    path = shared_datasets / "lift_scripted_low_dim.hdf5"
    task = task_of(path)
    env = task.env()
    env.reset(seed=0)
    with h5py.File(path) as file:
        demonstration = file["data/demo_1"]
        env.unwrapped.sim.set_state_from_flattened(demonstration["states"][0])
        env.unwrapped.sim.forward()
        seen = np.concatenate([demonstration["obs"][key][0] for key in task.observation_keys])
        np.testing.assert_allclose(read(task, env, force_update=True), seen, atol=1e-6)
        assert max(env.step(action)[1] for action in demonstration["actions"][()]) == 1.0
