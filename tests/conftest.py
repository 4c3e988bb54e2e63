"""Fixtures of all tests, and the counts that end every run. What each service is: `tests/services.py`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import services
from tests.services import GitRepo, MotoServer, WebServer, require

IMAGE_BUILD_TIMEOUT_S = 900


# Isolation


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes what belongs to the user who runs the tests."""
    for name in os.environ:
        if name.startswith(("FLOW_", "AWS_", "MITHRIL_", "FCP_")) and not name.startswith("FLOW_TEST_"):
            monkeypatch.delenv(name)
    nobody = tmp_path_factory.getbasetemp() / "user"
    nobody.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(nobody))
    monkeypatch.setenv("FLOW_HOME", str(nobody / "flow-home-of-no-test"))


@pytest.fixture
def flow_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A FLOW_HOME of the test's own. A task that is still alive when the test is over is ended, and fails the test."""
    home = tmp_path / "flow home"
    monkeypatch.setenv("FLOW_HOME", str(home))
    yield home
    # A runner may still be writing its last words.
    deadline = time.monotonic() + 3
    while (leaked := services.processes_of(home)[0]) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed_by = time.monotonic() + 10
    while any(left := services.processes_of(home)) and time.monotonic() < killed_by:
        services.end([*left[0], *left[1]])
        time.sleep(0.02)
    mounts = services.mounts_under(home)
    for mount in mounts:
        services.unmount(mount)
    assert not leaked, "the test left task processes alive: " + "; ".join(f"{p.pid} {p.command}" for p in leaked)
    assert not any(left), f"these could not be ended: {left}"
    assert not mounts, f"the test left mounts: {mounts}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working directory; its name has a space and an accent, as people's folders do."""
    folder = tmp_path / "my projét"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# Services


@pytest.fixture(scope="session")
def podman_storage() -> Iterator[dict[str, str]]:
    require("root", "podman", "runc", "debootstrap")
    environ = services.podman_environment()
    reason = services.build_podman_image(environ)
    if reason:
        services.unavailable(reason)
    yield environ


@pytest.fixture
def podman_image(podman_storage: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small Debian image with python3; podman finds it in a storage of the tests' own."""
    for name, value in podman_storage.items():
        monkeypatch.setenv(name, value)
    return services.PODMAN_IMAGE


@pytest.fixture(scope="session")
def moto_process() -> Iterator[MotoServer]:
    server = MotoServer()
    yield server
    server.close()


@pytest.fixture
def moto_server(moto_process: MotoServer, monkeypatch: pytest.MonkeyPatch) -> MotoServer:
    """S3 on loopback, with the environment set to use it; bucket names must differ between tests."""
    for name, value in moto_process.environ.items():
        monkeypatch.setenv(name, value)
    return moto_process


@pytest.fixture
def s3fs() -> None:
    """s3fs can mount here."""
    require("s3fs", "mounts")


@pytest.fixture
def https_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """An empty web server with TLS, its certificate trusted by what this test starts."""
    server = WebServer(tmp_path, tls=True)
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture
def http_server(tmp_path: Path) -> Iterator[WebServer]:
    server = WebServer(tmp_path, tls=False)
    yield server
    server.close()


@pytest.fixture
def git_repo(tmp_path: Path) -> GitRepo:
    require("git")
    return GitRepo(tmp_path / "repository")


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("gcc")
    library = tmp_path_factory.mktemp("fake-nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run(["cc", *flags, "-o", str(library), str(source)], check=True)
    return library


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`fake_nvml("4xA100")` gives GPUs to this process and those it starts; "0" is a driver without GPUs."""

    def plug_in(gpus: str) -> None:
        import pynvml

        monkeypatch.setenv("FAKE_NVML", gpus)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(fake_nvml_library.parent), prepend=":")
        # The loader finds a library that is loaded already by its soname, so this process needs no LD_LIBRARY_PATH.
        loaded = ctypes.CDLL(str(fake_nvml_library))
        monkeypatch.setattr(pynvml, "nvmlLib", loaded)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    return plug_in


# Disks


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`full_disk("1m")` is a folder on a disk of its own of that size, empty until the test fills it."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        require("root", "mounts")
        folder = tmp_path / f"disk {len(mounted)}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)], check=True)
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        services.unmount(folder)


@pytest.fixture
def readonly_dir(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """`readonly_dir(folder)` makes a folder read-only, for root too, until the test is over."""
    changed: list[Path] = []

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            require("mounts")
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            changed.append(folder)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        else:
            folder.chmod(0o555)
            changed.append(folder)
        return folder

    yield make
    for folder in reversed(changed):
        if os.geteuid() == 0:
            services.unmount(folder)
        else:
            folder.chmod(0o755)


# Runs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # The first test that asks for the image pays for making it, and others may wait for that one.
        if "podman_storage" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(IMAGE_BUILD_TIMEOUT_S))


def _counts(reporter: pytest.TerminalReporter) -> tuple[int, int, int]:
    def number(*outcomes: str) -> int:
        return sum(len(reporter.stats.get(outcome, [])) for outcome in outcomes)

    return number("passed"), number("failed", "error"), number("skipped", "xfailed")


def _reporter(config: pytest.Config) -> pytest.TerminalReporter | None:
    """None in a worker, which reports to its controller."""
    return config.pluginmanager.get_plugin("terminalreporter") if not hasattr(config, "workerinput") else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = _reporter(session.config)
    if reporter and not session.config.option.collectonly:
        passed, failed, _ = _counts(reporter)
        if passed + failed == 0:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    by_reason: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        by_reason.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if by_reason:
        terminalreporter.section("not run, and why")
    for reason, tests in sorted(by_reason.items()):
        terminalreporter.write_line(f"{reason}:")
        for test in sorted(tests):
            terminalreporter.write_line(f"    {test}")


def pytest_unconfigure(config: pytest.Config) -> None:
    reporter = _reporter(config)
    if reporter and not config.option.collectonly:
        passed, failed, skipped = _counts(reporter)
        reporter.write_line(f"{passed} passed, {failed} failed, {skipped} skipped")
