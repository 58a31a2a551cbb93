"""robomimic's files against robomimic's own reader and a spelled-out one; robosuite's environments; bad files."""

import builtins
import json
import subprocess
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest

import tasks
from tasks.robomimic import HUB, IDS, INSTALL, Robomimic, env_name, horizon, installed, locate, older_file

KEYS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10, "robot0_joint_pos": 7}
PAPER_KEYS = list(KEYS)[:4]
ENV_ARGS = {"env_name": "Lift", "type": 1, "env_version": "1.4.1", "env_kwargs": {"robots": ["Panda"]}}


class Spaces(gym.Env):
    """Stands for the environment where only its spaces matter."""

    action_space = gym.spaces.Box(-1, 1, (7,))

    def __init__(self, observation_dim=19):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_dim,))


def demonstrations(done_mode=2, dense=False, lengths=(4, 6, 3), next_obs=True, keys=KEYS, joined=True):
    """Demonstrations 0, 10 and 2, of which 2 fails, as robomimic's dataset_states_to_obs describes its outputs."""
    rng, made = np.random.default_rng(0), {}
    for number, length in zip((0, 10, 2), lengths):
        seen = {key: rng.normal(size=(length + 1, size)) for key, size in keys.items()}
        after = {key: values[1:] for key, values in seen.items()}
        if not joined:
            after = {key: values + 1.0 for key, values in after.items()}
        success = np.zeros(length, bool)
        if number != 2:
            success[-2:] = True  # achieved before the end, as in machine-generated data
        end = np.arange(length) == length - 1
        made[f"demo_{number}"] = {
            "obs": {key: values[:-1] for key, values in seen.items()},
            **({"next_obs": after} if next_obs else {}),
            "actions": rng.uniform(-1, 1, (length, 7)),
            "rewards": np.where(success, 1.0, 0.4 * rng.random(length) if dense else 0.0),
            "dones": ((done_mode != 1) & success | (done_mode != 0) & end).astype(int),
        }
    return made


def write(path, made, env_args=ENV_ARGS, masks=None):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = env_args if isinstance(env_args, str) else json.dumps(env_args)
        for name, columns in made.items():
            for column, values in columns.items():
                for key, array in values.items() if isinstance(values, dict) else (("", values),):
                    data[f"{name}/{column}/{key}".rstrip("/")] = array
            data[name].attrs["num_samples"] = len(columns["actions"])
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


def transitions_of(loaded):
    names = ("observations", "actions", "rewards", "terminals", "next_observations")
    return [loaded[1][name] for name in names]


def spelled_out(made, names, keys=PAPER_KEYS):
    """What the transitions of these demonstrations are, row by row."""
    expected = []
    for name in names:
        demo = made[name]
        for t in range(len(demo["actions"])):
            observation = np.concatenate([demo["obs"][key][t] for key in keys])
            following = np.concatenate([demo["next_obs"][key][t] for key in keys])
            expected.append((observation, demo["actions"][t], demo["rewards"][t], demo["dones"][t], following))
    return [np.array(column) for column in zip(*expected)]


def assert_equal(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, np.clip(b, -0.999, 0.999) if b.shape[1:] == (7,) else b, rtol=1e-6)


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("done_mode", [0, 1, 2])
def test_transitions_are_the_files_in_the_order_of_demonstrations(tmp_path, done_mode, dense, joined):
    made = demonstrations(done_mode, dense, joined=joined)
    task, data = load(write(tmp_path / "data.hdf5", made))
    assert_equal(transitions_of((task, data)), spelled_out(made, ("demo_0", "demo_2", "demo_10")))
    assert task.dataset_scores.tolist() == [100.0, 0.0, 100.0]  # demonstrations 0, 2, 10
    assert "13 transitions" in task.describe(data) and "3 trajectories" in task.describe(data)
    assert np.flatnonzero(data["ends"]).tolist() == [3, 6, 12]  # not where the task is achieved before the end


@pytest.mark.parametrize("done_mode", [0, 2])
def test_without_next_observations_the_last_step_counts_only_where_it_ends_the_episode(tmp_path, done_mode):
    made, complete = demonstrations(done_mode, next_obs=False), demonstrations(done_mode)
    got = transitions_of(load(write(tmp_path / "data.hdf5", made)))
    expected = spelled_out(complete, ("demo_0", "demo_2", "demo_10"))
    kept = np.ones(13, bool)
    kept[6] = done_mode != 0  # demonstration 2 fails after 3 steps
    expected = [column[kept] for column in expected]
    got[4][expected[3] == 1] = expected[4][expected[3] == 1] = 0.0  # what follows a terminal is not used
    assert_equal(got, expected)


