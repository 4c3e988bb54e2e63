"""`TaskConfig`, the whole specification of a task, and the checks that make it true.

Everything a user can get wrong in it is raised when it is made, as `flow_sdk.errors.ValidationError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, PrivateAttr

from flow_sdk import hardware, mounts, yaml_file
from flow_sdk.errors import ValidationError
from flow_sdk.hardware import Hardware
from flow_sdk.mounts import Mount

CODE_PATH = "/workspace"
"""Where a container sees the uploaded code."""

VOLUME_SIZE_GB = 100
"""Size of a volume that is made because a task names it."""

# What people coming from other tools write.
_SYNONYMS = {
    "cmd": "command",
    "container": "image",
    "dependencies": "pip",
    "docker_image": "image",
    "environment": "env",
    "gpus": "gpu",
    "instance": "instance_type",
    "instances": "num_instances",
    "job_name": "name",
    "nodes": "num_instances",
    "num_nodes": "num_instances",
    "price": "max_price_per_hour",
    "requirements": "pip",
    "run": "command",
    "script": "command",
    "storage": "volumes",
    "time": "max_run_time_hours",
    "timeout": "max_run_time_hours",
    "workdir": "working_dir",
    "mount": "mounts",
    "path": "mount_path",
    "size": "size_gb",
    "id": "volume_id",
}


class _Problem(NamedTuple):
    field: str
    error: ValidationError


class _Model(BaseModel):
    """What both models share: the checks below make the values, and our errors say what is wrong with them.

    pydantic's own validator is only built when somebody asks for a JSON schema, a dump or `model_validate` (which comes
    back here): building it would double what importing pydantic costs.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    def __init__(self, **values: Any) -> None:
        problems = _fill(self, values)
        if problems:
            raise _one_error(problems)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Any:
        """As the constructor: pydantic's own error would show the input, which may hold secrets."""
        if isinstance(obj, cls):
            return obj
        if not isinstance(obj, Mapping):
            raise ValidationError(f"{cls.__name__} is made from a mapping of fields, not from {_kind(obj)}.")
        return cls(**_named(obj))


