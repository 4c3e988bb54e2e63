"""Where Flow keeps its files, and what the user has configured: arguments override the environment, which overrides
`config.yaml`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flow_sdk.errors import ConfigError
from flow_sdk.files import write_private

ENVIRONMENT = {
    "provider": ("FLOW_PROVIDER",),
    "api_key": ("MITHRIL_API_KEY", "FCP_API_KEY"),
    "project": ("MITHRIL_PROJECT", "FCP_PROJECT"),
    "region": ("FLOW_REGION",),
    "api_url": ("FLOW_API_URL",),
}
OLD_PROVIDER_NAMES = {"fcp": "mithril", "foundry": "mithril"}


def home() -> Path:
    """The folder of all of Flow's files: `FLOW_HOME`, else `~/.flow`."""
    given = os.environ.get("FLOW_HOME")
    return Path(given).absolute() if given else Path.home() / ".flow"


def make_home() -> Path:
    """`home()`, made with access for its owner only.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    folder = home()
    if not os.access(folder, os.W_OK):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / "tasks").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
    return folder


def unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"Flow cannot write to its folder {folder}: {error.strerror or error}.",
        ["Set FLOW_HOME to a folder you can write to.", "Or make room, or fix the folder's permissions."],
    )


@dataclass(frozen=True)
class Settings:
    """What `config.yaml` and the environment say.

    Attributes:
        provider: where tasks run unless they say otherwise.
        api_key: the cloud account's key; never shown.
        project: the cloud project's name or id.
        region: the preferred region.
        api_url: another address of the cloud's API.
        ssh_keys: names of ssh keys for new machines.
        other: keys of `config.yaml` that this version does not know, kept as they are.
    """

    provider: str = "local"
    api_key: str | None = field(default=None, repr=False)
    project: str | None = None
    region: str | None = None
    api_url: str | None = None
    ssh_keys: tuple[str, ...] = ()
    other: dict[str, Any] = field(default_factory=dict, repr=False)


def config_path() -> Path:
    return home() / "config.yaml"


def load() -> Settings:
    """The settings in force.

    Raises:
        ConfigError: `config.yaml` is there and cannot be read or understood.
    """
    values = read_config(config_path())
    for name, variables in ENVIRONMENT.items():
        given = next((os.environ[v] for v in variables if os.environ.get(v)), None)
        if given is not None:
            values[name] = given
    known = {f.name for f in fields(Settings)} - {"other"}
    provider = str(values.get("provider") or "local").lower()
    values["provider"] = OLD_PROVIDER_NAMES.get(provider, provider)
    values["ssh_keys"] = tuple(values.get("ssh_keys") or ())
    other = {name: value for name, value in values.items() if name not in known}
    refuse_misspelt(other, known)
    return Settings(**{n: v for n, v in values.items() if n in known and v is not None}, other=other)


def refuse_misspelt(other: dict[str, Any], known: set[str]) -> None:
    """Keys of other versions are left alone; one that is nearly a known key is a slip that would go unnoticed."""
    if not other:
        return
    from difflib import get_close_matches

    for name in other:
        near = get_close_matches(name, known, n=1, cutoff=0.8)
        if near:
            raise ConfigError(
                f"The config file {config_path()} has the unknown setting {name!r}.", [f"Did you mean {near[0]}?"]
            )


def read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The config file {path} cannot be read: {error}.", ["Run `flow init` to write it anew."]
        ) from error
    import yaml

    fix = [f"Correct {path}, or run `flow init` to write it anew."]
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"The config file {path} is not valid YAML{where}.", fix) from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"The config file {path} must hold `name: value` lines.", fix)
    for name in ("provider", "api_key", "project", "region", "api_url"):
        if name in values and not isinstance(values[name], str | None):
            raise ConfigError(f"The config file {path} has a {name} that is not text.", fix)
    if not isinstance(values.get("ssh_keys", []), list | None):
        raise ConfigError(f"The config file {path} has ssh_keys that are not a list of names.", fix)
    return values


def save(changes: dict[str, Any]) -> Path:
    """Writes `changes` into `config.yaml`, keeping everything else in it; readable by its owner only.

    Args:
        changes: settings by name; None removes one.
    """
    import yaml

    make_home()
    path = config_path()
    values = {**read_config(path), **changes}
    text = yaml.safe_dump({n: v for n, v in values.items() if v is not None}, sort_keys=False)
    try:
        write_private(path, text.encode())
    except OSError as error:
        raise unwritable(path.parent, error) from error
    return path