def test_a_filter_key_and_observation_keys_select(tmp_path):
    made = demonstrations()
    path = write(tmp_path / "data.hdf5", made, masks={"train": ["demo_10", "demo_0"], "valid": ["demo_2"]})
    expected = spelled_out(made, ("demo_0", "demo_10"))
    assert_equal(transitions_of(load(path, dataset_filter="train")), expected)
    keys = ["object", "robot0_joint_pos"]
    got = transitions_of(load(path, 17, dataset_filter="valid", observation_keys=keys))
    assert_equal(got, spelled_out(made, ("demo_2",), keys))


def test_both_arms_are_used_where_there_are_two(tmp_path):
    keys = KEYS | {f"robot1_{key.removeprefix('robot0_')}": size for key, size in KEYS.items() if key != "object"}
    env_args = ENV_ARGS | {"env_name": "TwoArmTransport"}
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(keys=keys), env_args))
    names = ("eef_pos", "eef_quat", "gripper_qpos")
    assert task.observation_keys == (*(f"robot{arm}_{name}" for arm in (0, 1) for name in names), "object")
    assert (task.env_id, task.max_episode_steps) == ("TwoArmTransport", 700)


@pytest.mark.parametrize("filter_key", [None, "train"])
@pytest.mark.parametrize("made_here", [True, False])
def test_transitions_are_those_of_robomimics_sequence_dataset(tmp_path, request, made_here, filter_key):
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
    assert_equal(transitions_of(load(path, dataset_filter=filter_key)), expected)


def test_ids_and_older_files_are_robomimics():
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
    assert {env_id: horizon(env_name(env_id), env_id) for env_id in IDS} == horizons and len(horizons) == 14


def test_ids_are_files_on_the_hub(monkeypatch, tmp_path):
    """As its listing has them; robomimic's registry names them by the same rule."""
    assert IDS["lift-ph"] == "v1.5/lift/ph/low_dim_v15.hdf5"
    assert IDS["tool_hang-ph"] == "v1.5/tool_hang/ph/low_dim_v15.hdf5"
    assert IDS["transport-mh"] == "v1.5/transport/mh/low_dim_v15.hdf5"
    assert IDS["can-mg"] == "v1.5/can/mg/low_dim_sparse_v15.hdf5"
    assert IDS["can-mg-dense"] == "v1.5/can/mg/low_dim_dense_v15.hdf5"
    assert IDS["can-paired"] == "v1.5/can/paired/low_dim_v15.hdf5"
    url = f"https://huggingface.co/datasets/{HUB}/resolve/main/v1.5/lift/ph/low_dim_v15.hdf5"
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    assert locate("lift-ph") == (tmp_path / IDS["lift-ph"], url)


def broken(column, change):
    made = demonstrations()
    made["demo_10"][column] = change(made["demo_10"][column])
    return made


def set_nan(array):
    array[1] = np.nan
    return array


