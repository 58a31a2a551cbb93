"""What the sources share: the error they raise, quiet imports, folders of datasets and downloads."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np


class TaskError(ValueError):
    """A task or its data cannot be used. The message is one sentence: what is wrong and, where it helps, what to do."""


@contextlib.contextmanager
def task_errors(start: str | Path) -> Iterator[None]:
    """Raise every error of the block as a TaskError whose message starts with `start`, such as the file being read.

    Damaged files, networks and graphics libraries fail in many ways inside the packages used here, so all exceptions
    are caught. The original error is kept as the cause.
    """
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, TaskError) else repr(error)
        raise TaskError(f"{start}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence messages and warnings of environment packages while they are imported and started."""
    gym.logger.min_level = gym.logger.ERROR  # D4RL's v2 tasks run on gymnasium's v4: no advice to upgrade to v5
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def import_hub():
    """The client of the Hugging Face Hub, without the messages of every retry, and with bars only on a terminal."""
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def cached_file(repository: str, name: str) -> Path:
    """The place of a file of a dataset repository in the cache of the Hugging Face Hub's client. It can be missing."""
    hub = import_hub()
    cached = hub.try_to_load_from_cache(repository, name, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    return Path(hub.constants.HF_HUB_CACHE, f"datasets--{repository.replace('/', '--')}", "snapshots", "main", name)


def data_folder(variable: str, *default: str) -> Path:
    """The folder named by an environment variable; without the variable, `default` inside the home folder."""
    folder = os.environ.get(variable)
    if folder:
        os.environ[variable] = os.path.expanduser(folder)  # packages that read the variable too do not expand ~
        return Path(os.environ[variable])
    with task_errors(f"there is no home folder to keep datasets in; set {variable} to a folder"):
        return Path.home().joinpath(*default)  # fails in containers whose user has no entry in /etc/passwd


def read_array(dataset: h5py.Dataset) -> np.ndarray:
    """The content of an HDF5 dataset.

    Raises:
        TaskError: if it is not an array, or is a virtual one with missing parts, which HDF5 would replace by zeros.
    """
    if not isinstance(dataset, h5py.Dataset):
        raise TaskError(f"{dataset.name} is a group, not an array")
    check_parts(dataset)
    return dataset[()]


def check_parts(dataset: h5py.Dataset) -> None:
    """Raise TaskError if parts of a virtual dataset are missing. They lie in other files, and can be virtual too."""
    if not dataset.is_virtual:
        return
    folder = Path(dataset.file.filename).resolve().parent
    covered = 0
    for part in dataset.virtual_sources():
        covered += part.vspace.get_select_npoints()
        if part.file_name == "." or "%b" in part.file_name:  # in the same file, or in a series of files
            continue
        name = Path(part.file_name)
        with task_errors(f"{dataset.name} consists of parts in other files, and {name} cannot be read"):
            places = (folder / name, folder / name.name, name)  # those where HDF5 looks, the working directory last
            path = next((place for place in places if place.exists()), name)
            with h5py.File(path, "r") as file:
                check_parts(file[part.dset_name])
    if covered < dataset.size:
        raise TaskError(f"{dataset.name} has {dataset.size} numbers, of which only {covered} are in its parts")


def download(url: str, path: Path, check: Callable[[Path], None]) -> None:
    """Download a file. It appears at `path` only when it is complete and has passed the check.

    Args:
        check: raises an error if a file is damaged.

    Raises:
        TaskError: if the download fails or its result does not pass the check.
    """
    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20, timeout=60)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with task_errors(f"cannot download {url}; download it manually to {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            pooch.retrieve(url, None, temporary.name, temporary.parent, downloader=downloader)
            check(temporary)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
