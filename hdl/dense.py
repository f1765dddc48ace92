"""Dense stage: a convolution whose kernel is the whole input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .conv import ConvParams
from .mac_stage import MacStage

__all__ = ["DenseParams"]


@dataclass(frozen=True, slots=True)
class DenseParams:
    """``y = requantize(W · flatten(x) + b)``, flattened in ``(H, W, C)`` order.

    ``conv`` is the engine: its kernel covers the whole input, its ring holds the frame being multiplied and the one that comes.

    *Timing* as `ConvParams`.
    *Raises* ``ValueError`` where the kernel is not the input's size.
    """

    conv: ConvParams

    def __post_init__(self) -> None:
        window = self.conv.window
        if window.kernel != (window.height, window.width) or window.padding != ((0, 0), (0, 0)):
            raise ValueError(f"kernel must cover the {window.height}×{window.width} input, not {window.kernel!r}")

    @property
    def latency(self) -> int:
        return self.conv.latency

    @property
    def ii(self) -> int:
        return self.conv.frame_cycles

    def create(
        self,
        w_rcohwi: NDArray[np.int64],
        b_rco: NDArray[np.int64],
        m_o: NDArray[np.int64],
        positive_o: NDArray[np.int64] | None = None,
        negative_o: NDArray[np.int64] | None = None,
    ) -> MacStage:
        """The hardware for weights ``(1, 1, outputs, H, W, C)``, given as a convolution's."""
        return self.conv.create(w_rcohwi, b_rco, m_o, positive_o, negative_o)
