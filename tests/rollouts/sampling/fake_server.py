"""A small server with the endpoints that vLLM has, answered by transformers: what can go wrong is switched on here."""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from agentopcd import models
from agentopcd.core.types import Request, Sampling
from agentopcd.rollouts.sampling.transformers_engine import TransformersSampler


class FakeServer:
    """Serves the model in ``folder`` until :meth:`stop`; it can be started again, as it was first."""

    def __init__(self, folder: Path, *, names: tuple[str, ...] = ("tiny",), dev: bool = True, port: int = 0) -> None:
        self.folder, self.names, self.dev = folder, names, dev
        self.stopped = False
        self.key = ""
        self.token_ids = True
        self.failing = 0
        """Requests that are answered by an error 503 from now on."""
        self.aborting = 0
        """Replies that break off after a token from now on, as when somebody pauses the server."""
        self.refusing = ""
        self.refuses: Callable[[dict[str, Any]], str] = lambda body: ""
        """Says why a request for tokens is refused, if it is."""
        self.withholding = 0
        """Chat replies that are kept back from now on, as a filter does."""
        self.refuses_chat: Callable[[dict[str, Any]], str] = lambda body: ""
        """Says why a chat request is refused, if it is."""
        self.limit = "max_tokens"
        self.chats: list[dict[str, Any]] = []
        """Bodies of the chat requests that were answered."""
        self.raw_logprobs = False
        self.forgets_label_after = -1
        """Requests after which it behaves as if it had been started anew; -1: never."""
        self.delay_s = 0.0
        """How long it takes for a reply, besides what the model takes."""
        self.loads = 0
        """How often it was given weights."""
        self.answered: list[int] = []
        """Seeds of the requests that were answered."""
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.http.daemon_threads = True
        self.restart()
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def restart(self) -> None:
        self.loaded = models.load_model(str(self.folder))
        self.label = "default"
        self.adapters: dict[str, Path] = {}

    def stop(self) -> None:
        self.stopped = True  # connections that are open hang up at their next request
        self.http.shutdown()
        self.http.server_close()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(self.delay_s)
        self.loaded.end_ids = tuple(body["stop_token_ids"])
        sampling = Sampling(temperature=body["temperature"], top_p=body["top_p"], max_tokens=body["max_tokens"])
        sampler = TransformersSampler(self._named(body["model"]), compute=torch.float32)
        (reply,) = sampler.sample([Request(prompt_ids=tuple(body["prompt"]), seed=body["seed"])], sampling)
        self.answered.append(body["seed"])
        if len(self.answered) == self.forgets_label_after:
            self.restart()
        if self.aborting:
            self.aborting -= 1
            reply = dataclasses.replace(reply, token_ids=reply.token_ids[:1], logprobs=reply.logprobs[:1])
            why = "abort"
        else:
            why = reply.finish_reason
        own = [-1.0] * len(reply.logprobs) if self.raw_logprobs else list(reply.logprobs)
        choice: dict[str, Any] = {
            "index": 0, "text": "", "finish_reason": why,
            "logprobs": {"token_logprobs": own, "tokens": [], "text_offset": [], "top_logprobs": []},
        }  # fmt: skip
        if self.token_ids:
            choice["token_ids"] = list(reply.token_ids)
        return {"id": "1", "object": "text_completion", "created": 1, "model": "tiny", "choices": [choice]}

    def _named(self, name: str) -> models.LoadedModel:
        """The model of this name: the one that is served, or an adapter on it."""
        if name not in self.adapters:
            return self.loaded
        from peft import PeftModel

        own = dataclasses.replace(self.loaded, model=copy.deepcopy(self.loaded.model))
        own.adapter = PeftModel.from_pretrained(own.model, str(self.adapters[name]))
        return own

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """As an API does it: messages in, text out, no ids."""
        time.sleep(self.delay_s)
        tokenizer = self.loaded.tokenizer
        prompt = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        sampling = Sampling(temperature=body["temperature"], top_p=body["top_p"], max_tokens=body[self.limit])
        (reply,) = TransformersSampler(self.loaded, compute=torch.float32).sample(
            [Request(prompt_ids=ids, seed=body["seed"])], sampling
        )
        self.chats.append(body)
        why = reply.finish_reason
        if self.withholding:
            self.withholding -= 1
            why = "content_filter"
        text = tokenizer.decode(reply.token_ids, skip_special_tokens=True)
        return {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": why, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(reply.token_ids), "total_tokens": 0},
        }  # fmt: skip

    def control(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.loads += 1
            own = dict(self.loaded.model.named_parameters())
            with torch.no_grad():
                for name, tensor in load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors").items():
                    if name in own:
                        own[name].copy_(tensor)
        elif path == "/update_weight_version":
            self.label = body["new_version"]
        elif path == "/v1/load_lora_adapter":
            self.adapters[body["lora_name"]] = Path(body["lora_path"])
        elif path == "/v1/unload_lora_adapter" and body["lora_name"] in self.adapters:
            del self.adapters[body["lora_name"]]
        elif path == "/reset_prefix_cache":
            return {"success": True}
        elif path not in ("/pause?mode=abort", "/resume"):
            return None
        return {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                with fake.lock:
                    if fake.stopped:
                        self.close_connection = True
                        return
                    status, found = self._found(body)
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _found(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
                if fake.key and self.headers.get("authorization") != f"Bearer {fake.key}":
                    return 401, {"error": {"message": "no"}}
                if self.path == "/v1/models":
                    return 200, {"data": [{"id": name, "max_model_len": 2048} for name in fake.names]}
                if self.path == "/v1/chat/completions" and self.model_is_known(body):
                    if fake.failing:
                        fake.failing -= 1
                        return 503, {"error": {"message": "busy"}}
                    if why := fake.refuses_chat(body):
                        return 400, {"error": {"message": why}}
                    if fake.limit not in body:
                        return 400, {"error": {"message": f"Unsupported parameter. Use '{fake.limit}' instead."}}
                    return 200, fake.chat(body)
                if self.path == "/v1/completions" and self.model_is_known(body):
                    if fake.failing:
                        fake.failing -= 1
                        return 503, {"error": {"message": "busy"}}
                    if fake.refusing:
                        return 400, {"error": {"message": fake.refusing}}
                    if why := fake.refuses(body):
                        return 400, {"error": {"message": why}}
                    return 200, fake.complete(body)
                if fake.dev and self.path == "/weight_info":
                    return 200, {"weight_version": fake.label}
                if fake.dev and (told := fake.control(self.path, body)) is not None:
                    return 200, told
                return 404, {"error": {"message": "not found"}}

            def model_is_known(self, body: dict[str, Any]) -> bool:
                return body["model"] in (*fake.names, *fake.adapters)

        return Handler