BAD_FILES = {
    "demo_10: actions has 5 rows, observations 6": broken("actions", lambda actions: actions[:-1]),
    "demo_10: rewards has a NaN or an infinity in row 1": broken("rewards", set_nan),
    "demo_10: not as in robomimic's low-dim files": {
        name: {k: v for k, v in demo.items() if (name, k) != ("demo_10", "dones")}
        for name, demo in demonstrations().items()
    },
    "no readable env_args": (demonstrations(), "{"),
    "no readable env_args or obs": broken("obs", lambda obs: obs) | {"demo_0": {"obs": np.zeros(3), "actions": [0]}},
    "do not describe a robosuite environment": (demonstrations(), ENV_ARGS | {"type": 2}),
    "(env_name, env_kwargs, type 1)": (demonstrations(), ENV_ARGS | {"env_kwargs": None}),
    "dimensions": broken("actions", lambda actions: actions[:, 0]),
    "holds no transition": {},
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_files_end_with_one_line_and_code_2(tmp_path, capsys, message):
    made = BAD_FILES[message]
    made, env_args = made if isinstance(made, tuple) else (made, ENV_ARGS)
    path = write(tmp_path / "data.hdf5", made, env_args)
    with pytest.raises(SystemExit) as stop:
        load(path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert message in error and str(path) in error


@pytest.mark.parametrize(
    "args, words",
    [
        ({"dataset_filter": "test"}, ["no filter key 'test'", "train"]),
        ({"observation_keys": ["objekt"]}, ["no observation 'objekt'", "robot0_joint_pos"]),
        ({"env_id": "can-ph"}, ["is of robosuite's Lift", "can-ph"]),
        ({"env_id": "hopper-medium-v2"}, ["is of robosuite's Lift", "hopper-medium-v2"]),
    ],
)
def test_arguments_that_do_not_fit_the_file_end_with_one_line_and_code_2(tmp_path, capsys, args, words):
    path = write(tmp_path / "data.hdf5", demonstrations(), masks={"train": ["demo_0"]})
    with pytest.raises(SystemExit) as stop:
        if "dataset_filter" in args:
            load(path, **args)
        else:
            task_of(path, **args)  # before the environment is made, which would hide the message
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and all(word in error for word in words), error


def test_arguments_of_robomimic_files_are_refused_with_others(capsys):
    for args in ({"dataset_filter": "train"}, {"observation_keys": ["object"]}):
        with pytest.raises(SystemExit) as stop:
            tasks.make(**args)
        assert stop.value.code == 2 and "robomimic" in capsys.readouterr().err


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


@pytest.mark.parametrize("here", ["1.4.1", "1.5.2"])
def test_an_id_is_looked_for_in_robomimics_folder(tmp_path, monkeypatch, capsys, here):
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("tasks.robomimic.installed", lambda: here)
    older, newer = (
        tmp_path / f"{folder}lift/mg/low_dim_dense_{kind}.hdf5" for folder, kind in (("", "v141"), ("v1.5/", "v15"))
    )
    for path in (newer, older):
        path.parent.mkdir(parents=True)
        write(path, demonstrations())
    path = older if here == "1.4.1" else newer
    assert tasks.make("lift-mg-dense").path == path
    with h5py.File(path, "w"):
        pass
    with pytest.raises(SystemExit) as stop:
        tasks.make("lift-mg-dense")
    assert stop.value.code == 2 and "is not a robomimic file" in capsys.readouterr().err


@pytest.mark.parametrize("folder", [True, False])
def test_an_id_is_downloaded_from_the_hub(tmp_path, monkeypatch, capsys, folder):
    """By the Hub's own client, into the folder or the client's cache; and in one line where it cannot be had."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("tasks.robomimic.installed", lambda: "1.5.2")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.delenv("ROBOMIMIC_DATASET_DIR", raising=False)
    if folder:
        monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    asked = []

    def download(repository, name, repo_type, local_dir):
        asked.append((repository, name, repo_type, local_dir))
        return str(write(tmp_path / "data.hdf5", demonstrations()))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert tasks.make("lift-ph").path == tmp_path / "data.hdf5"
    assert asked == [(HUB, "v1.5/lift/ph/low_dim_v15.hdf5", "dataset", str(tmp_path) if folder else None)]

    def refused(*_, **__):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(hub, "hf_hub_download", refused)
    with pytest.raises(SystemExit) as stop:
        tasks.make("lift-ph")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "no network" in error
    assert f"{HUB}/resolve/main/v1.5/lift/ph/low_dim_v15.hdf5" in error and "--dataset-path" in error


def test_an_id_on_robosuite_1_4_without_its_older_file_names_the_command_for_1_5(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path))
    monkeypatch.setattr("tasks.robomimic.installed", lambda: "1.4.1")
    with pytest.raises(SystemExit) as stop:
        tasks.make("lift-ph")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert INSTALL["1.5"] in error and str(tmp_path / "lift" / "ph" / "low_dim_v141.hdf5") in error


COMPOSITE = {"type": "BASIC", "body_parts": {"right": {"type": "OSC_POSE"}}}


@pytest.mark.parametrize(
    "change, here, install",
    [
        ({"env_version": "1.4.1"}, "1.5.2", INSTALL["1.4"]),
        ({"env_version": None}, "1.5.2", INSTALL["1.4"]),  # of before versions were noted
        ({"env_version": "1.5.1"}, "1.4.1", INSTALL["1.5"]),
        ({"env_version": None, "env_kwargs": {"controller_configs": COMPOSITE}}, "1.4.1", INSTALL["1.5"]),
        ({"env_version": "1.2.0"}, "1.5.2", "pip install --no-deps robosuite==1.2"),
    ],
)
def test_a_file_and_a_robosuite_that_do_not_fit_are_one_line_with_the_command(
    tmp_path, monkeypatch, capsys, change, here, install
):
    monkeypatch.setattr("tasks.robomimic.installed", lambda: here)
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(), ENV_ARGS | change))
    with pytest.raises(SystemExit) as stop:
        task.env()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert here in error and error.rstrip().endswith(install)


# ---- with robosuite --------------------------------------------------------------------------------------------------


def record(path, env_name, steps=3, robots="Panda", **others):
    """A robomimic file of random actions in a robosuite environment, whose observations robosuite itself gives."""
    robosuite = pytest.importorskip("robosuite")
    if installed().startswith("1.4"):
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
    rng, seen, actions, rewards = np.random.default_rng(0), [env.reset()], [], []
    for _ in range(steps):
        actions.append(rng.uniform(*env.action_spec))
        observation, reward, _, _ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
    keys = {key: key for key in seen[0] if key.startswith("robot")} | {"object": "object-state"}
    demo = {
        "obs": {name: np.array([s[key] for s in seen[:-1]]) for name, key in keys.items()},
        "next_obs": {name: np.array([s[key] for s in seen[1:]]) for name, key in keys.items()},
        "actions": np.array(actions),
        "rewards": np.array(rewards),
        "dones": np.arange(steps) == steps - 1,
    }
    env_args = {"env_name": env_name, "type": 1, "env_version": robosuite.__version__, "env_kwargs": kwargs | others}
    return write(path, {"demo_0": demo}, env_args)


def read(task, env, **how):
    """What robosuite itself observes under the task's keys."""
    seen = env.unwrapped._get_observations(**how)
    return np.concatenate([seen["object-state" if key == "object" else key] for key in task.observation_keys])


@pytest.mark.parametrize(
    "env_name", ["Lift", "PickPlaceCan", "NutAssemblySquare", "ToolHang", "TwoArmTransport", "Stack"]
)
def test_the_environment_gives_what_the_file_holds(tmp_path, env_name, capfd):
    path = record(tmp_path / "data.hdf5", env_name)
    capfd.readouterr()
    task = task_of(path)
    data = task.dataset()
    env = task.env()
    assert task.max_episode_steps == (700 if env_name in ("TwoArmTransport", "ToolHang") else 400)
    first, _ = env.reset(seed=3)
    assert first.shape == data["observations"].shape[1:]
    np.testing.assert_array_equal(first, read(task, env, force_update=True))  # true: to read again changes nothing
    np.testing.assert_array_equal(first, env.reset(seed=3)[0])
    assert np.abs(first - env.reset(seed=4)[0]).max() > 1e-3
    observation, reward, terminated, truncated, _ = env.step(np.zeros(env.action_space.shape))
    assert (reward, terminated, truncated) == (0.0, False, False)
    np.testing.assert_array_equal(observation, read(task, env))  # the same keys, in the same order
    assert not np.array_equal(observation, first)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")  # no word of robosuite


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


def test_evaluation_in_processes_is_that_in_one(lift):
    """Twelve episodes on ten environments, so that two of them run a second one; seeds decide, not processes."""
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
    "change, words",
    [
        ({"env_name": "Juggle"}, ["cannot make the environment of Juggle"]),
        ({"env_kwargs": {"robots": ["Panda"], "strange": True}}, ["Lift", "strange"]),
    ],
)
def test_an_environment_that_cannot_be_made_is_one_line_and_code_2(tmp_path, capsys, change, words):
    pytest.importorskip("robosuite")
    env_args = ENV_ARGS | {"env_version": installed()} | change
    task = task_of(write(tmp_path / "data.hdf5", demonstrations(), env_args))
    capsys.readouterr()  # what robosuite says when it is imported
    with pytest.raises(SystemExit) as stop:
        task.env()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and all(word in error for word in words), error


@pytest.mark.parametrize("version", ["1.4", "1.5"])
def test_without_robosuite_the_error_has_the_command_that_adds_it(tmp_path, capsys, monkeypatch, version):
    monkeypatch.setattr("tasks.robomimic.installed", lambda: None)
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(SystemExit) as stop:
        task_of(write(tmp_path / "data.hdf5", demonstrations(), ENV_ARGS | {"env_version": f"{version}.1"})).env()
    assert stop.value.code == 2
    assert INSTALL[version] in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError("libEGL"), AttributeError("eglQueryDevicesEXT"), RuntimeError("numba")])
