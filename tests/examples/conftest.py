"""Fixtures of the examples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.examples import world as worlds
from tests.examples.world import World
from tests.services import MotoServer, require


@pytest.fixture(scope="session")
def user_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_user_python(tmp_path_factory.mktemp("user-python") / "env")


@pytest.fixture
def world(
    flow_home: Path,
    project: Path,
    user_python: Path,
    fake_nvml: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    require("mounts" if os.geteuid() == 0 else "bubblewrap")
    found = World(project, user_python, fake_nvml, monkeypatch)
    yield found
    found.end()


@pytest.fixture(params=["flow", "flow_sdk"])
def both(world: World, request: pytest.FixtureRequest) -> World:
    """The world twice: for `import flow`, and for `import flow_sdk as flow`."""
    world.import_name = request.param
    return world


@pytest.fixture
def buckets(moto_server: MotoServer, s3fs: None) -> MotoServer:
    """S3 with the buckets that the examples name."""
    worlds.fill_buckets(moto_server)
    return moto_server


@pytest.fixture(scope="session")
def built_images(podman_storage: dict[str, str]) -> None:
    worlds.build_images(podman_storage)


@pytest.fixture
def images(built_images: None, podman_image: str) -> None:
    """The images that the examples name, made on this machine."""
