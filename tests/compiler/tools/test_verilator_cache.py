"""The shared objects of Verilator builds, with a compiler that only counts its calls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from convfold.compiler.tools.verilator_cache import object_cache

FAKE_COMPILER = """\
#!/bin/sh
[ "$1" = --version ] && { echo "c++ 12.2.0"; exit; }
echo "$@" >> "$CALLS"
echo "object of $*" > "$4"
"""


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment with the counting compiler first on PATH and an empty cache."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "c++").write_text(FAKE_COMPILER)
    (programs / "c++").chmod(0o755)
    return {
        "PATH": f"{programs}{os.pathsep}{os.defpath}",
        "XDG_CACHE_HOME": str(tmp_path / "my cache"),
        "CALLS": str(tmp_path / "calls"),
    }


def compile_in(build_dir: Path, env: dict[str, str], flag: str, name: str) -> str:
    """What make does: the compiler behind OBJCACHE, in the build folder; returns the object."""
    build_dir.mkdir(exist_ok=True)
    settings = object_cache(build_dir, "verilator 5.48", env)
    command = [*settings["OBJCACHE"].split(), "c++", flag, "-c", "-o", f"{name}.o", f"{name}.cpp"]
    # The fake compiler writes to its fourth word.
    subprocess.run(command, cwd=build_dir, env={**env, **settings}, check=True)
    return (build_dir / f"{name}.o").read_text()


def calls(env: dict[str, str]) -> int:
    return len(Path(env["CALLS"]).read_text().splitlines())


def test_library_objects_are_compiled_once(tmp_path: Path, env: dict[str, str]) -> None:
    first = compile_in(tmp_path / "one", env, "-Os", "verilated")
    second = compile_in(tmp_path / "two", env, "-Os", "verilated")
    assert first == second == "object of -Os -c -o verilated.o verilated.cpp\n"
    assert calls(env) == 1


def test_other_flags_are_other_objects(tmp_path: Path, env: dict[str, str]) -> None:
    compile_in(tmp_path / "one", env, "-Os", "verilated")
    other = compile_in(tmp_path / "two", env, "-O3", "verilated")
    assert other == "object of -O3 -c -o verilated.o verilated.cpp\n"
    assert calls(env) == 2


def test_the_design_itself_is_always_compiled(tmp_path: Path, env: dict[str, str]) -> None:
    compile_in(tmp_path / "one", env, "-Os", "Vtop__ALL")
    compile_in(tmp_path / "two", env, "-Os", "Vtop__ALL")
    assert calls(env) == 2


def test_a_failed_compile_is_not_kept(tmp_path: Path, env: dict[str, str]) -> None:
    compiler = tmp_path / "programs" / "c++"
    compiler.write_text(FAKE_COMPILER + "exit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        compile_in(tmp_path / "one", env, "-Os", "verilated")
    compiler.write_text(FAKE_COMPILER)
    compile_in(tmp_path / "two", env, "-Os", "verilated")
    assert calls(env) == 2


def test_the_users_own_cache_is_left_alone(tmp_path: Path, env: dict[str, str]) -> None:
    assert object_cache(tmp_path, "verilator 5.48", {**env, "OBJCACHE": ""}) == {}
    ccache = tmp_path / "programs" / "ccache"
    ccache.write_text("#!/bin/sh\n")
    ccache.chmod(0o755)
    assert object_cache(tmp_path, "verilator 5.48", env) == {"OBJCACHE": "ccache"}


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, env: dict[str, str]) -> None:
    (tmp_path / "file").touch()
    assert object_cache(tmp_path, "verilator 5.48", {**env, "XDG_CACHE_HOME": str(tmp_path / "file")}) == {}
