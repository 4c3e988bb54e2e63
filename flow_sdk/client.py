"""The SDK's verbs: `Flow` and the same names at module level."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flow_sdk import providers, settings, store, taskdir
from flow_sdk.errors import AuthenticationError, FlowError, NoCapacityError, ResourceNotFoundError, ValidationError
from flow_sdk.files import write_private
from flow_sdk.providers import Bootstrap, Offer, Provider, Volume
from flow_sdk.settings import make_home, unwritable
from flow_sdk.task import Task, whoami

if TYPE_CHECKING:
    from flow_sdk.bundle import Bundle
    from flow_sdk.config import TaskConfig

AWS_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)


class Flow:
    """A client. It holds no connection to anything, so making one is free, and closing one ends no task.

    Args:
        provider: where tasks run unless they say otherwise; None is the configured one.
    """

    def __init__(self, provider: str | None = None) -> None:
        self._provider = provider

    def __enter__(self) -> Flow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is held open; here so that `with` and `close()` read as they do elsewhere."""

    @property
    def provider(self) -> str:
        return self._provider or settings.load().provider

    def run(
        self,
        command: str | Sequence[str] | TaskConfig | dict[str, Any] | None = None,
        *,
        code_root: str | Path | None = None,
        **fields: Any,
    ) -> Task:
        """Submits a task and returns at once.

        Args:
            command: a shell line, a script of several lines, an argv list, or a whole TaskConfig (or a dict of one).
            code_root: the folder that travels with the task; the current one unless said.
            **fields: any field of TaskConfig, as `gpu="a100"`; with a config, what differs from it.

        Raises:
            ValidationError: something cannot be right; nothing was started.
            AuthenticationError: a key is missing.
            NoCapacityError: nothing fits, or not at that price.
        """
        config = as_config(command, fields)
        return submit_config(config, config.provider or self.provider, Path(code_root) if code_root else None)

    def submit(
        self,
        command: str | Sequence[str] | TaskConfig | dict[str, Any] | None = None,
        *,
        code_root: str | Path | None = None,
        **fields: Any,
    ) -> Task:
        """The same as `run`."""
        return self.run(command, code_root=code_root, **fields)

    def plan(
        self, command: str | Sequence[str] | TaskConfig | dict[str, Any] | None = None, **fields: Any
    ) -> tuple[TaskConfig, Offer]:
        """What `run` would submit and the offer it would take; starts and spends nothing."""
        config = as_config(command, fields)
        return config, choose_offer(config, config.provider or self.provider)

    def offers(self, **fields: Any) -> list[Offer]:
        """What can be had now, cheapest first.

        Args:
            **fields: any field of TaskConfig, as `gpu="a100"`; without hardware, everything.
        """
        config = as_config(None, fields)
        return providers.load(config.provider or self.provider).offers(config)

    def rerun(self, task: str | Task, **fields: Any) -> Task:
        """Runs a past task again with the same code and config, but for `fields`.

        Raises:
            ResourceNotFoundError: there is no such task, or its code is gone.
        """
        past = task if isinstance(task, Task) else self.get_task(task)
        record = past.record
        bundle = Path(record.bundle) if record.bundle else None
        if bundle is not None and not bundle.exists():
            raise ResourceNotFoundError(
                f"The code of {past.task_id} is gone from {bundle}.", ["Run the command anew from its folder."]
            )
        config = past.config.replace(**fields)
        return submit_config(config, config.provider or record.provider, None, again=record)

    def get_task(self, task_id: str) -> Task:
        """A task by id, the beginning of its id, or its name.

        Raises:
            ResourceNotFoundError: there is none.
        """
        return Task(store.find(task_id))

    def list_tasks(
        self,
        status: str | Iterable[str] | None = None,
        *,
        name: str | None = None,
        tag: str | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Task]:
        """Tasks, newest first.

        Args:
            status: only tasks in this state, or in one of these.
            name: only names that fit this pattern with `*` and `?`.
            tag: only tasks with this tag.
            since: only tasks submitted after this time, in seconds since 1970.
            limit: at most so many.
        """
        states = (status,) if isinstance(status, str) else tuple(status or ())
        for state in states:
            if state not in taskdir.STATES:
                raise ValidationError(f"{state!r} is no task state.", [f"States: {', '.join(taskdir.STATES)}."])
        if states:
            # Rows of tasks that went on by themselves are behind; their states decide who is in the list.
            ongoing = tuple(state for state in taskdir.STATES if state not in taskdir.END_STATES)
            for row in store.list_rows(states=ongoing):
                Task(row).refresh()
        rows = store.list_rows(states=states, name_pattern=name, tag=tag, since=since, limit=limit)
        return [Task(row).refresh() for row in rows]

    def cancel(self, task: str | Task) -> Task:
        """Ends a task; one that has ended already stays as it is."""
        return (task if isinstance(task, Task) else self.get_task(task)).cancel()

    def create_volume(self, size_gb: int, name: str | None = None, interface: str = "block") -> Volume:
        """Makes persistent storage.

        Args:
            size_gb: its size in GB.
            name: lower-case letters, digits and dashes; one is made up unless given.
            interface: "block" or "file".
        """
        if not isinstance(size_gb, int) or isinstance(size_gb, bool) or size_gb < 1:
            raise ValidationError(f"size_gb must be a whole number of GB, not {size_gb!r}.", ["For example 100."])
        if interface not in ("block", "file"):
            raise ValidationError(f"A volume's interface is 'block' or 'file', not {interface!r}.")
        name = name or f"volume-{os.urandom(3).hex()}"
        return providers.volume_provider(self.provider).create_volume(name, size_gb, interface)

    def list_volumes(self) -> list[Volume]:
        """All volumes, oldest first."""
        return providers.volume_provider(self.provider).list_volumes()

    def get_volume(self, volume: str) -> Volume:
        """A volume by name, id, or `:N` for the Nth that `list_volumes` gives."""
        found = self.list_volumes()
        if re.fullmatch(r":[1-9][0-9]*", volume) and int(volume[1:]) <= len(found):
            return found[int(volume[1:]) - 1]
        for one in found:
            if volume in (one.name, one.volume_id):
                return one
        raise ResourceNotFoundError(
            f"There is no volume {volume!r}.",
            [f"There are: {', '.join(v.name for v in found)}." if found else "There are no volumes yet."],
        )

    def delete_volume(self, volume: str | Volume) -> None:
        """Deletes a volume and all that is in it.

        Raises:
            ValidationError: a task uses it.
        """
        found = volume if isinstance(volume, Volume) else self.get_volume(volume)
        providers.volume_provider(self.provider).delete_volume(found)

    def mount_volume(self, volume: str | Volume, task: str | Task, path: str | None = None) -> str:
        """Adds a volume to a running task, without a restart.

        Args:
            volume: a volume, its name or id.
            task: a task, its id or name.
            path: where the task shall see it; /mnt/NAME unless given.

        Returns:
            The path.
        """
        from flow_sdk.mounts import check_target

        found = volume if isinstance(volume, Volume) else self.get_volume(volume)
        # Looked up anew: another process may have added a mount since the caller's Task was made.
        running = self.get_task(task.task_id if isinstance(task, Task) else task)
        target = check_target(path or f"/mnt/{found.name}")
        lease = running.refresh().record.lease
        if lease is None or running.status != taskdir.RUNNING:
            raise ValidationError(
                f"{running.name} is {running.status}, and a volume is added to a running task.",
                [f"To have it from the start: volumes=[{{'name': {found.name!r}, 'mount_path': {target!r}}}]."],
            )
        if any(mount["target"] == target for mount in lease["mounts"]):
            raise ValidationError(f"Mount path {target} already in use by {running.name}.", ["Choose another path."])
        providers.volume_provider(running.provider).attach_volume(lease, found, target)
        added = {"kind": "bind", "source": f"volume://{found.name}", "target": target, "volume_id": found.volume_id}
        store.save(replace(running.record, lease={**lease, "mounts": [*lease["mounts"], added]}))
        return target

    def upload_code(self, task: str | Task, code_root: str | Path | None = None) -> Task:
        """Brings the current folder's files, as they are now, into a running task's working directory."""
        from flow_sdk import bundle

        running = task if isinstance(task, Task) else self.get_task(task)
        packed = bundle.pack(Path(code_root or Path.cwd()), make_home() / "bundles")
        for rank in range(running.num_instances):
            with running._transport(rank) as node:
                done = node.run(["tar", "-xzpmf", "-"], input=packed.path)
            if done.exit_code != 0:
                raise ValidationError(f"The code could not be unpacked: {done.stderr.decode(errors='replace').strip()}")
        return running


