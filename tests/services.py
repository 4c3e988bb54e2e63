"""The real things that tests run against, and how to ask for one: `require("podman")`.

A missing service skips the test with the reason, or fails it where FLOW_TEST_REQUIRE_ALL=1.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
PODMAN_IMAGE = "localhost/flow-test:latest"
IMAGE_PACKAGES = "python3"

PROGRAMS = {
    "bubblewrap": "bwrap",
    "chromium": "chromium",
    "debootstrap": "debootstrap",
    "gcc": "cc",
    "git": "git",
    "podman": "podman",
    "runc": "runc",
    "s3fs": "s3fs",
    "ssh": "ssh",
}


def missing(service: str) -> str | None:
    """Why this machine cannot give a test `service`, or None where it can."""
    if service == "root":
        return None if os.geteuid() == 0 else "needs root"
    if service == "mounts":
        return _fails(["unshare", "--mount", "true"], "needs the right to mount (root, and a kernel that lets it)")
    if service not in PROGRAMS:
        raise ValueError(f"no service is called {service!r}: use root, mounts, {', '.join(sorted(PROGRAMS))}")
    program = PROGRAMS[service]
    if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        return f"{service} is not installed"
    if service == "s3fs" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "s3fs needs /dev/fuse"
    return None


def _fails(argv: list[str], reason: str) -> str | None:
    return None if subprocess.run(argv, capture_output=True).returncode == 0 else reason


def require(*services: str) -> None:
    """Skips the test where one of `services` is missing; fails it where FLOW_TEST_REQUIRE_ALL=1."""
    for service in services:
        reason = missing(service)
        if reason:
            unavailable(reason)


def unavailable(reason: str) -> NoReturn:
    if os.environ.get("FLOW_TEST_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and FLOW_TEST_REQUIRE_ALL=1 lets no test be skipped", pytrace=False)
    pytest.skip(reason)


def wait_for(condition: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """The first true value of `condition()`; fails the test when none came within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:g} s in vain for {what or condition.__qualname__}: last it was {value!r}")
        time.sleep(0.01)
    return value


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the tests' workers are processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Processes


class Process(NamedTuple):
    pid: int
    command: str
    environ: Mapping[str, str]


def processes() -> Iterator[Process]:
    """Every process that this user may look into; zombies have nothing to show and are left out."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            block = (entry / "environ").read_bytes()
        except OSError:
            continue
        if command:
            pairs = (item.partition("=") for item in block.decode(errors="replace").split("\0"))
            environ = {name: value for name, _, value in pairs}
            yield Process(int(entry.name), command.decode(errors="replace").replace("\0", " ").strip(), environ)


def processes_of(home: Path) -> tuple[list[Process], list[Process]]:
    """Those that run or hold a task of the Flow home, and others that were started with it (this process apart)."""
    tasks = home / "tasks"
    task_ids = {entry.name for entry in tasks.iterdir()} if tasks.is_dir() else set()
    of_tasks, others = [], []
    for process in processes():
        if process.pid == os.getpid():
            continue
        if process.environ.get("FLOW_TASK_ID") in task_ids or f"{tasks}/" in process.command:
            of_tasks.append(process)
        elif process.environ.get("FLOW_HOME") == str(home):
            others.append(process)
    return of_tasks, others


def end(found: list[Process]) -> None:
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def mounts_under(folder: Path) -> list[str]:
    """Mount points in this mount namespace that lie under `folder`, the deepest first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[1]) for line in lines]
    return sorted((point for point in points if Path(point).is_relative_to(folder)), key=len, reverse=True)


def unmount(path: str | Path) -> None:
    if subprocess.run(["umount", str(path)], capture_output=True).returncode != 0:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# Containers


def podman_environment() -> dict[str, str]:
    """Makes podman use a configuration and a storage of the tests' own, so that nobody's containers are touched."""
    folder = CACHE / "podman"
    folder.mkdir(parents=True, exist_ok=True)
    run_root = Path(os.environ.get("XDG_RUNTIME_DIR", "/run" if os.geteuid() == 0 else "/tmp"))
    run_root = run_root / f"flow-test-{os.geteuid()}-{abs(hash_of(str(ROOT)))}"
    limits = "" if missing("root") else 'default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]\n'
    runtime = "" if missing("runc") else 'runtime = "runc"\n'
    files = {
        "containers.conf": f"[containers]\n{limits}[engine]\n{runtime}",
        "storage.conf": f'[storage]\ndriver = "{_storage_driver(folder)}"\n'
        f'graphroot = "{folder / "storage"}"\nrunroot = "{run_root}"\n',
    }
    for name, text in files.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / f"{name}.{os.getpid()}").write_text(text)
            (folder / f"{name}.{os.getpid()}").replace(folder / name)
    return {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }


def hash_of(text: str) -> int:
    """The same in every process, which `hash` is not."""
    import zlib

    return zlib.crc32(text.encode())


def _storage_driver(folder: Path) -> str:
    kind = subprocess.run(["stat", "--file-system", "--format=%T", folder], capture_output=True, text=True, check=True)
    return "vfs" if kind.stdout.strip() == "overlayfs" else "overlay"


