"""A real vLLM server on the loopback, serving the embedded model from a virtual environment of its own.

`VLLM_PYTHON` is the Python that vLLM is installed for; `make test-vllm` installs it where this looks by default.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch

from llm_auction_chain.models.local.capabilities import dtype_named
from llm_auction_chain.models.local.weights import embedded_model_path

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm/bin/python"))
# Where the processor has to emulate bfloat16, the server takes ten times as long in it as in float32.
DTYPE = dtype_named("auto", torch.device("cpu"))
DEADLINE = 300.0  # seconds until it must be healthy; about 45 on two cores


class VLLMServer:
    """One server process and what it wrote."""

    def __init__(self, log, *more):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.root = f"http://127.0.0.1:{port}"
        self.log = log
        options = {
            "--model": embedded_model_path(),
            "--served-model-name": "smollm2",
            "--dtype": str(DTYPE).removeprefix("torch."),
            "--max-model-len": 1024,
            "--host": "127.0.0.1",
            "--port": port,
        }
        # vLLM 0.32's CPU backend dies when it cuts the prefill of a request with a seed into chunks.
        switches = ["--enforce-eager", "--no-enable-chunked-prefill"]
        given = [str(word) for option in options.items() for word in option]
        with log.open("wb") as written:
            self.process = subprocess.Popen(  # noqa: S603
                [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *switches, *given, *more],
                env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2"},
                stdout=written,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self):
        return f"{self.root}/v1"

    def wait(self):
        """Return when it is healthy; fail with the end of its log when it dies or the deadline passes."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(URLError, ConnectionError, TimeoutError):
                urlopen(f"{self.root}/health", timeout=5).close()  # noqa: S310
                return
            time.sleep(0.5)
        how = "is not healthy in time" if self.process.poll() is None else f"died with {self.process.returncode}"
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])
        pytest.fail(f"the vLLM server {how}; the end of its log:\n{tail}", pytrace=False)

    def end(self, how=signal.SIGTERM):
        """End the process and all it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if not PYTHON.exists():
        pytest.fail(f"no vLLM at {PYTHON}; make test-vllm installs it", pytrace=False)
    started = VLLMServer(tmp_path_factory.mktemp("vllm") / "server.log")
    try:
        started.wait()
        yield started
    finally:
        started.end()