def as_config(command: str | Sequence[str] | TaskConfig | dict[str, Any] | None, fields: dict[str, Any]) -> TaskConfig:
    from flow_sdk.config import TaskConfig

    if isinstance(command, TaskConfig):
        return command.replace(**fields)
    if isinstance(command, dict):
        return TaskConfig.from_dict({**command, **fields})
    if command is None:
        return TaskConfig(**fields)
    if not isinstance(command, (str, list, tuple)):
        raise ValidationError(
            f"A command is text, a list of words or a TaskConfig, not {type(command).__name__}.",
            ['For example flow.run("python train.py").'],
        )
    return TaskConfig(command=command if isinstance(command, str) else list(command), **fields)


def submit_config(
    config: TaskConfig,
    provider_name: str,
    code_root: Path | None,
    again: store.Record | None = None,
    files: dict[str, bytes] | None = None,
    without: bytes = b"",
) -> Task:
    """Everything that can be refused is refused before the task exists; the task exists before anything is started.

    Args:
        config: what to run.
        provider_name: where.
        code_root: the folder that travels; the current one unless given.
        again: take the code of this past task instead.
        files: what lies beside the code in the first rank's folder, by name, before the command starts.
        without: files of the code whose name ends so stay behind.
    """
    config = config.frozen_copy()
    offer = choose_offer(config, provider_name)
    private = private_values(config)
    task_id = f"task-{os.urandom(5).hex()}"
    record = store.Record(
        task_id=task_id,
        name=config.name or default_name(config.command, task_id),
        provider=provider_name,
        config=config.to_json(secrets=False),
        created_at=time.time(),
        mounts=tuple(mount.to_json() for mount in config.mount_values()),
        host=os.uname().nodename,
        user=whoami(),
        email=git_email(),
        price_per_hour_usd=total_price(offer, config),
        instance_type=offer.instance_type,
        note=offer.note,
        **(same_code(again) if again else code_of(config, code_root or Path.cwd(), without)),
    )
    task = start(record, config, offer, private, files or {})
    if offer.note:
        sys.stderr.write(f"flow: {offer.note}\n")
    return task


