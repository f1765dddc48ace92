"""The interpreter of tflite-micro, which defines what an int8 TensorFlow Lite network computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

ARENA_BYTES = 1 << 23


class Reference:
    """A network in the interpreter; with ``keep`` every tensor can be read, not the outputs alone."""

    def __init__(self, model: bytes, keep: bool = False, arena_bytes: int = ARENA_BYTES) -> None:
        from tflite_micro.python.tflite_micro import runtime

        config = runtime.InterpreterConfig
        kind = config.kPreserveAllTensors if keep else config.kAllocationRecording
        self.model = runtime.Interpreter.from_bytes(model, arena_size=arena_bytes, intrepreter_config=kind)
        self.shape = tuple(self.model.get_input_details(0)["shape"])
        self.dtype = self.model.get_input_details(0)["dtype"]

    def run(self, frame: NDArray[np.generic]) -> NDArray[np.int8]:
        """The first output of one frame."""
        self.model.set_input(frame.reshape(self.shape).astype(self.dtype), 0)
        self.model.invoke()
        result: NDArray[np.int8] = self.model.get_output(0)
        return result

    def outputs(self, frame: NDArray[np.generic], count: int) -> list[NDArray[np.int8]]:
        """All outputs of one frame."""
        self.run(frame)
        return [self.model.get_output(index) for index in range(count)]

    def tensors(self, frame: NDArray[np.generic], indices: Iterable[int]) -> Mapping[int, NDArray[np.int8]]:
        """Tensors of one frame by their numbers in the file."""
        self.run(frame)
        return {index: self.model.GetTensor(index, 0)["tensor_data"] for index in indices}
