# SPDX-License-Identifier: Apache-2.0
"""MXNet imports without a word, and each thing that can stand in its way is one line.

There is no GPU here: its driver and the libraries of CUDA are small ones, compiled by the tests.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from recognition.engines.mxnet.engine import MxnetEngine
from recognition.engines.mxnet.imports import (
    check_capability,
    check_gpu,
    compute_capability,
    mx,
    preload_libraries,
)
from recognition.errors import UserError

ROOT = Path(__file__).resolve().parents[4]
Compile = Callable[..., Path]


def run_python(code: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )


def refusal(code: str, **variables: str) -> str:
    """The line of the UserError that the import raises after ``code``."""
    done = run_python(
        f"{code}\nfrom recognition.errors import UserError\n"
        "try:\n    import recognition.engines.mxnet.imports\nexcept UserError as error:\n    print(error)", **variables
    )
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip()
    assert line and "\n" not in line
    return line


@pytest.fixture
def compile_library(tmp_path: Path) -> Compile:
    """Compile a shared library of this name from C++ source; it may link others of the same folder."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to make stand-ins for the libraries of CUDA")

    def compile_(name: str, source: str, *linked: str) -> Path:
        path = tmp_path / name
        (tmp_path / "source.cc").write_text(f'extern "C" {{ {source} }}\n')
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(path), str(tmp_path / "source.cc"),
             *(str(tmp_path / other) for other in linked)],
            check=True,
        )
        return path

    return compile_


def test_import_is_silent_and_leaves_scipys_statistics_to_who_uses_them() -> None:
    """MXNet's INT8 calibration compares distributions by them."""
    done = run_python(
        "import sys\nfrom recognition.engines.mxnet.imports import mx\nimport mxnet\nassert mx is mxnet\n"
        "assert 'scipy.stats' not in sys.modules\n"
        "assert abs(mx.contrib.quantization.stats.entropy([0.5, 0.5], [0.25, 0.75]) - 0.1438) < 1e-4\n"
        "mx.sym.Variable('x').simple_bind(mx.cpu(), x=(1,)).forward()\n"
        "print(mx.__version__, mx.nd.ones((2, 3)).sum().asscalar())",
        "-W", "always",
    )
    assert (done.stdout.strip(), done.stderr) == ("1.9.1 6.0", "")


