"""Networks about which something can be proven: the builder of `nets`, with biases that settle it."""

from __future__ import annotations

import numpy as np

from tests.compiler.passes.nets import Net


def bias(net: Net, *b_o: float) -> Net:
    """The last layer with these biases, and with weights of at most 1."""
    w, b = f"{net.tail}.w", f"{net.tail}.b"
    net.weights[w] = np.clip(net.weights[w], -1.0, 1.0)
    net.weights[b] = np.array(b_o, dtype=np.float64).reshape(net.weights[b].shape)
    return net
