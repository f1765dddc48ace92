"""All float operators of ONNX that can be imported, and what to use instead of others.

Each is a function of the net in the making and the ONNX node; it returns one value for each output (one, or a list). What it
cannot express it refuses (`Refusal`), with the nearest thing that works.
"""

from __future__ import annotations

from collections.abc import Mapping

from .onnx_moves import MOVES
from .onnx_net import Handler
from .onnx_pointwise import POINTWISE
from .onnx_windows import WINDOWS

OPERATORS: Mapping[str, Handler] = {**POINTWISE, **WINDOWS, **MOVES}

NEAREST: Mapping[str, str] = {
    "Celu": "use Elu",
    "ConvInteger": "use QLinearConv",
    "DFT": "compute features outside the network",
    "Einsum": "use Conv, Gemm or MatMul with constant weights",
    "GRU": "use convolutions",
    "Gather": "use Slice",
    "GroupNormalization": "train with BatchNormalization",
    "If": "export one branch",
    "InstanceNormalization": "train with BatchNormalization",
    "LRN": "train with BatchNormalization",
    "LSTM": "use convolutions",
    "LayerNormalization": "train with BatchNormalization",
    "LogSoftmax": "use Softmax: the host computes it",
    "Loop": "unroll it",
    "LpPool": "use AveragePool or MaxPool",
    "Mish": "use HardSwish",
    "ReduceMin": "use ReduceMax of the negated tensor",
    "Reciprocal": "divide by constants only",
    "TopK": "use ArgMax",
}
"""What to use instead of some operators that are not supported."""
