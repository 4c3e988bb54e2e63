"""Flow runs a command, a file or a function on a GPU machine as if it were local.

    import flow_sdk as flow

    task = flow.run("python train.py", gpu="a100")
    for line in task.logs(follow=True):
        print(line)

Names are loaded at their first use, so importing the package costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing itself would be most of what this import costs

__version__ = "0.1.0"

_HOMES = {
    "flow_sdk.client": (
        "Flow",
        "cancel",
        "create_volume",
        "delete_volume",
        "get_task",
        "get_volume",
        "list_tasks",
        "list_volumes",
        "mount_volume",
        "rerun",
        "run",
        "submit",
        "upload_code",
    ),
    "flow_sdk.config": ("TaskConfig", "VolumeSpec"),
    "flow_sdk.hardware": ("GPUS", "SIZES"),
    "flow_sdk.providers": ("Instance", "Offer", "Volume"),
    "flow_sdk.session": ("Cell", "Session", "submit_cells"),
    "flow_sdk.task": ("Task",),
    "flow_sdk.words": ("command_from_words", "fields_from_text"),
    "flow_sdk.errors": (
        "AuthenticationError",
        "ConfigError",
        "FlowError",
        "MountError",
        "NoCapacityError",
        "ProviderError",
        "QuotaExceededError",
        "ResourceNotFoundError",
        "TaskFailedError",
        "UploadTooLargeError",
        "ValidationError",
        "WaitTimeoutError",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> object:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    # With "as", type checkers take a name as public; __all__ is made at run time. The sorter would split every line.
    from flow_sdk.client import (  # noqa: I001
        Flow as Flow,
        cancel as cancel,
        create_volume as create_volume,
        delete_volume as delete_volume,
        get_task as get_task,
        get_volume as get_volume,
        list_tasks as list_tasks,
        list_volumes as list_volumes,
        mount_volume as mount_volume,
        rerun as rerun,
        run as run,
        submit as submit,
        upload_code as upload_code,
    )
    from flow_sdk.config import TaskConfig as TaskConfig, VolumeSpec as VolumeSpec
    from flow_sdk.errors import (
        AuthenticationError as AuthenticationError,
        ConfigError as ConfigError,
        FlowError as FlowError,
        MountError as MountError,
        NoCapacityError as NoCapacityError,
        ProviderError as ProviderError,
        QuotaExceededError as QuotaExceededError,
        ResourceNotFoundError as ResourceNotFoundError,
        TaskFailedError as TaskFailedError,
        UploadTooLargeError as UploadTooLargeError,
        ValidationError as ValidationError,
        WaitTimeoutError as WaitTimeoutError,
    )
    from flow_sdk.hardware import GPUS as GPUS, SIZES as SIZES
    from flow_sdk.providers import Instance as Instance, Offer as Offer, Volume as Volume
    from flow_sdk.session import Cell as Cell, Session as Session, submit_cells as submit_cells
    from flow_sdk.task import Task as Task
    from flow_sdk.words import command_from_words as command_from_words, fields_from_text as fields_from_text
