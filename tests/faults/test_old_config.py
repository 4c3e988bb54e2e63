"""A config file of the original documents, or of another version, is read; a broken one is one clear sentence."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

import flow_sdk as flow
from flow_sdk import settings
from tests.faults.processes import FAR_S

OLD = """\
# Written by an earlier flow init.
provider: fcp
api_key: fkey_abcdef123456
project: my-project
region: us-central1-b
api_url: https://api.example.com
ssh_keys:
  - laptop
default_instance_type: 8xa100
colab:
  idle_timeout: 30
"""


def write(home: Path, text: str | bytes) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_an_old_file_is_read_with_its_old_names(flow_home: Path) -> None:
    write(flow_home, OLD)
    found = settings.load()
    assert found.provider == "mithril"
    assert (found.api_key, found.project, found.region) == ("fkey_abcdef123456", "my-project", "us-central1-b")
    assert (found.api_url, found.ssh_keys) == ("https://api.example.com", ("laptop",))
    assert found.other == {"default_instance_type": "8xa100", "colab": {"idle_timeout": 30}}
    assert "fkey" not in repr(found)


@pytest.mark.parametrize("name", ["fcp", "FCP", "foundry", "mithril", "Mithril"])
def test_a_provider_by_any_of_its_names(name: str, flow_home: Path) -> None:
    write(flow_home, f"provider: {name}\n")
    assert settings.load().provider == "mithril"


def test_a_provider_that_is_not_here_is_one_sentence(flow_home: Path, project: Path) -> None:
    write(flow_home, OLD)
    with pytest.raises(flow.errors.ValidationError) as caught:
        flow.run("echo hi")
    assert caught.value.message == "There is no provider 'mithril' here."
    assert "fkey" not in str(caught.value)
    # It hinders nobody who says where to run.
    assert flow.run("echo hi", provider="local").wait(FAR_S).status == "completed"


def test_what_is_not_known_survives_a_new_setting(flow_home: Path) -> None:
    path = write(flow_home, OLD)
    path.chmod(0o644)
    assert settings.save({"provider": "local", "region": None}) == path
    found = settings.load()
    assert (found.provider, found.region, found.api_key) == ("local", None, "fkey_abcdef123456")
    assert found.other == {"default_instance_type": "8xa100", "colab": {"idle_timeout": 30}}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_old_environment_names_count(flow_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(flow_home, OLD)
    monkeypatch.setenv("FCP_API_KEY", "fkey_other")
    monkeypatch.setenv("FCP_PROJECT", "elsewhere")
    assert (settings.load().api_key, settings.load().project) == ("fkey_other", "elsewhere")


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "{}\n", "\ufeffregion: here\n", "provider:\n"])
def test_a_file_that_says_little_is_fine(text: str, flow_home: Path, project: Path) -> None:
    write(flow_home, text)
    assert settings.load().provider == "local"
    assert flow.run("true").wait(FAR_S).status == "completed"


BROKEN = {
    "not yaml": ("provider: [local\nregion: x\n", "is not valid YAML"),
    "a tab": ("provider:\n\tlocal\n", "is not valid YAML"),
    "a list": ("- provider\n- local\n", "must hold `name: value` lines"),
    "a word": ("local\n", "must hold `name: value` lines"),
    "a number": ("provider: 7\n", "has a provider that is not text"),
    "a nested key": ("api_key: {a: b}\n", "has a api_key that is not text"),
    "keys that are a word": ("ssh_keys: laptop\n", "has ssh_keys that are not a list of names"),
    "a number for a name": ("1: local\n", "must hold `name: value` lines"),
    "not utf-8": (b"provider: \xff\xfe\n", "cannot be read"),
    "nul bytes": (b"\0\0\0\0", "is not valid YAML"),
    "an object": ("!!python/object/apply:os.system ['true']\n", "is not valid YAML"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_sentence(kind: str, flow_home: Path, project: Path) -> None:
    text, what = BROKEN[kind]
    path = write(flow_home, text)
    before = path.read_bytes()
    for act in (settings.load, lambda: flow.run("echo hi"), lambda: settings.save({"region": "x"})):
        with pytest.raises(flow.errors.ConfigError) as caught:
            act()
        assert what in caught.value.message and str(path) in caught.value.message, caught.value.message
        assert "\n" not in caught.value.message and "flow init" in caught.value.suggestions[0]
    assert path.read_bytes() == before
    assert not (flow_home / "tasks").exists() or not list((flow_home / "tasks").iterdir())


def test_a_config_that_is_a_folder_is_one_sentence(flow_home: Path) -> None:
    (flow_home / "config.yaml").mkdir(parents=True)
    with pytest.raises(flow.errors.ConfigError, match="cannot be read"):
        settings.load()
