"""Who gets nodes and starts the runner on them. A provider is a class that fits `Provider`, found by its name among the
entry points of the group `flow_sdk.providers`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from flow_sdk.errors import ValidationError

if TYPE_CHECKING:
    from flow_sdk.config import TaskConfig
    from flow_sdk.store import Record
    from flow_sdk.taskdir import TaskDir
    from flow_sdk.transports import Transport

ENTRY_POINTS = "flow_sdk.providers"

Lease = dict[str, Any]
"""What a provider holds for a task, as plain JSON: enough for any later process to find the nodes again."""


class Offer(NamedTuple):
    """Something a task can run on now.

    Attributes:
        instance_type: the machine, in the hardware grammar or by the provider's name.
        region: where; "local" for this machine.
        price_per_hour_usd: for one machine; None where the provider names no price, 0.0 where it is free.
        capacity: how many such machines can be had now; None where that is not known.
        note: one line for the user about what this is, where it is not just what was asked for.
        details: what the provider's `launch` needs of it again.
    """

    instance_type: str
    region: str
    price_per_hour_usd: float | None
    capacity: int | None
    note: str | None = None
    details: dict[str, Any] = {}  # noqa: RUF012


class Instance(NamedTuple):
    """One machine of a task, as a person asks for it."""

    instance_id: str
    public_ip: str | None
    private_ip: str | None
    status: str


class LeaseStatus(NamedTuple):
    """What the provider knows of a lease now.

    Attributes:
        state: one of the task states.
        instances: the machines, by rank.
        price_per_hour_usd: what all of it costs now; None where no price is named.
        reason: why it is in this state, where a person can act on it.
    """

    state: str
    instances: tuple[Instance, ...] = ()
    price_per_hour_usd: float | None = None
    reason: str | None = None


class Bootstrap(NamedTuple):
    """What `launch` gets beyond the configuration.

    Attributes:
        record: what is written of the task so far.
        directory: the task's files on this machine; its lock is held.
        lock_fd: the lock's descriptor, for a provider whose runner works in this very directory.
        offer: what was chosen of the provider's offers.
    """

    record: Record
    directory: TaskDir
    lock_fd: int
    offer: Offer


class Provider(Protocol):
    """Five methods. Errors of the vendor are raised as Flow's, mapped in one function."""

    name: str
    capabilities: frozenset[str]
    """Of: "image", "mounts", "volumes", "multi-node", "ports". What is missing is refused before anything is spent."""

    def offers(self, config: TaskConfig) -> list[Offer]:
        """What can be had now for `config`, cheapest first; empty where there is nothing.

        Called once before anything is uploaded or recorded, so it also refuses, by raising, what this provider could
        not carry out (no container engine, say). Spends nothing; may be called at any time.
        """
        ...

    def launch(self, task_id: str, config: TaskConfig, bootstrap: Bootstrap) -> Lease:
        """Starts the task and returns fast. Idempotent on `task_id`: a retry after a lost answer never buys twice."""
        ...

    def poll(self, lease: Lease) -> LeaseStatus:
        """What became of it. Cheap; called by whoever looks at a task that has not ended."""
        ...

    def stop(self, lease: Lease) -> None:
        """Ends the lease and its billing; one that is gone already is success. Returns before the command has ended."""
        ...

    def connect(self, lease: Lease, rank: int) -> Transport:
        """A way to one node; raises ProviderError where there is none now."""
        ...


class Volume(NamedTuple):
    """Persistent storage by name.

    Attributes:
        interface: "block" or "file".
        created_at: seconds since 1970.
    """

    volume_id: str
    name: str
    size_gb: int
    interface: str = "block"
    region: str = "local"
    created_at: float = 0.0


@runtime_checkable
class VolumeProvider(Protocol):
    """The optional second part of a provider: storage that outlives tasks."""

    def create_volume(self, name: str, size_gb: int, interface: str = "block") -> Volume:
        """Makes a volume; a taken name is a ValidationError."""
        ...

    def list_volumes(self) -> list[Volume]: ...

    def delete_volume(self, volume: Volume) -> None:
        """Deletes a volume and what is in it; one in use is a ValidationError."""
        ...

    def attach_volume(self, lease: Lease, volume: Volume, path: str) -> None:
        """Adds a volume to a running task at `path`, on every node, without a restart."""
        ...


def names() -> list[str]:
    """The providers that can be named here."""
    from importlib.metadata import entry_points

    return sorted({"local", *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


@cache
def load(name: str) -> Provider:
    """The provider called `name`.

    Raises:
        ValidationError: there is none of that name.
    """
    if name == "local":
        # The embedded engine: no search through installed packages on the way to it.
        from flow_sdk.providers.local import LocalProvider

        return LocalProvider()
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            provider: Provider = entry.load()()
            return provider
    known: Sequence[str] = names()
    raise ValidationError(
        f"There is no provider {name!r} here.",
        [f"Providers here: {', '.join(known)}.", "Set `provider:` in config.yaml, FLOW_PROVIDER, or --provider."],
    )


def volume_provider(name: str) -> VolumeProvider:
    """The provider called `name`, where it has volumes; raises ValidationError where not."""
    provider = load(name)
    if not isinstance(provider, VolumeProvider):
        raise ValidationError(f"The provider {name!r} has no volumes.", ["Use an s3:// mount, or another provider."])
    return provider
