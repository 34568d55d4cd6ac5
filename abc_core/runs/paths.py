"""Where things are: the repository, data, runs, shipped assets, figures; and a guard for paths that come out of data files."""

import os
from pathlib import Path


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds pyproject.toml and the package; FileNotFoundError if there is none."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "abc_core").is_dir():
            return folder
    raise FileNotFoundError(f"no repository of abc_core at or above {start}; install it from its folder with `pip install -e .`")


ROOT = find_root(Path(__file__).resolve().parent)
DATA = Path(os.environ.get("ABC_DATA") or ROOT / "data").expanduser().absolute()
RUNS = Path(os.environ.get("ABC_RUNS") or ROOT / "runs").expanduser().absolute()
ASSETS = ROOT / "assets"


def figures(profile: str) -> Path:
    """The folder of a profile's figures, made if missing."""
    folder = inside(ROOT / "figures", profile)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def in_repository(path: str | Path) -> Path:
    """A path as jobs and parameters give it: a relative one starts at the repository."""
    return ROOT / path


def inside(folder: Path, relative: str | Path) -> Path:
    """folder / relative, which need not exist.

    Raises:
        ValueError: `relative` is absolute, or leaves the folder through ".." or a symbolic link.
    """
    folder = Path(folder)
    if "\0" in str(relative):
        raise ValueError(f"{str(relative)!r} is not a path: it holds a null character")
    if Path(relative).is_absolute():
        raise ValueError(f"{str(relative)!r} is absolute; a path relative to {folder} is needed")
    path = folder / relative
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{str(relative)!r} leaves its folder: it leads to {path.resolve()}, outside {folder}")
    return path
