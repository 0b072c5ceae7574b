"""The cause of a failed job in one line, and the end of what it ran."""

from typing import TYPE_CHECKING

# Private, as of Ray 2.60; where it is registered (`DataContext`) is not.
from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class EndedByForce(ExecutionCallback):
    """An execution that fails gives its CPUs back at once, and for certain.

    Left to itself, Ray Data 2.60 drops its handles of the actors, which live on for as long as
    anything holds the error or a frame of it (a log record, a notebook, a thread that is just
    ending), and the next execution waits for their CPUs for ever.
    """

    def before_execution_starts(self, executor: "StreamingExecutor") -> None:
        """Have the shutdown that follows an error end actors and tasks, and wait for that."""
        shutdown = executor.shutdown

        def shut_down(force: bool, exception: Exception | None = None) -> None:
            shutdown(force or exception is not None, exception)

        executor.shutdown = shut_down


def root_cause(error: BaseException) -> str:
    """The innermost cause of an error on one line: its type and the first line of its text."""
    error = innermost(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The text of an error that crossed processes is a traceback: the error is its last line.
    remote = bool(lines) and "Traceback" in str(error)
    text = (lines[-1] if remote else lines[0]) if lines else ""
    name = type(error).__name__
    return text if text.startswith(name) or remote else f"{name}: {text}".rstrip(": ")


def innermost(error: BaseException) -> BaseException:
    """The error at the end of the chain of causes, also of those that came from other processes."""
    seen = {id(error)}
    while (inner := _inner(error)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        error = inner
    return error


def _inner(error: BaseException) -> BaseException | None:
    cause = getattr(error, "cause", None) or error.__cause__
    # Ray adds causes without text, which only mark where an error came from.
    return cause if isinstance(cause, BaseException) and str(cause) else None