class VolumeSpec(_Model):
    """A volume and where the task sees it.

    Args:
        name: an existing volume, or one to be made. Without name and id the volume is the task's own.
        volume_id: an existing volume.
        size_gb: size in GB where the volume is made.
        mount_path: absolute; /mnt/<name> where left out.
        interface: "block" (one machine at a time) or "file" (shared).
    """

    name: str | None = None
    volume_id: str | None = None
    size_gb: int = VOLUME_SIZE_GB
    mount_path: str = ""
    interface: str = "block"

    def to_json(self) -> dict[str, Any]:
        return _not_default(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValidationError(f"A volume's {name} cannot change.", ["Assign config.volumes a new list."])


class TaskConfig(_Model):
    """The whole specification of a task.

    Args:
        name: 1 to 64 letters, digits, dots, dashes and underscores.
        command: a shell line or script, or an argv list; None is a machine that stays up for you.
        instance_type: hardware of each node: "a100", "8xa100", "cpu", "gpu.medium", a provider's id.
        gpu: GPUs of each node, "a100" being exactly one.
        num_instances: nodes.
        image: container image to run in.
        env: environment variables.
        working_dir: where the command starts.
        volumes: persistent storage: `VolumeSpec`s or dicts of their fields, names, or {"/data": "name"}.
        mounts: {path: source}, or one source to see at /data.
        ports: TCP ports to reach from outside.
        ssh_keys: names, ids or public keys allowed in beside your own.
        upload_code: send the current directory along.
        max_price_per_hour: USD per hour for the whole task; dearer offers are not taken.
        max_run_time_hours: the task is ended after this many hours.
        pip: packages to install before the command.
        retries: how often to start the command again when it fails.
        tags: labels to find tasks by.
        provider: who owns the machines; None is the configured one.
        region: where they stand; None is any.

    Raises:
        ValidationError: at construction and at assignment, for all that cannot be right.
    """

    name: str | None = None
    command: str | list[str] | None = None
    instance_type: str | None = None
    gpu: str | None = None
    num_instances: int = 1
    image: str | None = None
    env: dict[str, str] = {}
    working_dir: str | None = None
    volumes: list[VolumeSpec] = []
    mounts: dict[str, str] = {}
    ports: list[int] = []
    ssh_keys: list[str] = []
    upload_code: bool = True
    max_price_per_hour: float | None = None
    max_run_time_hours: float | None = None
    pip: list[str] = []
    retries: int = 0
    tags: list[str] = []
    provider: str | None = None
    region: str | None = None

    _frozen: bool = PrivateAttr(False)
    _missing_env: tuple[str, ...] = PrivateAttr(())

    @property
    def hardware(self) -> Hardware | None:
        """What each node must have; None where the config leaves it open."""
        return hardware.request(self.instance_type, self.gpu)

    @property
    def missing_env(self) -> tuple[str, ...]:
        """Environment variables whose names are known and whose values were not kept."""
        return self._missing_env

    def mount_values(self) -> tuple[Mount, ...]:
        """The mounts, parents first.

        Raises:
            ValidationError: a local source is not there any more.
        """
        return tuple(mounts.resolve(target, source) for target, source in self.mounts.items())

    def replace(self, **changes: Any) -> TaskConfig:
        """A new config with these fields changed, checked like any other."""
        # Also what was changed in place, as in config.tags.append("x").
        new = TaskConfig(**{**_not_default(self), **changes})
        if "env" not in changes:
            new._missing_env = self._missing_env
        return new

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> TaskConfig:
        """As `replace`: pydantic's own would take unchecked values."""
        return self.replace(**(update or {}))

    def frozen_copy(self) -> TaskConfig:
        """The config as it is submitted: a copy of its own that refuses assignment.

        Raises:
            ValidationError: values of environment variables are missing.
        """
        if self._missing_env:
            raise ValidationError(
                f"The values of {', '.join(self._missing_env)} were not kept with the task.",
                ["Give them again with env={...}."],
            )
        submitted = self.model_copy()
        submitted._frozen = True
        return submitted

    def to_json(self, *, secrets: bool = True) -> dict[str, Any]:
        """The fields that differ from their defaults, as JSON types.

        Args:
            secrets: False leaves out the values of `env`: each name is there with None.
        """
        found = {name: copy(value) for name, value in _not_default(self).items()}
        if self.volumes:
            found["volumes"] = [volume.to_json() for volume in self.volumes]
        env = {name: value if secrets else None for name, value in self.env.items()} | dict.fromkeys(self._missing_env)
        return found | {"env": env} if env else found

    @classmethod
    def from_json(cls, values: Mapping[str, Any], env: Mapping[str, str] | None = None) -> TaskConfig:
        """What `to_json` wrote, also on another day: local sources need not be there any more.

        Args:
            env: the values that `to_json(secrets=False)` left out. Names that stay without one are `missing_env`.
        """
        stored = dict(values)
        given = {**(stored.pop("env", None) or {}), **(env or {})}
        missing = tuple(name for name, value in given.items() if value is None)
        if known := {name: value for name, value in given.items() if value is not None}:
            stored["env"] = known
        config = cls.__new__(cls)
        problems = _fill(config, stored, past=True)
        if problems:
            raise _one_error(problems)
        config._missing_env = missing
        return config

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskConfig:
        """From a mapping of fields, as the constructor takes them.

        Raises:
            ValidationError: as the constructor, and where it is no mapping of names.
        """
        if not isinstance(values, Mapping):
            raise ValidationError(f"A task's config must be a mapping of fields, not {_kind(values)}.")
        return cls(**_named(values))

    @classmethod
    def from_yaml(cls, path: str | Path) -> TaskConfig:
        """From a YAML file of fields.

        Values of `env` and items of `command` are taken as they are written: `LR: 1e-3` stays 1e-3, `DEBUG: yes`
        stays yes.

        Raises:
            ValidationError: the file cannot be read or is not right; the message names file and line.
        """
        found, lines = yaml_file.read_mapping(Path(path).expanduser(), as_written=("env", "command"))
        values = _named(found, f"{path}: ")
        config = cls.__new__(cls)
        problems = _fill(config, values)
        if problems:
            raise _one_error(
                problems, lambda field: f"{path}, line {lines[field]}: " if field in lines else f"{path}: "
            )
        return config

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
            return
        if self._frozen:
            raise ValidationError(
                f"This config was submitted, so its {name} cannot change.",
                [f"Make a new one: config.replace({name}=...)."],
            )
        # All fields are checked together, and a refused value leaves the config as it was.
        new = self.replace(**{name: value})
        self.__dict__.update(new.__dict__)
        self.__pydantic_fields_set__.update(new.__pydantic_fields_set__)
        self._missing_env = new._missing_env

    def __delattr__(self, name: str) -> None:
        raise ValidationError(f"The field {name} cannot be deleted.", [f"Set config.{name} to what it should be."])

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, TaskConfig) else NotImplemented

    def __repr_args__(self) -> Iterable[tuple[str, Any]]:
        for name, value in self.to_json(secrets=False).items():
            yield name, list(value) if name == "env" else value


