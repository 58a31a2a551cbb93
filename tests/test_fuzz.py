"""Files with random bytes replaced: the loaders return data or raise one of the documented errors."""

import contextlib
import shutil

import lerobot_folder
import numpy as np
import pytest
import test_tasks_d4rl
import test_tasks_ogbench
import test_tasks_robomimic

import tasks


def d4rl(folder):
    path = test_tasks_d4rl.write(folder / "data.hdf5", test_tasks_d4rl.walks())
    return path, lambda: test_tasks_d4rl.load(path)


def robomimic(folder):
    masks = {"train": ["demo_0", "demo_2"]}
    path = test_tasks_robomimic.write(folder / "data.hdf5", test_tasks_robomimic.demonstrations(), masks=masks)
    return path, lambda: test_tasks_robomimic.load(path, dataset_filter="train")


def ogbench(folder):
    path = test_tasks_ogbench.write(folder / "data.npz", test_tasks_ogbench.play())
    return path, lambda: test_tasks_ogbench.load(path)


def lerobot(folder):
    episodes = [lerobot_folder.episode(5, next_reward=np.ones(5)) for _ in range(12)]
    data = lerobot_folder.write_folder(folder / "data", episodes, episodes_per_file=12)
    (path,) = data.glob("data/*/*.parquet")
    return path, lambda: tasks.make(dataset_path=data).dataset()


@pytest.mark.parametrize("make, files", [(d4rl, 60), (robomimic, 60), (ogbench, 5), (lerobot, 30)])
def test_damaged_files_load_or_raise_a_task_error_or_os_error(tmp_path, make, files):
    path, load = make(tmp_path)
    load()
    original = tmp_path / "original"
    shutil.copy(path, original)
    rng = np.random.default_rng(0)
    for _ in range(files):
        content = np.fromfile(original, np.uint8)
        places = rng.integers(len(content), size=rng.integers(1, 20))
        content[places] = rng.integers(256, size=len(places))
        content.tofile(path)
        with contextlib.suppress(tasks.TaskError, OSError):
            load()
