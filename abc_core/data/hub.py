"""Folders that may lie on this machine or on the model hub; nothing is fetched unless asked for."""

from pathlib import Path


def local_copy(name, download: bool, **chosen) -> Path:
    """A local folder, or the local copy of a model or data set on the hub.

    Args:
        chosen: of `huggingface_hub.snapshot_download`: which files, which revision, which kind of repository.
    Raises:
        FileNotFoundError: neither a folder nor in the hub's local cache (with `download`: nor to be had).
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), local_files_only=not download, **chosen))
    except (LocalEntryNotFoundError, ValueError) as error:
        hint = "no connection" if download else "download=True fetches it once"
        raise FileNotFoundError(f"{name} is neither a folder nor in the local cache of the model hub ({hint}): {error}") from error
