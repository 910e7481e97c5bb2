"""Reading in a process of its own, with bounds on memory and time: for readers whose library a hostile file crashes.

ifcopenshell 0.9 ends the whole process (SIGSEGV) on geometry that refers to itself: measured with cyclic placements and
boolean results. So such a reader's `read_here` runs in a child, which gets the file's bytes through a pipe and gives
back the model, or the mistakes. A child that dies, or takes too much, is a file that is refused.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from typing import Any, BinaryIO, Final

from models3d.readers import Buffer
from twin.city import CityModel, InvalidModel, Progress
from twin.model import Problem

MEMORY: Final = 4 << 30  # bytes of address space, and TIMES for each of the file's
TIMES: Final = 30
SECONDS: Final = 120  # of processor time, and one more for each SIZE of the file
SIZE: Final = 100_000
PATIENCE: Final = 3  # times as long by the clock
CHUNK: Final = 1 << 20


def read(module: str, data: Buffer, name: str, crs: str, progress: Progress) -> CityModel:
    """What `module.read_here(data, name, crs, progress)` gives, or the `InvalidModel` that it raises."""
    seconds = SECONDS + len(data) // SIZE
    asked = pickle.dumps((module, name, crs, MEMORY + TIMES * len(data), seconds))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "models3d.confined"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             env=environment)  # fmt: skip
    late = threading.Timer(PATIENCE * seconds, child.kill)
    late.daemon = True
    late.start()
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died; why is told below
            child.stdin.write(len(asked).to_bytes(8, "big") + asked)
            with memoryview(data) as view:
                for start in range(0, len(data), CHUNK):
                    child.stdin.write(view[start : start + CHUNK])
            child.stdin.close()
        while (told := _receive(child.stdout)) is not None:
            what, value = told
            if what == "progress":
                progress(*value)
            elif what == "refused":
                raise InvalidModel(value, name)
            else:
                model: CityModel = value
                return model
        child.wait()
    finally:
        late.cancel()
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            _close(pipe)
    text = f"stops its reader ({_why(code)}): it is damaged or too complex / 文件损坏或过于复杂"
    raise InvalidModel([Problem(name, "", text)], name)


def _close(pipe: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _why(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _receive(pipe: Any) -> Any:
    """The next message of the child; None when there are no more."""
    size = pipe.read(8)
    if len(size) < 8:
        return None
    message = pipe.read(int.from_bytes(size, "big"))
    return pickle.loads(message) if len(message) == int.from_bytes(size, "big") else None


def _child() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message
    entrance = sys.stdin.buffer
    size = int.from_bytes(entrance.read(8), "big")
    module, name, crs, memory, seconds = pickle.loads(entrance.read(size))
    for what, bound in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(what, (bound, bound))

    def progress(what: str, share: float) -> None:
        _send(out, "progress", (what, share))

    try:
        model = importlib.import_module(module).read_here(entrance.read(), name, crs, progress)
        _send(out, "model", model)
    except InvalidModel as refused:
        _send(out, "refused", refused.problems)
    except (MemoryError, RecursionError) as error:
        text = f"needs too much memory or depth ({type(error).__name__}) / 所需内存过多或嵌套过深"
        _send(out, "refused", [Problem(name, "", text)])


def _send(out: BinaryIO, what: str, value: Any) -> None:
    message = pickle.dumps((what, value), pickle.HIGHEST_PROTOCOL)
    out.write(len(message).to_bytes(8, "big") + message)
    out.flush()


if __name__ == "__main__":
    _child()
