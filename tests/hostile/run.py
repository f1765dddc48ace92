"""Reads every hostile file of one kind, watched and with little memory: what came of each, one JSON object a line.

``python -m tests.hostile.run KIND FOLDER``
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from convfold.compiler.errors import CompileError
from convfold.compiler.importers import import_model
from tests.hostile.corpus import MAKERS, SUFFIXES, sound, write

MOST_BYTES = 512 << 20
MOST_SECONDS = 2.0
FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.", "ctypes.")
"""Events of Python's audit that mean that a file's code runs."""


def main(kind: str, folder: Path) -> None:
    home = folder / "sound"
    home.mkdir()
    path = home / f"sound{SUFFIXES.get(kind, f'.{kind}')}"
    path.write_bytes(sound(kind, home))
    import_model(path)  # also loads all that is needed
    warnings.simplefilter("error")
    watch = Watch(folder)
    sys.addaudithook(watch.see)
    signal.signal(signal.SIGPROF, late)
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    makers = MAKERS[kind]()
    for number, (name, maker) in enumerate(makers.items()):
        case = folder / f"{number}" / "model"
        case.mkdir(parents=True)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        path = write(maker, kind, case)
        resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, resource.RLIM_INFINITY))
        print(json.dumps({"name": name} | tried(path, watch)), flush=True)


def late(*_: object) -> None:
    raise TimeoutError(f"more than {MOST_SECONDS} s")


def tried(path: Path, watch: Watch) -> dict[str, Any]:
    """What became of one file."""
    watch.seen = []
    watch.on = True
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS + 1)
    try:
        import_model(path)
        outcome = "read"
    except CompileError as error:
        text = str(error)
        outcome = "refused"
        if len(text) > 4000 or not error.message or not all(letter.isprintable() or letter == "\n" for letter in text):
            outcome = f"refused in words that cannot be printed: {text[:300]!r}"
    except BaseException:
        outcome = traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    seconds = time.process_time() - began
    return {"outcome": outcome, "seconds": seconds, "bytes": most_memory(), "did": watch.seen}


def most_memory() -> int:
    """The most bytes that this process has had in memory; ``ru_maxrss`` also knows those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


class Watch:
    """Notes what a reader does that it should not: run code, write, or open files outside the folder of the model."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder.resolve())
        self.on = False
        self.seen: list[str] = []

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(FORBIDDEN):
            self.seen.append(event)
        if event == "open" and isinstance(arguments[0], str):
            path, mode = arguments[0], arguments[1] or "r"
            module = path.endswith((".py", ".pyc", ".so")) and not path.startswith(self.folder)
            if not module and (set(mode) & set("wax+") or "/model/" not in path):
                self.seen.append(f"open {path} {mode}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
