"""vLLM's own server as a process, on a CPU, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}  # fmt: skip


class VllmServer:
    """Serves the model in ``folder``; `with` starts it and kills it at the end."""

    def __init__(self, folder: Path, name: str, log: Path, *words: str) -> None:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log, self.url = log, f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name",
            name, "--dtype", "float32", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
            "--host", "127.0.0.1", "--port", str(self.port), "--enforce-eager", "--no-enable-chunked-prefill",
            "--max-num-batched-tokens", "32768", *words,
        ]  # fmt: skip

    def start(self, *, wait: bool = True) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, start_new_session=True
            )
        until = time.monotonic() + 240
        while wait and not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < until, self.log.read_text()[-2000:]
            time.sleep(0.5)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/v1/models", timeout=2).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to the process and all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def __enter__(self) -> VllmServer:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