def _fill(model: BaseModel, values: Mapping[str, Any], *, past: bool = False) -> list[_Problem]:
    """Check the values and put them into the model; what is wrong with them, in the order they were given.

    None is "not given" for every field.
    """
    kind = type(model)
    checks = _VOLUME_CHECKS if kind is VolumeSpec else _PAST_CHECKS if past else _CHECKS
    fields = {name: copy(field.default) for name, field in kind.model_fields.items()}
    problems = []
    for name, value in values.items():
        try:
            if name not in checks:
                raise _unknown_field(kind, name)
            if value is not None:
                fields[name] = checks[name](value)
        except ValidationError as error:
            problems.append(_Problem(name, error))
    problems = problems or list((_check_volume if kind is VolumeSpec else _check_together)(fields))
    private = None if kind is VolumeSpec else {"_frozen": False, "_missing_env": ()}
    model.__setstate__(
        {
            "__dict__": fields,
            "__pydantic_fields_set__": {name for name, value in values.items() if value is not None},
            "__pydantic_extra__": None,
            "__pydantic_private__": private,
        }
    )
    return problems


def _not_default(model: BaseModel) -> dict[str, Any]:
    return {name: value for name, value in model.__dict__.items() if value != type(model).model_fields[name].default}


def _check_volume(fields: dict[str, Any]) -> Iterator[_Problem]:
    name, volume_id = fields["name"], fields["volume_id"]
    if name and volume_id:
        yield _Problem(
            "volume_id",
            ValidationError(
                f"A volume is given by name or by volume_id, not by both ({name} and {volume_id}).",
                ["Leave one of them out."],
            ),
        )
    if not fields["mount_path"]:
        if not (name or volume_id):
            yield _Problem("mount_path", ValidationError("A volume needs a mount_path.", ["Add mount_path: /data."]))
        fields["mount_path"] = f"/mnt/{name or volume_id}"


def _check_together(fields: dict[str, Any]) -> Iterator[_Problem]:
    """Fields that are right alone and wrong together."""
    try:
        hardware.request(fields["instance_type"], fields["gpu"])
    except ValidationError as error:
        yield _Problem("gpu", error)
    used = dict(fields["mounts"])
    for volume in fields["volumes"]:
        path, shown = volume.mount_path, volume.name or volume.volume_id or "a volume"
        if path in used:
            yield _Problem(
                "volumes",
                ValidationError(
                    f"Mount path {path} already in use by {used[path]}.",
                    [f"Mount {shown} at a path of its own, such as {path}2."],
                ),
            )
        used[path] = shown
    if fields["upload_code"] and CODE_PATH in used:
        yield _Problem(
            "mounts" if CODE_PATH in fields["mounts"] else "volumes",
            ValidationError(
                f"Mount path {CODE_PATH} already in use by the uploaded code.",
                [
                    f"Mount {used[CODE_PATH]} at a path of its own, such as /data.",
                    "Use upload_code=False to send no code.",
                ],
            ),
        )


def _named(values: Mapping[Any, Any], where: str = "") -> dict[str, Any]:
    for name in values:
        if not isinstance(name, str):
            raise ValidationError(f"{where}A field's name must be text, not {_short(name)}.", ["Put it in quotes."])
    return dict(values)


def _unknown_field(model: type[BaseModel], name: str) -> ValidationError:
    from difflib import get_close_matches

    fields = list(model.model_fields)
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower())
    near = [_SYNONYMS[plain]] if _SYNONYMS.get(plain) in fields else get_close_matches(plain, fields, n=3, cutoff=0.6)
    what = "volume field" if model is VolumeSpec else "field"
    known = f"Known {what}s: {', '.join(fields)}."
    if not near:
        return ValidationError(f"Unknown {what} {_short(name)}.", [known])
    return ValidationError(
        f"Unknown {what} {_short(name)}, did you mean {near[0]}?", [f"Use {n}." for n in near] + [known]
    )


