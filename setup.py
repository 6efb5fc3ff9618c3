"""Compiles csrc/ into longstream/longstream_kernels.so; everything else about the package stands in pyproject.toml.

The library is built against PyTorch's stable ABI: its headers and one shared object to link with are all that is needed
of torch, and the file serves every Python and every later torch. torch is not imported, and it is looked for where the
package goes, so that pip's isolated builds find it too. Where there is no compiler or no torch, the package is
installed without the library, and `longstream info` says so.

    CXX=...                      the compiler, g++ or clang++
    LONGSTREAM_NATIVE=0 | 1      do not compile; or fail where it cannot be compiled
    LONGSTREAM_CXXFLAGS=...      flags added to all others
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "longstream/longstream_kernels.so"
SOURCES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.cpp"))
HEADERS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("*.h"))

# No flag here lets the compiler change how NaN, infinity or the order of sums behave; products and sums may be fused.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-Wall", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# Each *_kernels.cpp is compiled once for each; the processor decides at run time. On ARM, base has NEON.
INSTRUCTION_SETS = {"base": []}
if IS_X86:
    FLAGS += ["-DLONGSTREAM_X86"]
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTION_SETS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    INSTRUCTION_SETS["avx512"] += ["-mprefer-vector-width=512"]


class Skip(Exception):
    """Why the library cannot be compiled here."""


def find_torch() -> Path:
    """The folder of an installed torch, found without importing it."""
    places = [*dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path])]
    for place in places:
        folder = Path(place or ".") / "torch"
        if (folder / "include" / "torch" / "csrc" / "stable" / "library.h").exists():
            return folder
    raise Skip("torch 2.10 or newer is not installed; install it first, then longstream again")


def find_compiler() -> list[str]:
    """The command of a compiler that takes C++17 and vector extensions."""
    named = os.environ.get("CXX")
    candidates = [shlex.split(named)] if named else [["g++"], ["clang++"], ["c++"]]
    test = (
        "typedef float v __attribute__((vector_size(16)));\nint main() { if constexpr (true) { v x = {}; (void)x; } }\n"
    )
    for command in candidates:
        if not shutil.which(command[0]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "test.cpp")
            source.write_text(test)
            done = subprocess.run([*command, "-std=c++17", "-c", str(source), "-o", os.devnull], capture_output=True)
        if done.returncode == 0:
            return command
    names = " or ".join(command[0] for command in candidates)
    raise Skip(f"no C++17 compiler found ({names})")


def compile_library(target: Path, work: Path) -> None:
    """Compile all sources, at the same time, and link them into ``target``."""
    if sys.platform == "win32":
        raise Skip("the kernels are not written for Windows yet")
    compiler, torch = find_compiler(), find_torch()
    extra = shlex.split(os.environ.get("LONGSTREAM_CXXFLAGS", ""))
    work.mkdir(parents=True, exist_ok=True)
    jobs = []
    for source in SOURCES:
        sets = INSTRUCTION_SETS if source.endswith("_kernels.cpp") else {"": []}
        for name, flags in sets.items():
            output = work / f"{Path(source).stem}{name and '.' + name}.o"
            which = [f"-DLONGSTREAM_ISA={name}"] if name else ["-isystem", str(torch / "include")]
            jobs.append(([*compiler, *FLAGS, *flags, *which, *extra, "-c", source, "-o", str(output)], output))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, (command for command, _ in jobs)))
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(".partial")
    objects = [str(output) for _, output in jobs]
    # No path to torch's libraries goes into the file: torch is loaded before it.
    run([*compiler, "-shared", *extra, *objects, "-L", str(torch / "lib"), "-ltorch_cpu", "-o", str(beside)])
    beside.replace(target)


def run(command: list[str]) -> None:
    """Run a command; if it fails, say what it printed."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Skip(f"this failed: {shlex.join(command)}\n{done.stdout[-4000:]}")


class BuildKernels(build_ext):
    """Compile with `compile_library` in place of what setuptools would do for a Python extension module."""

    def get_ext_filename(self, fullname: str) -> str:
        return LIBRARY

    def build_extension(self, ext: Extension) -> None:
        wish = os.environ.get("LONGSTREAM_NATIVE", "")
        target = Path(self.build_lib, LIBRARY).absolute()
        try:
            if wish == "0":
                raise Skip("LONGSTREAM_NATIVE=0")
            compile_library(target, Path(self.build_temp).absolute())
        except Skip as reason:
            if wish == "1":
                raise SystemExit(f"longstream: cannot compile the native kernels: {reason}") from None
            print(f"longstream: installed without native kernels: {reason}", file=sys.stderr)
            target.unlink(missing_ok=True)  # one of older sources would be worse than none

    def copy_extensions_to_source(self) -> None:
        if Path(self.build_lib, LIBRARY).exists():
            super().copy_extensions_to_source()
        else:
            (ROOT / LIBRARY).unlink(missing_ok=True)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


class AnyPythonWheel(bdist_wheel):
    """A wheel for one platform and every Python 3: the library does not link with Python."""

    def get_tag(self) -> tuple[str, str, str]:
        *_, platform_tag = super().get_tag()
        return "py3", "none", platform_tag


setup(
    ext_modules=[Extension("longstream.longstream_kernels", [*SOURCES], depends=HEADERS)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
)
