"""The cause of a failed job in one line, and the release of what a failure holds."""

import gc
from types import FrameType, TracebackType


def root_cause(error: BaseException) -> str:
    """The innermost cause of an error on one line: its type and the first line of its text."""
    error = innermost(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The text of an error that crossed processes is a traceback: the error is its last line.
    remote = bool(lines) and "Traceback" in str(error)
    text = (lines[-1] if remote else lines[0]) if lines else ""
    name = type(error).__name__
    return text if text.startswith(name) or remote else f"{name}: {text}".rstrip(": ")


def release_frames(error: BaseException) -> None:
    """Empty the frames of an error and of its causes.

    They hold the failed execution, and with it actors and tasks whose CPUs the next one needs:
    a test or a notebook that keeps the error and tries again would wait forever.
    """
    chain: list[object] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        _empty_frames(one.__traceback__)
        chain += [one.__cause__, one.__context__, getattr(one, "cause", None)]
    gc.collect()


def _empty_frames(trace: TracebackType | None) -> None:
    """Also of the callers of what a traceback names: each frame holds the one that called it."""
    while trace is not None:
        frame: FrameType | None = trace.tb_frame
        while frame is not None:
            caller = frame.f_back
            try:
                frame.clear()
            except RuntimeError:
                break  # this frame is still running, and so are its callers
            frame = caller
        trace = trace.tb_next


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