def start(
    record: store.Record, config: TaskConfig, offer: Offer, private: dict[str, Any], files: dict[str, bytes]
) -> Task:
    directory = taskdir.TaskDir(record.task_id)
    lock_fd = write_down(directory, record, config, private, files)
    try:
        lease = providers.load(record.provider).launch(
            record.task_id, config, Bootstrap(record, directory, lock_fd, offer)
        )
        record = replace(record, lease=lease)
        store.save(record)
    finally:
        os.close(lock_fd)
    return Task(store.Row(record, taskdir.PENDING, tags=tuple(config.tags)))


def write_down(
    directory: taskdir.TaskDir,
    record: store.Record,
    config: TaskConfig,
    private: dict[str, Any],
    files: dict[str, bytes],
) -> int:
    """Makes the task's files and its row; returns its lock. Where that fails, there is no such task."""
    make_home()
    lock_fd = None
    try:
        lock_fd = directory.make(config.num_instances)
        if any(private.values()):
            write_private(directory.secrets_json, json.dumps(private).encode())
        for name, data in files.items():
            (directory.node(0) / name).parent.mkdir(mode=0o700, exist_ok=True)
            write_private(directory.node(0) / name, data)
        store.save(record)
        return lock_fd
    except (OSError, FlowError) as error:
        import shutil

        shutil.rmtree(directory.path, ignore_errors=True)
        if lock_fd is not None:
            os.close(lock_fd)
        if isinstance(error, OSError):
            raise unwritable(settings.home(), error) from error
        raise


def choose_offer(config: TaskConfig, provider_name: str) -> Offer:
    """The cheapest offer within the price cap.

    Raises:
        NoCapacityError: there is none; with what could be had instead.
    """
    provider = providers.load(provider_name)
    refuse_incapable(provider, config)
    offers = provider.offers(config)
    cap = config.max_price_per_hour
    affordable = [o for o in offers if cap is None or o.price_per_hour_usd is None or total_price(o, config) <= cap]
    if affordable:
        return affordable[0]
    if offers:
        raise NoCapacityError(
            f"Nothing that fits costs at most ${cap:.2f} per hour.",
            [f"{o.instance_type} in {o.region} costs ${total_price(o, config):.2f} per hour." for o in offers[:3]],
        )
    wanted = f" for type '{config.hardware}'" if config.hardware else ""
    raise NoCapacityError(
        f"No instances available{wanted} from {provider_name} now.",
        ["Try another instance type, region or provider."],
    )


