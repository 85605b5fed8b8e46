"""A headless ComfyUI with this pack in it: started, asked over HTTP, always stopped."""

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .comfyui import ComfyUI
from .console import Failure
from .environment import make_link

HOST = "127.0.0.1"
PACK = "ComfyUI-Weft"
START_SECONDS = 300
ACCELERATED = """
import torch
raise SystemExit(not (torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()))
"""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine


@dataclass
class Server:
    """A running ComfyUI; `log` is where its output goes, None for the terminal."""

    process: subprocess.Popen
    port: int
    log: Path | None

    @property
    def url(self) -> str:
        """Where the canvas is."""
        return f"http://{HOST}:{self.port}"

    def get(self, path: str) -> bytes:
        """Return what the server answers; raises urllib.error.URLError."""
        with DIRECT.open(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, content: dict) -> dict:
        """Post JSON and return the JSON answer, also that of an HTTP error."""
        body = json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def last_words(self, lines: int = 60) -> str:
        """Return the end of the log, for people to read below a failure."""
        if self.log is None:
            return ""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def check_port(port: int) -> None:
    """Raise Failure when somebody listens on this port."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise Failure(f"port {port} is in use: choose another with --port")


def make_base(base: Path, pack: Path) -> None:
    """Make ComfyUI's user folders below `base`, with the pack linked into its custom nodes."""
    for name in ("custom_nodes", "input", "models", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    make_link(base / "custom_nodes" / PACK, pack)


@contextlib.contextmanager
def running(
    comfyui: ComfyUI, base: Path, pack: Path, port: int | None = None, log: Path | None = None
) -> Iterator[Server]:
    """Start ComfyUI with the pack, wait until it answers, and stop it in any case.

    Raises Failure with the end of the log when it does not come up.
    """
    make_base(base, pack)
    port = port or free_port()
    command = [str(comfyui.python), "main.py", "--port", str(port), "--base-directory", str(base)]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    if not accelerated(comfyui.python):
        command.append("--cpu")
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        # A session of its own: Ctrl-C reaches dev.py alone, which then stops the server.
        process = subprocess.Popen(
            command, cwd=comfyui.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        stack.callback(_stop, process)
        server = Server(process, port, log)
        _wait_until_ready(server)
        yield server


def accelerated(python: Path) -> bool:
    """Tell whether torch finds a GPU; without one ComfyUI has to be told so."""
    if sys.platform == "linux" and not any(Path("/dev", name).exists() for name in ("nvidia0", "kfd", "dxg", "dri")):
        return False  # spares the two seconds of importing torch
    return subprocess.run([python, "-c", ACCELERATED], capture_output=True).returncode == 0


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise Failure(f"ComfyUI ended with code {server.process.returncode} at start", server.last_words())
        with contextlib.suppress(OSError):
            server.get("/system_stats")
            return
        time.sleep(0.1)
    raise Failure(f"ComfyUI did not answer within {START_SECONDS} s", server.last_words())


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
