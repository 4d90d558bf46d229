"""Shared test set-up: eight virtual CPU devices, no hub, and a browser for those who ask for one."""

import fcntl
import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path

# Before anything imports jax. Eight devices so that meshes larger than 1×1 are tested on any machine.
# IA_JAX_TEST_PLATFORM=cuda,cpu or tpu,cpu is for tests/test_accelerators.py alone.
os.environ["JAX_PLATFORMS"] = os.environ.get("IA_JAX_TEST_PLATFORM", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The command line keeps compiled programs here; not in the user's cache. Subprocesses of tests share it.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ia_jax_tests_")
# Writing programs of eight devices to that cache has ended the interpreter (a segmentation fault in jax 0.12).
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Tiny programs spend their time in the compiler, so it is told to do less, here and in subprocesses.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.pop("ANTHROPIC_API_KEY", None)  # no test talks to anybody's model

import pytest


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("libtpu") is None:
        skip = pytest.mark.skip(reason="libtpu is not installed (pip install 'ia-jax[tpu]')")
        for item in items:
            if item.get_closest_marker("libtpu"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium driven by selenium, closed to the network; mark the test with `browser`."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "no chromium and chromedriver on PATH"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}; .ci/run should have installed them")
        pytest.skip(reason)
    webdriver = pytest.importorskip("selenium.webdriver")

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",  # a page must do without
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})  # browser.get_log("browser") for console errors
    instance = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield instance
    instance.quit()


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Everything that computes runs on a mesh: a test that sets none of its own has one of a single device."""
    import jax

    from ia_jax.parallel.mesh import make_mesh

    with jax.set_mesh(make_mesh()):
        yield


@pytest.fixture(scope="session", autouse=True)
def no_lines_of_progress():
    """What a command says on stderr does not depend on how slow the machine is. tests/test_progress.py has its own."""
    from ia_jax import progress

    progress._PACE = progress.Pace(lambda: 0.0)


@pytest.fixture(scope="session", autouse=True)
def what_one_process_finds_could_be_told_to_others():
    from ia_jax.parallel import distributed

    distributed.as_if_several = True


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """Compiled programs go with their module: a process may map 65,530 regions, and XLA crashes when none is left."""
    import jax

    yield
    jax.clear_caches()


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail: checks the status and the one line, which names every culprit; returns it."""
    from ia_jax import cli

    def run(argv, status, *culprits):
        capsys.readouterr()
        assert cli.main([str(a) for a in argv]) == status
        captured = capsys.readouterr()
        # Progress bars that were under way go to stderr too.
        lines = [x for x in re.split(r"[\r\n]+", captured.err) if x.strip() and "%|" not in x and "it/s" not in x]
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("ia-jax: error: ")
        for culprit in culprits:
            assert str(culprit) in lines[0]
        return lines[0]

    return run


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the directory that `make(directory)` filled, by one worker for all. Leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, make):
        directory = base / name
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                unfinished = Path(tempfile.mkdtemp(dir=base))
                make(unfinished)
                unfinished.rename(directory)
        return directory

    return made


@pytest.fixture(scope="session")
def parrot_model(once):
    """A tiny checkpoint directory that every stage can work with (tests/parrot.py)."""
    from tests import parrot

    return once("parrot", lambda directory: parrot.write_model(directory / "model")) / "model"


@pytest.fixture(scope="session")
def finished(once, tmp_path_factory, parrot_model):
    """The workdir of `ia-jax run` on the tiny model; beside it `stdout.txt`, what it printed (ROOT: the place)."""
    import contextlib
    import io

    from ia_jax import cli
    from tests import parrot

    def make(root):
        config = parrot.write_config(root / "config.py", parrot_model)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert cli.main(["run", f"--config={config}", f"--workdir={root / 'workdir'}", "--traceback"]) == 0
        (root / "stdout.txt").write_text(printed.getvalue().replace(str(root), "ROOT"))

    # A copy for each worker: a command that is refused still takes the workdir's lock.
    return shutil.copytree(once("finished", make), tmp_path_factory.mktemp("run") / "run") / "workdir"