def refuse_incapable(provider: Provider, config: TaskConfig) -> None:
    needed = {
        "image": config.image,
        "mounts": config.mounts,
        "volumes": config.volumes,
        "multi-node": config.num_instances > 1,
        "ports": config.ports,
    }
    missing = [name for name, wanted in needed.items() if wanted and name not in provider.capabilities]
    if missing:
        raise ValidationError(
            f"The provider {provider.name!r} cannot do what the task asks for: {', '.join(missing)}.",
            [f"It can do: {', '.join(sorted(provider.capabilities)) or 'a command on one node'}.", "Try another one."],
        )


def total_price(offer: Offer, config: TaskConfig) -> Any:
    """USD per hour for all nodes; None where the provider names no price."""
    return None if offer.price_per_hour_usd is None else offer.price_per_hour_usd * config.num_instances


def private_values(config: TaskConfig) -> dict[str, Any]:
    """What goes into the 0600 file: the env values, and the AWS keys where s3 is used.

    Raises:
        AuthenticationError: s3 is used and there are no keys.
    """
    from flow_sdk.mounts import needs_aws

    private: dict[str, Any] = {"env": config.env}
    if needs_aws(config.mounts):
        private["aws"] = {name: os.environ[name] for name in AWS_NAMES if os.environ.get(name)}
        have = {**private["aws"], **config.env}
        missing = [name for name in AWS_NAMES[:2] if not have.get(name)]
        if missing:
            raise AuthenticationError(
                f"An s3:// mount needs AWS credentials, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set.",
                ["Set them in the environment, from a secure source.", "Or give them to the task alone with env={…}."],
            )
    return private


def code_of(config: TaskConfig, root: Path, without: bytes = b"") -> dict[str, Any]:
    """Packs the code; what the record says of it."""
    packed = pack_code(config, root, without)
    if packed is None:
        return {}
    commit, dirty = git_state(root)
    empty = packed.file_count + packed.folder_count == 0
    return {
        "bundle": None if empty else str(packed.path),
        "bundle_sha256": packed.sha256,
        "code_root": str(root),
        "git_commit": commit,
        "git_dirty": dirty,
    }


def pack_code(config: TaskConfig, root: Path | None, without: bytes = b"") -> Bundle | None:
    if not config.upload_code:
        return None
    from flow_sdk import bundle

    return bundle.pack(root or Path.cwd(), make_home() / "bundles", without=without)


def same_code(past: store.Record) -> dict[str, Any]:
    names = ("bundle", "bundle_sha256", "code_root", "git_commit", "git_dirty")
    return {name: getattr(past, name) for name in names}


def default_name(command: str | list[str] | None, task_id: str) -> str:
    """A name a person recognises: the script's or the program's, and the end of the id."""
    text = command if isinstance(command, str) else " ".join(command or ["machine"])
    words = re.findall(r"[A-Za-z0-9_./-]+", text)
    scripts = [Path(word).stem for word in words if word.endswith((".py", ".sh"))]
    plain = [Path(word).name for word in words if not word.startswith("-")]
    stem = re.sub(r"[^A-Za-z0-9]+", "-", (scripts or plain or ["task"])[0]).strip("-").lower()
    return f"{stem[:40] or 'task'}-{task_id[-4:]}"


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the code and whether it has uncommitted changes; (None, None) outside a repository."""
    if not any((folder / ".git").exists() for folder in (root.absolute(), *root.absolute().parents)):
        return None, None
    import subprocess

    status = ["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain=v2", "--branch", "--", "."]
    try:
        done = subprocess.run(status, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), None)
    if done.returncode != 0 or commit in (None, "(initial)"):
        return None, None
    return commit, any(not line.startswith("#") for line in lines)


def git_email() -> str | None:
    """The user's address, as git has it in the user's own settings."""
    given = os.environ.get("GIT_AUTHOR_EMAIL") or os.environ.get("EMAIL")
    if given:
        return given
    import configparser

    parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
    try:
        text = Path("~/.gitconfig").expanduser().read_text(encoding="utf-8", errors="replace")
        parser.read_string("\n".join(line.strip() for line in text.splitlines()))
    except (OSError, RuntimeError, configparser.Error):
        return None
    return parser.get("user", "email", fallback=None)


_default = Flow()
run = _default.run
submit = _default.submit
rerun = _default.rerun
get_task = _default.get_task
list_tasks = _default.list_tasks
cancel = _default.cancel
create_volume = _default.create_volume
list_volumes = _default.list_volumes
get_volume = _default.get_volume
delete_volume = _default.delete_volume
mount_volume = _default.mount_volume
upload_code = _default.upload_code
