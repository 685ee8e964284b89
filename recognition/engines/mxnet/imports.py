# SPDX-License-Identifier: Apache-2.0
"""Import of MXNet 1.9 on today's Python and NumPy, and the check of the GPUs that its wheels can use.

    from recognition.engines.mxnet.imports import mx

Importing this module imports MXNet; a failure is a :class:`~recognition.errors.UserError` of one line.
A later ``import mxnet`` or ``import horovod.mxnet`` finds MXNet loaded, with the names that it wants of NumPy.
"""
from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recognition.engines.mxnet.numpy_names import answer_mxnet
from recognition.errors import LostProcess, UserError

__all__ = ["check_gpu", "mx"]

CUDA_WHEEL = "mxnet-cu112"
CUDA_DRIVER = "libcuda.so.1"
# What the libmxnet.so of that wheel links and who carries it, each library after those that it needs itself.
CUDA_LIBRARIES = {
    CUDA_DRIVER: "the NVIDIA driver",
    "libcudart.so.11.0": "nvidia-cuda-runtime-cu11",
    "libnvrtc.so.11.2": "nvidia-cuda-nvrtc-cu11",
    "libnvToolsExt.so.1": "nvidia-nvtx-cu11",
    "libcublasLt.so.11": "nvidia-cublas-cu11",
    "libcublas.so.11": "nvidia-cublas-cu11",
    "libcufft.so.10": "nvidia-cufft-cu11",
    "libcurand.so.10": "nvidia-curand-cu11",
    "libcusparse.so.11": "nvidia-cusparse-cu11",
    "libcusolver.so.11": "nvidia-cusolver-cu11",
    "libnccl.so.2": "nvidia-nccl-cu11",
    "libcudnn.so.8": "nvidia-cudnn-cu11",
}
# The wheels hold code for sm_50, 60, 70, 80 and 86, which runs within its major version, and none to compile from.
LOWEST_CAPABILITY, CAPABILITY_END = (5, 0), (9, 0)

# MXNet writes lines to stderr unless these are 0: for every executor that oneDNN is in use, and that cuDNN and CUDA are
# not the very versions that the wheel was compiled with, which the packages above never are.
QUIET = ("MXNET_SUBGRAPH_VERBOSE", "MXNET_CUDNN_LIB_CHECKING", "MXNET_CUDA_LIB_CHECKING")

# Attributes of cuDeviceGetAttribute, from cuda.h.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


def preload_libraries(libraries: Mapping[str, str], folders: Iterable[Path]) -> None:
    """Load shared libraries, given as file name to package, for a library that links them.

    Each is taken from the first of ``folders`` that holds it, else from where the system's loader looks.
    """
    places = list(folders)
    for name, package in libraries.items():
        path = next((str(folder / name) for folder in places if (folder / name).is_file()), name)
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise UserError(
                f"{CUDA_WHEEL} needs {name}, which comes with {package}: {error}; "
                "pip install -e '.[cu112]' brings all but the driver, and '.[cpu]' is for machines without a GPU"
            ) from None


def compute_capability(index: int) -> tuple[int, int]:
    """Major and minor compute capability of the visible GPU ``index``, as the driver tells it."""
    try:
        cuda = ctypes.CDLL(CUDA_DRIVER)
    except OSError as error:
        raise UserError(f"gpu {index}: no NVIDIA driver on this machine: {error}") from None

    def call(function: str, *arguments: Any) -> None:
        status = cuda[function](*arguments)
        if status:
            raise UserError(
                f"gpu {index}: the NVIDIA driver answers {function} with error {status}; "
                "is there such a GPU, and does CUDA_VISIBLE_DEVICES name it?"
            )

    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDeviceGetAttribute", ctypes.byref(major), CAPABILITY_MAJOR, device)
    call("cuDeviceGetAttribute", ctypes.byref(minor), CAPABILITY_MINOR, device)
    return major.value, minor.value


def check_capability(index: int, capability: tuple[int, int]) -> None:
    """Raise a UserError for a GPU that the published wheels hold no code for."""
    if not LOWEST_CAPABILITY <= capability < CAPABILITY_END:
        raise UserError(
            f"gpu {index} has compute capability {capability[0]}.{capability[1]}, and MXNet's published wheels hold "
            "code for 5.0 to 8.9 only (Maxwell to Ada): use another GPU, or --devices cpu"
        )


def check_gpu(index: int) -> None:
    """Raise a UserError unless the visible GPU ``index`` can train with the installed MXNet."""
    if not mx.runtime.Features().is_enabled("CUDA"):
        raise UserError(f"gpu {index}: the installed MXNet is for the CPU only: pip install -e '.[cu112]' instead")
    capability = compute_capability(index)
    if _is_cuda_wheel():  # someone's own build may hold code for anything
        check_capability(index, capability)


def _is_cuda_wheel() -> bool:
    try:
        importlib.metadata.version(CUDA_WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _wheel_library_folders() -> list[Path]:
    """The ``lib`` folders of the installed nvidia-* packages."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return sorted(folder for place in places or () for folder in Path(place).glob("*/lib"))


def refuse_pickles() -> None:
    """Refuse pickles in a process that becomes a parameter server. Workers can send one, MXNet's way to set an
    optimiser on the server, and so can whoever reaches its port; this trainer never does."""

    def refuse(*_: object, **__: object) -> None:
        raise UserError("a parameter server of this trainer loads no pickle, and was sent one")

    pickle.loads = refuse


@contextlib.contextmanager
def hidden(name: str) -> Iterator[None]:
    """Let the import of a module fail inside, unless it was imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say so
    try:
        yield
    finally:
        del sys.modules[name]


class Late:
    """A module that is imported when something of it is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


def _import_mxnet() -> Any:
    if os.environ.get("DMLC_ROLE") in ("server", "scheduler"):  # what is imported below serves, and does not return
        refuse_pickles()
    if _is_cuda_wheel():
        preload_libraries(CUDA_LIBRARIES, _wheel_library_folders())
    for variable in QUIET:
        os.environ.setdefault(variable, "0")
    answer_mxnet()
    # A class of MXNet's that nobody uses becomes an estimator where scikit-learn is, which takes 0.3 s to import.
    # Its INT8 calibration measures entropy by scipy.stats, 0.8 s.
    with hidden("sklearn"), hidden("scipy.stats"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names in NumPy and Python that are old by now
        try:
            import mxnet
        except ModuleNotFoundError as error:
            raise UserError(f"{error}: pip install -e '.[cpu]' brings MXNet and what it needs") from None
        except (ImportError, OSError) as error:
            raise UserError(f"MXNet cannot be loaded: {' '.join(str(error).split())}") from None
        except Exception as error:
            if "DMLC_ROLE" not in os.environ or "bind failed" not in str(error):
                raise
            place = " of ".join(os.environ.get(f"DMLC_PS_ROOT_{part}", "?") for part in ("PORT", "URI"))
            raise LostProcess(f"the {os.environ['DMLC_ROLE']} of the parameter servers: port {place} cannot be had: "
                              "another process uses it, or the address is not one of this host") from None
    if importlib.util.find_spec("scipy"):
        mxnet.contrib.quantization.stats = Late("scipy.stats")
    return mxnet


mx = _import_mxnet()