def test_a_robosuite_that_does_not_load_is_one_line_and_code_2(tmp_path, capsys, monkeypatch, error):
    def broken(name, *_):
        if name.startswith("robosuite"):
            raise error
        return imported(name, *_)

    imported = builtins.__import__
    path = write(tmp_path / "data.hdf5", demonstrations())
    monkeypatch.setattr("tasks.robomimic.installed", lambda: "1.4.1")
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(SystemExit) as stop:
        task_of(path).env()
    monkeypatch.undo()
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and str(error) in line


def test_words_of_robomimics_own_among_the_arguments_are_left_out(tmp_path):
    path = record(tmp_path / "data.hdf5", "Lift", lang="lift the cube", env_lang=None)
    assert task_of(path).env().reset(seed=0)[0].shape == (19,)


def test_observations_that_robosuite_lacks_are_one_line_and_code_2(tmp_path, capsys):
    pytest.importorskip("robosuite")
    path = write(
        tmp_path / "data.hdf5", demonstrations(keys=KEYS | {"robot0_mood": 2}), {**ENV_ARGS, "env_version": installed()}
    )
    with pytest.raises(SystemExit) as stop:
        task_of(path, observation_keys=["robot0_eef_pos", "robot0_mood"]).env()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "robot0_mood" in error


