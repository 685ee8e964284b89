# SPDX-License-Identifier: Apache-2.0
"""Checks and norms of many tensors of one device at once, with one copy to the host."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from recognition.engines.interface import LARGEST_NORM
from recognition.engines.torch.imports import torch

CHUNK = 65536  # numbers whose squares a CPU sums in float32; the sums of chunks are summed in float64


def finite_norms(tensors: Sequence[torch.Tensor]) -> np.ndarray | None:
    """The result of :func:`norms`, or None if a tensor holds NaN or Inf. A look at each number would take 200 times as
    long on a CPU."""
    found = _fetched_norms(tensors)
    for place in np.flatnonzero(~np.isfinite(found)).tolist():
        found[place] = _norm_in_float64(tensors[place])
        if not np.isfinite(found[place]):
            return None
    return found


def all_finite(*groups: Mapping[str, torch.Tensor]) -> bool:
    """True if the tensors of all groups hold no NaN and no Inf; waits for them."""
    return finite_norms([tensor for group in groups for tensor in group.values()]) is not None


def all_usable(tensors: Mapping[str, torch.Tensor]) -> bool:
    """True if the norm of each tensor is below 1.8e19, so that its square is a float32 number."""
    return bool((_queued_norms(list(tensors.values())) < LARGEST_NORM).all())


def as_it_lies(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its axes in the order of its memory."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.detach().permute(0, 2, 3, 1) if channels_last else tensor.detach()


def norms(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """The Euclidean norm of each tensor, float64 (tensors,), right to 1e-6; not finite where a number is not.

    Those of all devices are queued before the first is waited for; those of a device come in one copy.
    """
    found = _fetched_norms(tensors)
    for place in np.flatnonzero(~np.isfinite(found)).tolist():
        found[place] = _norm_in_float64(tensors[place])
    return found


def _norm_in_float64(tensor: torch.Tensor) -> float:
    """The norm of a tensor whose sum of squares may be no float32 number."""
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))


def _fetched_norms(tensors: Sequence[torch.Tensor]) -> np.ndarray:
    """The norms, float64 (tensors,); not finite where a sum of squares is no float32 number."""
    chunks = [_chunks(tensor) for tensor in tensors]
    places = defaultdict[torch.device, list[int]](list)
    for place, tensor in enumerate(tensors):
        places[tensor.device].append(place)
    queued = [_queued_norms([part for place in here for part in chunks[place]]) for here in places.values()]
    found = np.zeros(len(tensors))
    for here, numbers in zip(places.values(), queued):
        of_chunks = numbers.cpu().numpy().astype(np.float64)
        ends = np.cumsum([len(chunks[place]) for place in here])
        found[here] = of_chunks if len(of_chunks) == len(here) else np.sqrt(
            [part.sum() for part in np.split(np.square(of_chunks), ends[:-1])])
    return found


def _chunks(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """The pieces whose squares are summed one after the other. A GPU, which sums in many threads, takes all at once."""
    return as_it_lies(tensor).reshape(-1).split(CHUNK) if tensor.device.type == "cpu" else (tensor,)


@torch.no_grad()
def _queued_norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norms, float32 (tensors,), on their device; infinite where the sum of squares is no float32 number."""
    return torch.stack(torch._foreach_norm(list(tensors))) if tensors else torch.zeros(0)