def _one_error(problems: list[_Problem], prefix: Callable[[str], str] = lambda field: "") -> ValidationError:
    """All problems in one error: the first is its message, the others are among the suggestions."""
    first, *others = problems
    suggestions = list(first.error.suggestions)
    for other in others:
        suggestions += [f"Also: {prefix(other.field)}{other.error.message}", *other.error.suggestions]
    return ValidationError(prefix(first.field) + first.error.message, suggestions)


# One check a field: it takes what the user gave, returns what is stored, raises ValidationError


def _text(field: str, value: Any, example: str) -> str:
    if not isinstance(value, str):
        quoted = [f'Put it in quotes: "{value}".'] if isinstance(value, (int, float)) else []
        raise ValidationError(f"{field} must be text such as {example}, not {_kind(value)}.", quoted)
    if not value.strip():
        raise ValidationError(f"{field} is empty.", [f"Give one such as {example}, or leave {field} out."])
    return _storable(field, value)


def _storable(what: str, text: str) -> str:
    """Text that can be a process's argument and go through JSON, a database and a terminal."""
    if "\0" in text:
        raise ValidationError(f"{what} has a NUL character in it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError(f"{what} has bytes in it that are no UTF-8 text.") from None
    return text


def _texts(field: str, example: str, check: Callable[[str], str] = str) -> Callable[[Any], list[str]]:
    """A list of texts without repeats; one text is a list of one."""

    def checked(value: Any) -> list[str]:
        if not isinstance(value, (str, list, tuple)):
            raise ValidationError(f"{field} must be a list of texts such as {example}, not {_kind(value)}.")
        items = [value] if isinstance(value, str) else value
        return list(dict.fromkeys(check(_text(f"Each of {field}", item, example)) for item in items))

    return checked


def _integer(field: str, value: Any, at_least: int, at_most: int | None = None) -> int:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    if not isinstance(whole, int) or isinstance(whole, bool):
        digits = isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()) is not None
        shown = repr(value) if isinstance(value, float) else _kind(value)
        raise ValidationError(
            f"{field} must be a whole number, not {shown}.",
            [f"Write {value.strip()} without quotes."] if digits else [],
        )
    if whole < at_least or (at_most is not None and whole > at_most):
        limits = f"at least {at_least}" if at_most is None else f"between {at_least} and {at_most}"
        nearest = at_least if whole < at_least else at_most
        raise ValidationError(
            f"{field} must be {limits}, not {_short(whole)}.",
            [f"Use {field}={nearest} or more."] if at_most is None else [],
        )
    return whole


def _positive(field: str, unit: str) -> Callable[[Any], float]:
    def checked(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            number = (
                re.fullmatch(r"[$€]?\s*([0-9]+(?:\.[0-9]+)?)\s*[a-z]*", value.strip())
                if isinstance(value, str)
                else None
            )
            raise ValidationError(
                f"{field} must be a number of {unit}, not {_short(value) if isinstance(value, str) else _kind(value)}.",
                [f"Use {field}={number[1]}."] if number else [],
            )
        try:
            number_value = float(value)
        except OverflowError:
            number_value = math.inf
        if not math.isfinite(number_value) or number_value <= 0:
            raise ValidationError(
                f"{field} must be more than 0 and finite, not {_short(value)}.", [f"Leave {field} out for no limit."]
            )
        return number_value

    return checked


def _name(value: Any) -> str:
    text = _text("name", value, "train-1")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        return text
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:64].rstrip("-._")
    raise ValidationError(
        f"Invalid name {_short(text)}: use 1 to 64 letters, digits, dots, dashes and underscores, "
        "beginning with a letter or digit.",
        [f"Use {made}."] if made else ["Use a name such as train-1."],
    )


def _command(value: Any) -> str | list[str]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise ValidationError("command is an empty list.", ["Leave command out for a machine that stays up."])
        items = [_plain("Each part of command", item) for item in value]
        if not items[0].strip():
            raise ValidationError(
                "The first part of command, the program, is empty.", ['Write command=["python", ...].']
            )
        return items
    return _text("command", value, "python train.py")