def build_podman_image(environ: Mapping[str, str]) -> str | None:
    """Makes PODMAN_IMAGE where it is not there yet, without any registry. Returns why not, or None.

    debootstrap takes about a minute, so the image is kept across runs.
    """
    made_of = CACHE / "podman" / "image-packages"
    env = {**os.environ, **environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    with locked(CACHE / "podman-image.lock"):
        exists = subprocess.run(["podman", "image", "exists", PODMAN_IMAGE], env=env, capture_output=True)
        if exists.returncode == 0 and made_of.exists() and made_of.read_text() == IMAGE_PACKAGES:
            return None
        # debootstrap takes no path with a space, which the checkout's may have.
        with tempfile.TemporaryDirectory(prefix="flow-test-image-", dir="/var/tmp") as tree:
            suite, mirror = _debian_source()
            bootstrap = ["debootstrap", "--variant=minbase", f"--include={IMAGE_PACKAGES}", suite, tree, *mirror]
            done = subprocess.run(bootstrap, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode != 0:
                return f"debootstrap could not make the test image: {_last_error(done.stdout + done.stderr)}"
            with subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as tar:
                arguments = ["podman", "import", "--quiet", "-", PODMAN_IMAGE]
                done = subprocess.run(arguments, env=env, stdin=tar.stdout, capture_output=True, text=True)
        if done.returncode != 0 or tar.returncode != 0:
            return f"podman could not import the test image: {_last_error(done.stderr)}"
        echo = ["podman", "run", "--rm", PODMAN_IMAGE, "echo", "ready"]
        done = subprocess.run(echo, env=env, capture_output=True, text=True)
        if done.stdout != "ready\n":
            return f"podman could not run the test image: {_last_error(done.stderr)}"
        made_of.write_text(IMAGE_PACKAGES)
        return None


def _debian_source() -> tuple[str, list[str]]:
    """This system's release, and the mirror that its apt uses: debootstrap's default is not reachable everywhere."""
    release = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    suite = release[1] if release else "stable"
    asked = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines()
    return suite, [line.split()[1] for line in lines if line.split()[0] == suite][:1]


def _last_error(text: str) -> str:
    lines = text.strip().splitlines() or ["it said nothing"]
    return next((line for line in reversed(lines) if line.startswith(("E:", "Error"))), lines[-1])


# S3


class MotoServer:
    """S3 on loopback, by moto.

    Attributes:
        url: its endpoint.
        environ: what makes boto3, the aws command and Flow use it.
    """

    def __init__(self) -> None:
        argv = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        for line in self._process.stderr:
            if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                self.url = found[1]
                break
        else:
            raise RuntimeError(f"moto ended with code {self._process.wait()} before it listened")
        # It logs each request: an unread pipe would stop it.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self.environ = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test-access-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.environ["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environ["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environ["AWS_DEFAULT_REGION"],
        )

    def bucket(self, name: str, files: Mapping[str, bytes] = {}) -> Any:
        """Makes a bucket with `files` (key to content); returns a boto3 client."""
        client = self.client()
        client.create_bucket(Bucket=name)
        for key, content in files.items():
            client.put_object(Bucket=name, Key=key, Body=content)
        return client

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        assert self._process.stderr
        self._process.stderr.close()


# Web


class WebServer:
    """Files over HTTP or HTTPS on loopback, with ranges, and with connections that break when a test wants them to.

    Attributes:
        files: path ("/model.bin") to content.
        break_after: path to the number of bytes after which the next answer breaks off; used up by that answer.
        ranges: False makes it ignore `Range`, as simple servers do.
        requests: (path, Range header or None), as they came.
        ca_file: the certificate to trust; `environ` names it for Python, curl and git.
    """

    def __init__(self, folder: Path, tls: bool) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: dict[str, int] = {}
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.environ: dict[str, str] = {}
        self.ca_file: Path | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_FileHandler,), {"web": self}))
        self._server.daemon_threads = True
        if tls:
            self.ca_file = folder / "certificate.pem"
            _write_certificate(self.ca_file)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.ca_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO"):
                self.environ[name] = str(self.ca_file)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _FileHandler(BaseHTTPRequestHandler):
    web: WebServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        asked = self.headers.get("Range")
        self.web.requests.append((self.path, asked))
        content = self.web.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        etag = f'"{hash_of(content.hex()):08x}"'
        first, last, status = 0, len(content) - 1, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
        if found and self.web.ranges and self.headers.get("If-Range", etag) == etag:
            first, status = int(found[1]), 206
            last = min(last, int(found[2] or last))
            if first >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(status)
        if self.web.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if with_body:
            limit = self.web.break_after.pop(self.path, None)
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[first : last + 1][:limit])
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """The test looks at `requests` instead."""


def _write_certificate(path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "flow tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))


# Git


class GitRepo:
    """A git repository with two commits; `v1` is a tag on the first and `main` the branch at the second.

    Attributes:
        path: the working tree, with `file.txt` ("one", then "two").
        url: as a mount source; add `@ref`.
        first, second: the commits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"git+file://{path}"
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")
        self.first = self.commit({"file.txt": "one\n", "script.sh": "#!/bin/sh\necho one\n"}, "first")
        self.git("tag", "v1")
        self.second = self.commit({"file.txt": "two\n"}, "second")

    def git(self, *arguments: str) -> str:
        identity = [
            "-c",
            "user.name=Flow tests",
            "-c",
            "user.email=tests@example.invalid",
            "-c",
            "commit.gpgsign=false",
        ]
        argv = ["git", "-C", str(self.path), *identity, *arguments]
        env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, files: Mapping[str, str], message: str) -> str:
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")