def test_both_end_effector_quaternions_can_be_observed_on_1_5(tmp_path):
    if not (installed() or "").startswith("1.5"):
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
def test_demonstrations_of_1_5_are_repeated_from_their_seeds(shared_datasets, name):
    """The file notes the seed that each demonstration was reset with, before any of this was written."""
    if not (installed() or "").startswith("1.5"):
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


def test_a_demonstration_of_1_4_is_repeated_from_its_state(shared_datasets):
    if not (installed() or "").startswith("1.4"):
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


def test_two_evaluations_with_one_seed_are_equal_and_two_seeds_different(lift):
    task = task_of(lift, max_episode_steps=3)
    weights = 0.1 * np.random.default_rng(0).normal(size=(19, 7)).astype(np.float32)
    starts = []

    def evaluate(seed):
        starts.clear()
        result = task.evaluate(lambda observations: starts.append(observations) or observations @ weights, 3, seed)
        return result, np.stack(starts)

    first, second, other = evaluate(1), evaluate(1), evaluate(2)
    for key in first[0]:
        np.testing.assert_array_equal(first[0][key], second[0][key])
    np.testing.assert_array_equal(first[1], second[1])
    assert (np.abs(first[1] - other[1]).max(2) > 1e-3).all()


@pytest.mark.parametrize("seed", [-1, 20240115, 10**30])
def test_no_seed_is_refused(lift, seed):
    task = task_of(lift, max_episode_steps=1)
    task.processes = False
    seeds = task.evaluate(lambda observations: np.zeros((len(observations), 7)), 2, seed)["seeds"]
    assert seeds.tolist() == [10_000 * seed % 2**32, (10_000 * seed + 1) % 2**32]


# ---- damaged files ---------------------------------------------------------------------------------------------------


def test_names_that_are_no_text_are_no_traceback(tmp_path, capsys):
    path = write(tmp_path / "data.hdf5", demonstrations())
    with h5py.File(path, "a") as file:
        file["data/demo_0/obs"].copy("object", file["data/demo_0/obs"], b"robot\xff_eef_pos")
        file["data"].copy("demo_0", file["data"], b"demo_\xff1")
    with pytest.raises(SystemExit) as stop:
        load(path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(path) in error


@pytest.mark.parametrize("chunks", [None, (100, 7)])
def test_a_header_that_promises_more_rows_than_are_stored_costs_no_memory(tmp_path, capsys, chunks):
    path = write(tmp_path / "data.hdf5", demonstrations())
    with h5py.File(path, "a") as file:
        del file["data/demo_2/actions"]
        file["data/demo_2"].create_dataset("actions", (10**9, 7), np.float32, chunks=chunks)
    with pytest.raises(SystemExit) as stop:
        load(path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "demo_2" in error and "less of it is stored" in error


def test_an_attribute_that_hangs_libhdf5_is_one_line_and_code_2(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "data.hdf5", demonstrations())

    def hanging(command, timeout, **_):
        assert command[-1] == str(path)
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hanging)
    with pytest.raises(SystemExit) as stop:
        task_of(path)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "env_args cannot be read" in error


def test_mutated_files_are_data_or_one_line(tmp_path, capsys, monkeypatch):
    """Bytes flipped and cut off anywhere in the file."""
    monkeypatch.setattr("tasks.robomimic.check_attribute", lambda path: None)  # a process each, and none hangs here
    path, rng = write(tmp_path / "data.hdf5", demonstrations(), masks={"train": ["demo_0"]}), np.random.default_rng(0)
    whole = path.read_bytes()
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(len(damaged), size=rng.integers(1, 20))
        damaged[places] = rng.integers(256, size=len(places))
        path.write_bytes(damaged[: len(damaged) if rng.random() < 0.8 else rng.integers(len(damaged))].tobytes())
        try:
            load(path, dataset_filter="train")
        except SystemExit as stop:
            error = capsys.readouterr().err
            assert stop.code == 2 and error.count("\n") == 1
