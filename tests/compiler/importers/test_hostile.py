"""Files that mean harm are refused in words, quickly, in little memory, and nothing in them runs; strange names do no harm."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import convfold
from convfold.compiler.errors import CompileError
from convfold.compiler.verify import RESERVED
from tests.hostile.corpus import MAKERS
from tests.hostile.files import HARMLESS, HOSTILE_NAMES, TRAP, normal
from tests.hostile.run import MOST_BYTES, MOST_SECONDS
from tests.hostile.specs import SPEC, npz

ROOT = Path(__file__).resolve().parents[3]
LEAST = 600
"""Hostile files in all."""


@dataclass(frozen=True)
class Seen:
    """What came of one file: ``outcome`` is "refused", "read", or what went wrong."""

    name: str
    outcome: str
    seconds: float
    bytes: int
    did: list[str]

    @property
    def wrong(self) -> str:
        if self.outcome not in ("refused", "read"):
            return self.outcome
        if self.did:
            return f"it did {self.did}"
        if self.outcome == "read" and not any(word in self.name for word in HARMLESS):
            return "it is read"
        if self.seconds >= MOST_SECONDS:
            return f"it took {self.seconds:.1f} s"
        return f"{self.bytes >> 20} MB were taken" if self.bytes >= MOST_BYTES else ""


def run(kind: str, folder: Path) -> list[Seen]:
    """All hostile files of a kind, read in another process."""
    command = [sys.executable, "-m", "tests.hostile.run", kind, str(folder)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    found = [Seen(**json.loads(line)) for line in done.stdout.splitlines()]
    last = found[-1].name if found else "the sound file"
    assert done.returncode == 0, f"the process ended behind {last}: {done.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_hostile_files(kind: str, tmp_path: Path) -> None:
    found = run(kind, tmp_path)
    assert [seen.name for seen in found] == list(MAKERS[kind]())
    wrong = [f"{seen.name}: {seen.wrong}" for seen in found if seen.wrong]
    assert not wrong, "\n".join(wrong)
    assert [str(path) for path in tmp_path.rglob(TRAP)] == []
    expected = {"sound", *map(str, range(len(found)))}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_there_are_enough() -> None:
    counts = {kind: len(makers()) for kind, makers in MAKERS.items()}
    assert sum(counts.values()) >= LEAST, counts
    assert len(HOSTILE_NAMES) >= 50


def test_the_watch_sees(tmp_path: Path) -> None:
    """A reader that opened what is not its own, wrote or ran something would be found."""
    program = f"""
import sys, os
from pathlib import Path
from tests.hostile.run import Watch
watch = Watch(Path({str(tmp_path)!r}))
sys.addaudithook(watch.see)
watch.on = True
open("/etc/hostname").close()
os.makedirs({str(tmp_path / "0" / "model")!r})
open({str(tmp_path / "0" / "model" / "x")!r}, "w").close()
os.system("true")
watch.on = False
print(len(watch.seen), *watch.seen, sep="\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "3", done.stdout
    assert lines[1].startswith("open /etc/hostname") and lines[2].endswith("x w") and lines[3] == "os.system"


# -------------------------------------------------------------------------------------------------------------- names

MARKS = ("{{", "{%", "{#", "__import__", "*/", "\x1b", "\u202e", "../", "/etc", "%s", "'''", "<script", "${", "C:")
"""What stands in nothing that is made from a network with hostile names: code of ours has no need of it."""


def chain(names: list[str]) -> ModelProto:
    """A network in which every node, and every tensor if there are no others like it, has a hostile name."""
    nodes, weights, tensor = [], [], "input tensor"
    for at, name in enumerate(names):
        made = f"{name}{at}" if at % 2 else f"t{at}"
        weights.append(numpy_helper.from_array(normal(2, 2, 1, 1), f"w{at}"))
        nodes += [
            helper.make_node("Conv", [tensor, f"w{at}"], [f"c{at}"], name),
            helper.make_node("Relu", [f"c{at}"], [made], name),
        ]
        tensor = made
    x = helper.make_tensor_value_info("input tensor", TensorProto.FLOAT, [1, 2, 2, 2])
    y = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, 2, 2, 2])
    graph = helper.make_graph(nodes, "x #{{7*7}}\nendmodule", [x], [y], weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


CODE = ("accelerator.v", "accelerator.py", "test_accelerator.py")


def texts(build: Path) -> dict[str, str]:
    return {name: (build / name).read_text(encoding="utf-8") for name in CODE}


def assert_harmless(build: Path) -> None:
    """Python that parses, Verilog with the modules that there must be, and only identifiers that are legal."""
    for name, text in texts(build).items():
        if name.endswith(".py"):
            ast.parse(text)
    verilog = texts(build)["accelerator.v"]
    modules = re.findall(r"^module\s+(\S+?)\s*\(", verilog, re.MULTILINE)
    assert modules and len(modules) == len(re.findall(r"^endmodule", verilog, re.MULTILINE)) == len(set(modules))
    assert not [one for one in modules if one in RESERVED]
    record = json.loads((build / "network.json").read_text(encoding="utf-8"))
    for node in record["nodes"]:
        assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", node["name"]) and node["name"] not in RESERVED
    html = (build / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in html


def test_hostile_names_in_an_onnx_file(tmp_path: Path) -> None:
    names = [name for name in HOSTILE_NAMES if len(name) < 100 and name.isprintable()]
    for at in range(0, len(names), 20):
        path = tmp_path / "x #{{7*7}}'\";.onnx"
        path.write_bytes(chain(names[at : at + 20]).SerializeToString())
        build = convfold.compile(path).write(tmp_path / f"build{at}")
        assert_harmless(build)
        for mark in MARKS:
            assert [name for name, text in texts(build).items() if mark in text] == [], mark
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("build")} == {"x #{{7*7}}'\";.onnx"}


LABELS = ["{{7*7}}", "<script>alert(1)</script>", "it's", 'say "x"', "a\\b", "{0}", "%s", "é 🙂", "*/ endmodule", "$x `y`"]


def spec(folder: Path, **fields: Any) -> Path:
    path = folder / "net.json"
    path.write_text(json.dumps({**SPEC, "network": {**SPEC["network"], **fields}}), encoding="utf-8")
    (folder / "net.npz").write_bytes(npz())
    return path


def test_hostile_labels_are_words(tmp_path: Path) -> None:
    """They reach the host as they are, and nothing that is run or shown takes them for more."""
    path = spec(tmp_path, labels=LABELS[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        build = convfold.compile(path).write(tmp_path / "build")
    assert convfold.Accelerator(build).labels == tuple(LABELS[:2])
    assert_harmless(build)
    assert not any("49" in text and "{{7" not in text and "7*7" in text for text in texts(build).values())


def test_hostile_names_of_a_network_are_refused(tmp_path: Path) -> None:
    """In our own specifications a name is as it is written, or refused."""
    refused = [name for name in HOSTILE_NAMES if not re.fullmatch("con|clk|rst|s_axis_tdata|X|x|x_2", name)]
    assert len(refused) >= 50
    for name in refused:
        with pytest.raises(CompileError) as caught:
            convfold.compile(spec(tmp_path, name=name))
        text = str(caught.value)
        assert len(text) < 1000 and all(letter.isprintable() or letter == "\n" for letter in text), name


@pytest.mark.parametrize("name", ["clk", "s_axis_tdata", "con"])
def test_a_name_of_the_ports_is_no_harm(name: str, tmp_path: Path) -> None:
    assert_harmless(convfold.compile(spec(tmp_path, name=name)).write(tmp_path / "build"))
