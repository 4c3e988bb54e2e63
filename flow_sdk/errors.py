"""Every error Flow raises on purpose.

FlowError
├── ConfigError                 the config file or FLOW_HOME cannot be used
├── ValidationError             what was asked for cannot be right (also a ValueError)
│   └── UploadTooLargeError     the code is over the upload limit
├── AuthenticationError         a key is missing or refused
├── ResourceNotFoundError       no such task, volume, file or result (also a LookupError)
├── QuotaExceededError          the account may not have that much
├── NoCapacityError             nobody has that hardware free now
├── ProviderError               a provider, or a program it needs, did not do its part
├── MountError                  a source could not be placed at its path
├── TaskFailedError             a task that was asked to succeed did not
└── WaitTimeoutError            a wait ended before the task did (also a TimeoutError)
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
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
]


class FlowError(Exception):
    """Root of Flow's errors: one sentence for a person, then what to do about it.

    Args:
        message: one plain sentence.
        suggestions: things to try, most likely first; each a sentence or a command.
    """

    exit_code = 1
    """What the `flow` command exits with when this ends it."""

    def __init__(self, message: str, suggestions: Iterable[str] = ()) -> None:
        self.message = message
        self.suggestions = list(suggestions)
        super().__init__(message)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {s}" for s in self.suggestions)])

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.suggestions))


class ConfigError(FlowError):
    exit_code = 2


class ValidationError(FlowError, ValueError):
    exit_code = 2


class UploadTooLargeError(ValidationError):
    pass


class AuthenticationError(FlowError):
    exit_code = 3


class ResourceNotFoundError(FlowError, LookupError):
    exit_code = 4


class QuotaExceededError(FlowError):
    exit_code = 5


class NoCapacityError(FlowError):
    exit_code = 5


class ProviderError(FlowError):
    exit_code = 6


class MountError(ProviderError):
    pass


class TaskFailedError(FlowError):
    """Raised by `wait(check=True)` and `result()`.

    Args:
        task_id: the task.
        task_exit_code: the command's own, or None where it had none (cancelled before it ran, lost).
    """

    def __init__(
        self,
        message: str,
        suggestions: Iterable[str] = (),
        *,
        task_id: str = "",
        task_exit_code: int | None = None,
    ) -> None:
        super().__init__(message, suggestions)
        self.task_id = task_id
        self.task_exit_code = task_exit_code

    def __reduce__(self) -> tuple[object, ...]:
        state = {"task_id": self.task_id, "task_exit_code": self.task_exit_code}
        return (type(self), (self.message, self.suggestions), state)


class WaitTimeoutError(FlowError, TimeoutError):
    exit_code = 7
