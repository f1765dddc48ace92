"""A live PyTorch module as the bytes of an exported program: the only place where PyTorch itself is asked."""

from __future__ import annotations

import copy
import io
import warnings

import torch
from torch import nn


def exported(module: nn.Module, shape: tuple[int, ...]) -> bytes:
    """What ``torch.export.save`` writes of a copy of ``module`` in evaluation mode, for a batch of one input of ``shape``."""
    still = copy.deepcopy(module).cpu().eval()
    kinds = [parameter.dtype for parameter in still.parameters() if parameter.is_floating_point()]
    sample = torch.zeros(1, *shape, dtype=kinds[0] if kinds else torch.float32)
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what PyTorch deprecates in itself
        torch.export.save(torch.export.export(still, (sample,)), stream)
    return stream.getvalue()
