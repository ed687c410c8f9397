"""One vLLM server: replies through its OpenAI-compatible API, weights through its development endpoints."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import torch
from safetensors.torch import save_file

from agentopcd.core.api import as_api
from agentopcd.core.errors import EngineError
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.rollouts.sampling.requests import CONNECT_S, Endpoint, client_options, patience

LOOK_S = 120.0
"""How long a server may take to say what it serves, or which weights it holds."""


class Server(Endpoint):
    """One vLLM server: the model that it serves, and the state of its weights."""

    def __init__(self, url: str) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        super().__init__(root, f"{root}/v1")
        self.control = openai.OpenAI(base_url=root, **client_options())
        self.serves, self.room = "", 0
        self.holds = ""
        """The label of its weights when we last gave them, or when another process of this run did."""
        self.takeovers = 0
        """How often the server got weights from us. A reply requested before the last time does not count."""
        self.keeps: Any = None
        """The folder of the server's adapter, which must exist while the adapter is in use."""
        self.doubtful = False
        """Whether the server has failed since its weights were last checked."""

    def look(self, wanted: str) -> None:
        """Find out which model the server serves, and with how many positions.

        Raises:
            EngineError: the server serves no model or several, and none is named ``wanted``, or it is none of vLLM's.
        """
        found = self._get("/v1/models")
        with as_api(self.url):
            rooms = {str(model["id"]): int(model.get("max_model_len") or 0) for model in found["data"] or ()}
        # An adapter of ours, which an earlier training has left there, is not what the server was started with.
        names = [name for name in rooms if not name.startswith("agentopcd-")]
        if len(names) != 1 and wanted not in names:
            raise EngineError(
                f"{self.url} serves {', '.join(names) or 'no model'} and nothing named {wanted!r}; start it with "
                f"--served-model-name {wanted}"
            )
        self.serves = wanted if wanted in names else names[0]
        self.room = rooms[self.serves]

    async def complete(
        self, model: str, request: Request, sampling: Sampling, end_ids: Sequence[int]
    ) -> Completion | None:
        """One reply; None if the request was aborted because somebody paused the server.

        Every setting is sent, so that no default of the server or of the model's vendor applies.
        """
        self.busy += 1
        try:
            with as_api(self.url):
                answer = await self.replies.completions.create(
                    model=model, prompt=list(request.prompt_ids), max_tokens=sampling.max_tokens, seed=request.seed,
                    temperature=sampling.temperature, top_p=sampling.top_p, logprobs=0,
                    timeout=patience(sampling.max_tokens),
                    extra_body={
                        "top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0,
                        "stop_token_ids": list(end_ids), "ignore_eos": True, "return_token_ids": True,
                    },
                )  # fmt: skip
                choice: Any = answer.choices[0]
                if choice.finish_reason == "abort":
                    return None
        finally:
            self.busy -= 1
        ids, told = getattr(choice, "token_ids", None), getattr(choice, "logprobs", None)
        if ids is None or told is None or len(told.token_logprobs or ()) != len(ids):
            raise EngineError(
                f"{self.url} answers without token ids and their log-probabilities; replies are never tokenised again "
                "here, so take a server that has them, such as vLLM's, or only play with it (--engine api)"
            )
        return Completion(
            token_ids=tuple(ids), logprobs=tuple(told.token_logprobs),
            finish_reason="stop" if ids and ids[-1] in end_ids else "length",
        )  # fmt: skip

    def failed(self) -> float:
        """See :class:`agentopcd.rollouts.sampling.requests.Endpoint`. After a failure the weights are in doubt."""
        self.doubtful = True
        return super().failed()

    # -- weights: vLLM's development endpoints ------------------------------------------------------

    def label(self) -> str | None:
        """The label of the server's weights; None for a server without labels."""
        try:
            return str(self._get("/weight_info").get("weight_version") or "")
        except openai.NotFoundError:
            return None

    def name_weights(self, label: str) -> None:
        self._post("/update_weight_version", {"new_version": label})

    def load(self, folder: Path) -> None:
        """Let the server read all weights from ``folder``, which it must be able to see."""
        self._post("/pause?mode=abort")  # no reply may mix old and new weights
        try:
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            if not self._post("/reset_prefix_cache").get("success"):
                raise EngineError(f"{self.url} cannot reset its prefix cache while others use it; use it alone")
        finally:
            self._post("/resume")

    def load_all(self, weights: dict[str, torch.Tensor]) -> None:
        """Give the server these weights, in a folder as above."""
        with tempfile.TemporaryDirectory() as folder:
            copies = {name: weight.cpu().contiguous().clone() for name, weight in weights.items()}
            save_file(copies, Path(folder) / "model.safetensors")
            self.load(Path(folder))

    def load_adapter(self, name: str, folder: Path) -> None:
        self.unload_adapter(name)
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload_adapter(self, name: str) -> None:
        with contextlib.suppress(openai.NotFoundError):  # the server no longer has the adapter
            self._post("/v1/unload_lora_adapter", {"lora_name": name})

    def _get(self, path: str) -> dict[str, Any]:
        options: Any = {"timeout": openai.Timeout(LOOK_S, connect=CONNECT_S)}
        with as_api(self.url):
            answer: Any = self.control.get(path, cast_to=object, options=options)
            if not isinstance(answer, dict):
                raise TypeError(path)
            return answer

    def _post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with as_api(self.url):
            answer: Any = self.control.post(path, body=body or {}, cast_to=object)
        return answer if isinstance(answer, dict) else {}
