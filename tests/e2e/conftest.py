"""A real browser: Debian's Chromium, driven by Playwright, with the page served to it by JupyterLab and by Voilà.

`make e2e` runs these; plain pytest skips them. They need a trained model of ABC_PROFILE and leave their screenshots beside its runs.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from abc_core.runs import paths

PROFILE = os.environ.get("ABC_PROFILE") or "default"
PATIENCE = float(os.environ.get("ABC_PATIENCE") or 240)  # seconds until a model is loaded, its index is made and the page is there
ALONE = [  # no first-run pages, no updates, and no host but this one
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1"]))
            item.add_marker(pytest.mark.timeout(4 * PATIENCE))
            if not os.environ.get("ABC_E2E"):
                item.add_marker(pytest.mark.skip(reason="needs a browser and a trained model; `make e2e` runs it"))


@pytest.fixture(scope="session", autouse=True)
def _runs_of_the_session():
    """The real RUNS, in place of one that is thrown away: the model is there."""


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    chromium = shutil.which("chromium")
    assert chromium, "no Chromium is installed: apt-get install chromium"
    return browser_type_launch_args | {"executable_path": chromium, "args": ALONE}


@pytest.fixture
def page(page):
    page.set_default_timeout(1000 * PATIENCE)
    return page


@pytest.fixture(scope="session")
def shots():
    """Folder of the screenshots."""
    folder = paths.RUNS / PROFILE / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def voila(tmp_path_factory):
    """Address of the page as `make demo` serves it."""
    port = free_port()
    options = ["--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    with serving(["abc_core.demo.serve", PROFILE, *options], f"http://127.0.0.1:{port}/static/", tmp_path_factory.mktemp("voila")):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Address of the page's notebook in JupyterLab."""
    from abc_core.demo.serve import page_notebook

    folder, port, notebook = tmp_path_factory.mktemp("lab"), free_port(), page_notebook(PROFILE)
    settings = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "labconfig").mkdir()
    (folder / "labconfig" / "page_config.json").write_text(json.dumps(settings))
    options = [
        "--no-browser", "--allow-root", f"--ServerApp.root_dir={notebook.parent}", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=T", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with serving(["jupyterlab", *options], f"http://127.0.0.1:{port}/api", folder):
        yield f"http://127.0.0.1:{port}/doc/tree/{notebook.name}?token=T&reset"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(module: list[str], address: str, folder: Path):
    """`python -m module` for as long as the block lasts; it begins when the address answers."""
    log = folder / "server.log"
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-m", *module], stdout=out, stderr=out, env=environment, cwd=paths.ROOT)
    try:
        end = time.monotonic() + PATIENCE
        while not answers(address):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{module[0]} does not answer (ended with {process.poll()}): {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
