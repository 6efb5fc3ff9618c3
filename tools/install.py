"""Make .venv and install the pinned packages and longstream into it; does nothing when that is already so.

Run by make. Standard library only, and it installs nothing outside .venv. pip's own settings (PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, ...) are honored, and so are those of setup.py for the native kernels
(LONGSTREAM_NATIVE, CXX, ...).
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOCK = ROOT / "requirements.lock"
STAMP = VENV / "installed.json"  # where .venv was made; and, after a complete run, the digest of what was installed


def main() -> None:
    """Bring .venv in line with requirements.lock, pyproject.toml and the sources of the native kernels."""
    check_python()
    place = {"python": sys.version, "base": sys.base_prefix, "venv": str(VENV)}  # a venv works in one place only
    built_from = [LOCK, ROOT / "pyproject.toml", ROOT / "setup.py", *sorted((ROOT / "csrc").glob("*.[ch]*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in built_from)).hexdigest()
    wanted = {**place, "digest": digest}
    found = json.loads(STAMP.read_text()) if STAMP.exists() else {}
    if found == wanted:
        return
    if VENV.exists() and not STAMP.exists():
        stop(f"{VENV} was not made by this script; move it away, or remove it with: make clean")
    if {key: found.get(key) for key in place} != place:
        print(f"Making {VENV} with Python {sys.version.split()[0]} ...", flush=True)
        run(sys.executable, "-m", "venv", "--clear", str(VENV))
    STAMP.write_text(json.dumps(place))
    print("Installing what requirements.lock pins; this happens once, and when the sources change ...", flush=True)
    # The pinned pip first: older ones download whole files only to list what torch would bring.
    pip("install", "--quiet", pin("pip"))
    check_torch()
    pip("install", *([] if sys.stdout.isatty() else ["--quiet"]), "-r", str(LOCK))  # progress bars for a person only
    print("Installing longstream, and compiling its native kernels ...", flush=True)
    told = pip("install", "-v", "--no-build-isolation", "--no-deps", "--editable", str(ROOT), capture=True).decode()
    print(*(line.strip() for line in told.splitlines() if "without native kernels" in line), sep="\n", end="")
    STAMP.write_text(json.dumps(wanted))


def check_python() -> None:
    """Stop in words when this Python cannot make the environment."""
    if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets this far, and is told)
        stop(
            f"longstream needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=/path/to/python3"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        stop(
            f"{sys.executable} has no {error.name} module, which making .venv needs. "
            "Debian and Ubuntu have it in python3-venv; or name another Python: make PYTHON=/path/to/python3"
        )


def check_torch() -> None:
    """Stop before pip downloads a CUDA build of torch onto a machine without an NVIDIA GPU."""
    if os.path.exists("/dev/nvidia0") or os.environ.get("ALLOW_CUDA_TORCH") == "1":
        return
    report = pip("install", "--quiet", "--dry-run", "--report", "-", pin("torch"), capture=True)
    names = [item["metadata"]["name"] for item in json.loads(report)["install"]]
    cuda = [name for name in names if name.startswith("nvidia-")]
    if cuda:
        stop(
            f"Here pip would install the CUDA build of {pin('torch')}, with {len(cuda)} nvidia-* packages: several "
            "gigabytes, and this machine has no NVIDIA GPU (no /dev/nvidia0).\n"
            "Point pip at PyTorch's CPU wheels and run the same command again: choose Pip and CPU on "
            "pytorch.org/get-started, and set PIP_EXTRA_INDEX_URL to the address it shows after --index-url.\n"
            "To install the CUDA build all the same, set ALLOW_CUDA_TORCH=1."
        )


def pin(name: str) -> str:
    """The requirement of one package as requirements.lock pins it, such as "torch==2.13.0"."""
    return next(line.strip() for line in LOCK.read_text().splitlines() if line.startswith(name + "=="))


def pip(*args: str, capture: bool = False) -> bytes:
    """Run the environment's pip; returns what it printed, or nothing when it prints to the terminal."""
    return run(str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", *args, capture=capture)


def run(*command: str, capture: bool = False) -> bytes:
    """Run a command; when it fails, name it and stop."""
    # PIP_USER=1 in a user's settings would make pip refuse to install into a venv
    done = subprocess.run(command, stdout=subprocess.PIPE if capture else None, env={**os.environ, "PIP_USER": "0"})
    if done.returncode:
        stop(f"failed: {' '.join(command)}")
    return done.stdout or b""


def stop(message: str) -> NoReturn:
    """Exit with status 1 and the message on stderr."""
    sys.exit(f"set-up: {message}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        stop("interrupted; the next run takes it up again")