def _plain(what: str, value: Any) -> str:
    """A scalar as a shell user would write it: True is "true", 0.001 is "0.001"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if not isinstance(value, str):
        raise ValidationError(f"{what} must be text or a number, not {_kind(value)}.", ["Put it in quotes."])
    return _storable(what, value)


def _env(value: Any) -> dict[str, str]:
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, (list, tuple)) and all(isinstance(item, str) and "=" in item for item in value):
        pairs = [(name, text) for name, _, text in (item.partition("=") for item in value)]
    else:
        raise ValidationError(
            "env must be a mapping of names to values, or a list of NAME=VALUE.", ['Write env={"BATCH_SIZE": "256"}.']
        )
    found: dict[str, str] = {}
    for name, one in pairs:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            made = re.sub(r"[^A-Za-z0-9_]+", "_", str(name)).lstrip("0123456789")
            raise ValidationError(
                f"Invalid environment variable name {_short(name)}: use letters, digits and underscores, not beginning "
                "with a digit.",
                [f"Use {made}."] if made.strip("_") else ["Use a name such as BATCH_SIZE."],
            )
        if one is None:
            raise ValidationError(
                f"The environment variable {name} has no value.",
                [f"Is {name} set where you run this?", f'Use {name}="" for an empty one, or leave it out.'],
            )
        if name in found:
            raise ValidationError(f"The environment variable {name} is given twice.", ["Leave one of them out."])
        found[name] = _plain(f"The environment variable {name}", one)
    return found


# The grammar of github.com/distribution/reference: [host[:port]/]path[:tag][@digest].
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"


def _image(value: Any) -> str:
    text = _text("image", value, "pytorch/pytorch:latest").strip()
    if re.fullmatch(_IMAGE, text):
        return text
    if re.match(r"[a-z0-9+]+://", text) or re.search(r":[^/]*@(?!sha256:)", text):
        bare = re.sub(r"^[a-z0-9+]+://", "", text)
        fits = re.fullmatch(_IMAGE, bare) is not None
        raise ValidationError("image must be an image's name, not a URL.", [f"Use {bare}."] if fits else [])
    raise ValidationError(
        f"Invalid image {_short(text)}: write it as [registry/]name[:tag].",
        [f"Use {text.lower()}."] if re.fullmatch(_IMAGE, text.lower()) else ["Use one such as pytorch/pytorch:latest."],
    )


def _port(value: Any) -> int:
    if isinstance(value, str):
        inner = re.fullmatch(r"(?:[0-9]{1,5}:)?([0-9]{1,5})(?:/tcp)?", value.strip())
        raise ValidationError(
            f"Each of ports must be a whole number, not {_short(value)}.", [f"Use ports=[{inner[1]}]."] if inner else []
        )
    return _integer("Each of ports", value, 1, 65535)


def _ports(value: Any) -> list[int]:
    ports = [_port(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    twice = next((port for port in ports if ports.count(port) > 1), None)
    if twice is not None:
        raise ValidationError(f"Port {twice} is given twice in ports.", ["Leave one of them out."])
    return ports


def _ssh_key(text: str) -> str:
    if "PRIVATE KEY" in text:
        raise ValidationError("ssh_keys has a private key in it.", ["Give the key's name, or its public half (.pub)."])
    return text.strip()


def _requirement(text: str) -> str:
    text = text.strip()
    if text.startswith("-"):
        option = text.split()[0].partition("=")[0]
        raise ValidationError(
            f"pip takes packages, not options such as {_short(option)}.",
            ["Put it in the command: pip install -r requirements.txt && python train.py."],
        )
    if "://" in text:
        mounts.refuse_credentials(text[re.search(r"[A-Za-z0-9+]*://", text).start() :], "A pip package")  # type: ignore[union-attr]
    if not re.match(r"[A-Za-z0-9./]", text):
        raise ValidationError(f"Invalid pip package {_short(text)}.", ["Write one such as torch or 'torch>=2.1'."])
    return text


def _pip(value: Any) -> list[str]:
    return _texts("pip", "torch", _requirement)(value.split() if isinstance(value, str) and value.strip() else value)


def _tag(text: str) -> str:
    if re.fullmatch(r"[^\s,\x00-\x1f\x7f-]" + r"[^\s,\x00-\x1f\x7f]{0,63}", text):
        return text
    raise ValidationError(
        f"Invalid tag {_short(text)}: use 1 to 64 characters without spaces and commas, not beginning with a dash.",
        [f"Use {made}."] if (made := re.sub(r"[\s,\x00-\x1f\x7f]+", "-", text).strip("-")[:64]) else [],
    )


def _word(field: str, example: str) -> Callable[[Any], str]:
    def checked(value: Any) -> str:
        text = _text(field, value, example).strip()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
            raise ValidationError(f"Invalid {field} {_short(text)}: use one such as {example}.")
        return text

    return checked


def _flag(field: str) -> Callable[[Any], bool]:
    def checked(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError(f"{field} must be true or false, not {_kind(value)}.", [f"Use {field}=False."])
        return value

    return checked


def _volumes(value: Any) -> list[VolumeSpec]:
    if isinstance(value, Mapping):
        return [_volume(item, path) for path, item in value.items()]
    if not isinstance(value, (list, tuple)):
        value = [value] if isinstance(value, (str, VolumeSpec)) else None
    if value is None:
        raise ValidationError(
            "volumes must be a list of volumes, or a mapping of path to volume name.",
            ['Write volumes=[{"name": "training-data", "mount_path": "/data"}].'],
        )
    return [_volume(item) for item in value]


def _volume(item: Any, path: Any = None) -> VolumeSpec:
    """One volume, from what stands in a list or (with its path) in a mapping."""
    if isinstance(item, VolumeSpec):
        fields = item.to_json()
    elif isinstance(item, Mapping):
        fields = dict(item)
    elif isinstance(item, str):
        text = item.removeprefix("volume://")
        name, colon, after = text.partition(":")
        if colon and after.startswith("/"):
            raise ValidationError(
                f"Invalid volume {_short(item)}: name and path are two things.",
                [f'Write volumes={{"{after}": "{name}"}}.'],
            )
        fields = {"volume_id" if mounts.is_volume_id(text) else "name": text}
    elif isinstance(volume_id := getattr(item, "volume_id", None), str):
        fields = {"volume_id": volume_id}
    else:
        raise ValidationError(f"A volume must be a name or a mapping of its fields, not {_kind(item)}.")
    if path is not None:
        if fields.get("mount_path", path) != path:
            raise ValidationError(
                f"A volume at {_short(path)} has another mount_path, {_short(fields['mount_path'])}.",
                ["Leave one out."],
            )
        fields["mount_path"] = path
    return VolumeSpec(**_named(fields))


def _volume_id(value: Any) -> str:
    text = _text("volume_id", value, "vol_abc123")
    if mounts.is_volume_id(text):
        return text
    named = re.fullmatch(mounts.VOLUME_NAME, text) is not None
    raise ValidationError(
        f"Invalid volume_id {_short(text)}: it begins with vol_.",
        [f"Use name: {text} for the volume of that name."] if named else [],
    )


def _interface(value: Any) -> str:
    text = _text("interface", value, "block").lower()
    if text not in ("block", "file"):
        raise ValidationError(
            f"Invalid interface {_short(value)}: it must be block or file.", ["Use block.", "Use file."]
        )
    return text


_VOLUME_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": mounts.check_volume_name,
    "volume_id": _volume_id,
    "size_gb": lambda value: _integer("size_gb", value, 1),
    "mount_path": lambda value: mounts.check_target(value, "mount_path"),
    "interface": _interface,
}

_CHECKS: dict[str, Callable[[Any], Any]] = {
    "name": _name,
    "command": _command,
    "instance_type": lambda value: str(hardware.parse(value)),
    "gpu": lambda value: str(hardware.parse(value, "gpu")),
    "num_instances": lambda value: _integer("num_instances", value, 1),
    "image": _image,
    "env": _env,
    "working_dir": lambda value: _text("working_dir", value, CODE_PATH),
    "volumes": _volumes,
    "mounts": mounts.parse,
    "ports": _ports,
    "ssh_keys": _texts("ssh_keys", "my-ssh-key", _ssh_key),
    "upload_code": _flag("upload_code"),
    "max_price_per_hour": _positive("max_price_per_hour", "USD"),
    "max_run_time_hours": _positive("max_run_time_hours", "hours"),
    "pip": _pip,
    "retries": lambda value: _integer("retries", value, 0),
    "tags": _texts("tags", "baseline", _tag),
    "provider": _word("provider", "local"),
    "region": _word("region", "us-central1-b"),
}

# A task of the past may have been given local files that are gone by now.
_PAST_CHECKS = {**_CHECKS, "mounts": lambda value: mounts.parse(value, must_exist=False)}


def _kind(value: object) -> str:
    """A value's type in a person's words; its content might be a secret."""
    words = {type(None): "nothing", bool: "true or false", int: "a number", float: "a number", str: "text"}
    words |= {list: "a list", tuple: "a list", dict: "a mapping", bytes: "bytes"}
    return words.get(type(value), f"a {type(value).__name__}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