def test_numpy_stays_as_it_is_for_all_but_mxnet() -> None:
    """MXNet has what it takes from NumPy, when it is imported, when it is used, and in modules imported later."""
    names = ["NAN", "NINF", "PZERO", "alltrue", "bool", "float_", "in1d", "int", "product", "round_", "unicode_"]
    done = run_python(
        f"import numpy\nnames = {names}\nbefore = [getattr(numpy, name, None) for name in names]\n"
        "from recognition.engines.mxnet.imports import mx\n"
        "import mxnet.gluon.contrib.estimator\n"
        "assert [getattr(numpy, name, None) for name in names] == before\n"
        "assert mx.np.NINF == -numpy.inf\n"
        "array = mx.np.array([[1, 2]])\n"
        "print(mx.np.pad(array, ((0, 0), (1, 1)), mode='edge').asnumpy())\n"
        "try:\n    mx.np.npv(0.1, [1])\nexcept AttributeError as error:\n    print(error)",
        "-W", "ignore",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[[1. 1. 2. 2.]]", f"NumPy {np.__version__} has no function npv"]


def test_no_mxnet() -> None:
    assert "pip install -e '.[cpu]'" in refusal("import sys; sys.modules['mxnet'] = None")


def test_mxnet_without_a_system_library(tmp_path: Path) -> None:
    (tmp_path / "mxnet.py").write_text("raise OSError('libgomp.so.1: cannot open shared\\nobject file')\n")
    line = refusal("", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert line == "MXNet cannot be loaded: libgomp.so.1: cannot open shared object file"


def test_libraries_are_found_for_those_that_link_them(compile_library: Compile, tmp_path: Path) -> None:
    compile_library("libinner.so.11", "int inner() { return 7; }")
    compile_library("libouter.so.8", "int inner(); int outer() { return inner(); }", "libinner.so.11")
    libraries = {"libinner.so.11": "package-inner", "libouter.so.8": "package-outer"}
    preload_libraries(libraries, [tmp_path / "not here", tmp_path])


def test_missing_library(compile_library: Compile, tmp_path: Path) -> None:
    compile_library("libpresent.so.1", "int present() { return 0; }")
    libraries = {"libpresent.so.1": "a package", "libabsent.so.10": "nvidia-absent-cu11"}
    with pytest.raises(UserError, match=r"needs libabsent\.so\.10, which comes with nvidia-absent-cu11: ") as error:
        preload_libraries(libraries, [tmp_path])
    assert "\n" not in str(error.value)


def test_cuda_wheel_without_its_driver(tmp_path: Path) -> None:
    """The metadata of an installed mxnet-cu112 is enough to ask for its libraries, before MXNet is loaded."""
    metadata = tmp_path / "mxnet_cu112-1.9.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: mxnet-cu112\nVersion: 1.9.1\n")
    code = (
        "import ctypes, recognition.errors\nload = ctypes.CDLL\n"
        "def without_cuda(name, *rest):\n"
        "    if 'libcuda.so' in str(name): raise OSError(f'{name}: cannot open shared object file')\n"
        "    return load(name, *rest)\n"
        "ctypes.CDLL = without_cuda"
    )
    line = refusal(code, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert line.startswith("mxnet-cu112 needs libcuda.so.1, which comes with the NVIDIA driver")


@pytest.mark.parametrize("capability", [(5, 0), (6, 1), (7, 5), (8, 0), (8, 6), (8, 9)])
def test_gpus_that_the_wheels_hold_code_for(capability: tuple[int, int]) -> None:
    check_capability(0, capability)


@pytest.mark.parametrize("capability", [(3, 7), (9, 0), (10, 0), (12, 1)])
def test_gpus_that_the_wheels_hold_no_code_for(capability: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=rf"gpu 3 has compute capability {capability[0]}\.{capability[1]}, "):
        check_capability(3, capability)


def test_capability_comes_from_the_driver(compile_library: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = compile_library(
        "libcuda.so.1",
        "int cuInit(unsigned) { return 0; }"
        "int cuDeviceGet(int *device, int index) { *device = 40 + index; return index < 2 ? 0 : 101; }"
        "int cuDeviceGetAttribute(int *value, int which, int device) {"
        "  *value = which == 75 ? 9 : which == 76 ? device - 40 : -1; return 0; }",
    )
    monkeypatch.setattr("recognition.engines.mxnet.imports.CUDA_DRIVER", str(driver))
    assert compute_capability(0) == (9, 0)
    assert compute_capability(1) == (9, 1)
    with pytest.raises(UserError, match="gpu 2: the NVIDIA driver answers cuDeviceGet with error 101"):
        compute_capability(2)
    monkeypatch.setattr("recognition.engines.mxnet.imports.CUDA_DRIVER", "libcuda_absent.so.1")
    with pytest.raises(UserError, match="gpu 0: no NVIDIA driver on this machine"):
        compute_capability(0)


@pytest.mark.skipif(mx.runtime.Features().is_enabled("CUDA"), reason="this MXNet is built for GPUs")
def test_gpu_asked_of_an_mxnet_for_the_cpu() -> None:
    with pytest.raises(UserError, match=r"gpu 1: .* for the CPU only: pip install -e '\.\[cu112\]'"):
        check_gpu(1)


def test_there_is_no_bfloat16_on_gpus() -> None:
    assert [MxnetEngine().has_bfloat16(((kind, 0),)) for kind in ("cpu", "gpu")] == [True, False]
