"""The vLLM engine, in this process or in one beside it (``vllm_process.py``).

It caches prefixes and returns each reply as soon as it is done.

The engine starts with random weights. It gets the model's weights through the same call that updates them after a step,
and each time its log-probabilities are compared with the model's. So a tensor that the update leaves out is off by
whole nats at once, and not by bfloat16 noise after a few small steps. An adapter and its base are read from disk. So
are the first weights of an engine in a process of its own, where vLLM reloads over no others.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib.util
import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file

from agentopcd import models
from agentopcd.core.errors import AlignmentError, ConfigError, DependencyError, ModelError
from agentopcd.core.text import first_line
from agentopcd.core.types import Completion, Request, Sampling
from agentopcd.models import find
from agentopcd.rollouts.sampling import vllm_process
from agentopcd.rollouts.sampling.protocol import Heard, Sampler, check_room
from agentopcd.rollouts.sampling.same_weights import GAP_NATS, gap_nats, named_weights
from agentopcd.rollouts.sampling.vllm_command import LORA_RANKS

LONGEST = 32_768
"""The most positions of an engine. vLLM reserves memory for one sequence of full length."""
BATCHED_TOKENS = 8192
"""Prompt tokens per forward pass; more if one prompt of full length needs it."""
GPU_SHARE = 0.3
"""The engine's share of the GPU's memory; the rest is for the model that trains."""


def installed() -> bool:
    """Whether vLLM is installed; this does not import it."""
    return importlib.util.find_spec("vllm") is not None


def check_installed() -> None:
    """Refuse to go on without vLLM.

    Raises:
        DependencyError: it is not installed.
    """
    if not installed():
        raise DependencyError(
            "vLLM is not installed; install it with: pip install 'agentopcd[vllm]' (on a CPU: docs/engines.md), or "
            "take --engine transformers"
        )


def supports(architecture: str) -> bool:
    """Whether vLLM can run a model of this transformers class name."""
    vllm_process.prepare(1)
    with _quiet():
        from vllm import ModelRegistry

        return architecture in ModelRegistry.get_supported_archs()


def sampler_of(loaded: models.LoadedModel, *, compute: torch.dtype, batch_size: int = 64) -> VllmSampler:
    """The live sampler if its engine already holds ``loaded``, else a new one."""
    alive = VllmSampler.alive
    if alive and alive.loaded is loaded and alive.kind == (compute, batch_size, loaded.adapter is not None):
        return alive
    return VllmSampler(loaded, compute=compute, batch_size=batch_size)


class VllmSampler:
    """Samples with vLLM. The engine starts at the first request, and a process has only one engine alive.

    Args:
        loaded: the model. The engine takes over its weights in memory at the start and at each :meth:`update`.
        compute: dtype of the engine's weights and products.
        batch_size: the most sequences that the engine runs at once.

    Raises:
        DependencyError: vLLM is not installed.
    """

    alive: ClassVar[VllmSampler | None] = None

    def __init__(self, loaded: models.LoadedModel, *, compute: torch.dtype, batch_size: int = 64) -> None:
        check_installed()
        self.loaded, self.compute, self.batch_size = loaded, compute, batch_size
        self.engine = f"vllm-{str(compute).removeprefix('torch.')}"
        self.kind = (compute, batch_size, loaded.adapter is not None)
        self._llm: Any = None
        self._tickets, self._versions = itertools.count(), itertools.count(1)
        self._ready: dict[int, Completion] = {}
        self.heard: Heard | None = None  # see protocol.Stepwise
        self._told: dict[int, int] = {}  # how many tokens of each reply were heard
        self._adapter: Any = None
        self._asleep = False

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order.

        Raises:
            ConfigError: a prompt and its longest reply do not fit into the model's positions.
        """
        check_room(requests, sampling, self.room, self.loaded.name)
        tickets = [self.submit(request, sampling) for request in requests]
        while not all(ticket in self._ready for ticket in tickets):
            self._step()
        return [self._ready.pop(ticket) for ticket in tickets]

    def submit(self, request: Request, sampling: Sampling) -> int:
        """See :class:`.protocol.Sampler`."""
        check_room([request], sampling, self.room, self.loaded.name)
        self._start()
        ticket = next(self._tickets)
        self._ask(str(ticket), request, sampling)
        return ticket

    def collect(self) -> list[tuple[int, Completion]]:
        """See :class:`.protocol.Sampler`."""
        while not self._ready:
            self._step()
        return self.advance()

    def advance(self) -> list[tuple[int, Completion]]:
        """See :class:`.protocol.Stepwise`."""
        if not self._ready:
            self._step()
        ready, self._ready = list(self._ready.items()), {}
        return ready

    def drop(self, tickets: Iterable[int]) -> None:
        """See :class:`.protocol.Sampler`."""
        for ticket in tickets:
            self._told.pop(ticket, None)
            if self._ready.pop(ticket, None) is None and self._llm is not None:
                self._llm.llm_engine.abort_request([str(ticket)])

    def update(self) -> float | None:
        """Take over the model's weights and compare log-probabilities; see :class:`.protocol.Sampler`.

        Returns:
            The difference in nats; None if the engine has not started. It takes over the weights when it starts.

        Raises:
            AlignmentError: the engine does not sample with the model's weights.
        """
        if self._llm is None:
            return None
        self._wake()
        return self._take_over()

    def split(self, jobs: int) -> Sequence[Sampler]:
        """See :class:`agentopcd.rollouts.sampling.Sampler`."""
        return [self]

    def rest(self) -> None:
        """On a GPU, free keys, values and weights. The weights below an adapter move to the host's memory instead."""
        if self._llm is not None and self._sleeps:
            self._llm.sleep(level=2 if self.loaded.adapter is None else 1)
            self._asleep = True

    def close(self) -> None:
        """Stop the engine and free its memory; the next request restarts it."""
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        self._llm = self._adapter = VllmSampler.alive = None
        self._ready.clear()
        self._asleep = False
        if not vllm_process.apart():  # it would end the group of our own processes
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cleanup_dist_env_and_memory()
        gc.collect()

    # -- the engine ---------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the engine with the model's weights; if it runs already, make sure that it is awake."""
        if self._llm is not None:
            if self._asleep:
                self._wake()
                self._take_over()
            return
        _close_alive()
        config, adapter = self.loaded.model.config, self.loaded.adapter
        if adapter is not None and (self.loaded.folder / find.ADAPTER).is_file():
            raise ModelError(
                f"{self.loaded.name!r} is an adapter itself, and vLLM would play without it: train it with --merge, or "
                "take --engine transformers"
            )
        positions = self.room
        vllm_process.prepare(vllm_process.cache_gib(config, positions))
        lora: dict[str, Any] = {}
        if adapter is not None:
            rank = adapter.peft_config["default"].r
            room = next((r for r in LORA_RANKS if r >= rank), None)
            if room is None:
                raise ModelError(f"--lora-rank {rank} is more than vLLM takes ({LORA_RANKS[-1]})")
            lora = {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}
        threads, state = torch.get_num_threads(), torch.get_rng_state()  # vLLM changes both while it starts
        try:
            with _quiet():
                from vllm import LLM

                self._llm = LLM(
                    str(find.find_base(str(self.loaded.folder))),
                    dtype=str(self.compute).removeprefix("torch."),  # type: ignore[arg-type]
                    load_format="auto" if lora or vllm_process.apart() else "dummy", skip_tokenizer_init=True,
                    generation_config="vllm",
                    max_model_len=positions, max_num_seqs=self.batch_size, enforce_eager=True, seed=0,
                    # A chunked prompt would need seeded generators that can step back, which CPU generators cannot.
                    enable_chunked_prefill=False, max_num_batched_tokens=max(positions, BATCHED_TOKENS),
                    enable_prefix_caching=True, logprobs_mode="processed_logprobs",
                    gpu_memory_utilization=GPU_SHARE, enable_sleep_mode=self._sleeps, disable_log_stats=False,
                    logits_processors=["agentopcd.rollouts.sampling.vllm_choices:Constrain"], **lora,
                )  # fmt: skip
            VllmSampler.alive = self
            self._take_over()
        except AlignmentError:
            self.close()
            raise
        except (ValueError, KeyError, RuntimeError, ImportError, AssertionError, NotImplementedError) as error:
            self.close()
            line = first_line(error, otherwise=type(error).__name__)
            raise ModelError(f"vLLM cannot run {self.loaded.name!r}: {line}; take --engine transformers") from error
        finally:
            torch.set_num_threads(threads)
            torch.set_rng_state(state)

    @property
    def _sleeps(self) -> bool:
        """Whether the engine can sleep on this platform. Not run on a GPU yet."""
        return next(self.loaded.model.parameters()).device.type == "cuda"

    def _wake(self) -> None:
        """Allocate memory for weights and cache again. Its content is meaningless until the weights are pushed."""
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    @property
    def room(self) -> int:
        """See :class:`~agentopcd.rollouts.sampling.protocol.Sampler`."""
        return min(models.positions(self.loaded.model) or LONGEST, LONGEST)

    def _ask(self, name: str, request: Request, sampling: Sampling) -> None:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        try:
            params = SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
                max_tokens=sampling.max_tokens, seed=request.seed, logprobs=0, detokenize=False,
                ignore_eos=True, stop_token_ids=list(self.loaded.end_ids),
                extra_args={"agentopcd_choices": request.choices} if request.choices else None,
            )  # fmt: skip
            self._llm.llm_engine.add_request(
                name, {"prompt_token_ids": list(request.prompt_ids)}, params, lora_request=self._adapter
            )
        except VLLMValidationError as error:  # a temperature above 2, say
            raise ConfigError(f"vLLM refuses these settings: {str(error).splitlines()[0]}") from error

    def _step(self) -> None:
        """Advance all requests by one token and keep the replies that are done."""
        # vLLM draws from torch's global generator even for requests that have their own seed.
        with torch.random.fork_rng(devices=[]):
            outputs = self._llm.llm_engine.step()
        for output in outputs:
            ticket, said = int(output.request_id), output.outputs[0]
            if self.heard is not None and (news := _tokens(said, self._told.get(ticket, 0)))[0]:
                self.heard(ticket, *news)
                self._told[ticket] = len(said.token_ids)
            if output.finished:
                ids, logprobs = _tokens(said)
                reason = "stop" if ids[-1] in self.loaded.end_ids else "length"
                self._ready[ticket] = Completion(token_ids=ids, logprobs=logprobs, finish_reason=reason)
                self._told.pop(ticket, None)

    # -- weights ------------------------------------------------------------------------------------

    def _take_over(self) -> float:
        """Give the engine the model's weights, and return how far its log-probabilities are off afterwards, in nats."""
        if self.loaded.adapter is None:
            self._push(named_weights(self.loaded))
        else:
            self._push_adapter()
        gap = self._gap()
        if not gap <= GAP_NATS[self.compute]:  # also refuses NaN
            raise AlignmentError(
                f"after the update vLLM is off by {gap:.3g} nats a token (more than {GAP_NATS[self.compute]}): "
                f"{self._blame()}; its replies would not be the student's, so take --engine transformers"
            )
        return gap

    def _push(self, weights: dict[str, torch.Tensor]) -> None:
        with _quiet(), tempfile.TemporaryDirectory() as folder:
            given: dict[str, Any] = {"weights_iterator": list(weights.items())}
            if vllm_process.apart():
                copies = {name: weight.cpu().contiguous().clone() for name, weight in weights.items()}
                save_file(copies, Path(folder) / "model.safetensors")
                given = {"weights_path": folder}
            self._llm.collective_rpc("reload_weights", kwargs=given)
        self._forget_prefixes()

    def _push_adapter(self) -> None:
        """Write the adapter to disk and let the engine load it: vLLM takes an adapter in no other way.

        Each version has a new name, because the engine caches what it has read.
        """
        from vllm.lora.request import LoRARequest

        with tempfile.TemporaryDirectory() as folder:
            self.loaded.adapter.save_pretrained(folder)
            number = next(self._versions)
            before, self._adapter = self._adapter, LoRARequest(f"student-{number}", number, folder)
            if before is not None:
                self._llm.llm_engine.remove_lora(before.lora_int_id)
            self._llm.llm_engine.add_lora(self._adapter)
        self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        """Drop the keys and values that the old weights gave; vLLM refuses while a request still holds some."""
        if not self._llm.reset_prefix_cache():
            raise AlignmentError("the weights changed while vLLM was still answering; collect or drop its requests")

    def _gap(self) -> float:
        return gap_nats(self.loaded, self.compute, self.sample)

    def _blame(self) -> str:
        """Name the group of parameters that alone explains the gap: pushing it once more closes the gap."""
        if self.loaded.adapter is not None:
            return "the adapter, or the weights below it"
        model = self.loaded.model
        parameters = dict(model.named_parameters())
        groups = {
            "output head": {"lm_head.weight": model.get_output_embeddings().weight},
            "embeddings": {name: p for name, p in parameters.items() if p is model.get_input_embeddings().weight},
            "layers": {name: p for name, p in parameters.items() if ".layers." in name},
        }
        for label, weights in groups.items():
            self._push(weights)
            if self._gap() <= GAP_NATS[self.compute]:
                return f"the group '{label}' had not been updated"
        return "no single group of parameters explains it"

    def cache_hits(self) -> tuple[int, int]:
        """The prompt tokens found in the prefix cache, and all prompt tokens, since the engine started."""
        metrics = {metric.name: getattr(metric, "value", 0) for metric in self._llm.get_metrics()}
        return int(metrics["vllm:prefix_cache_hits"]), int(metrics["vllm:prefix_cache_queries"])


def _tokens(said: Any, start: int = 0) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The tokens of a reply from a place on, and their log-probabilities."""
    ids = tuple(said.token_ids[start:])
    return ids, tuple(at[token].logprob for at, token in zip(said.logprobs[start:], ids, strict=True))


@atexit.register
def _close_alive() -> None:
    if VllmSampler.alive is not None:
        VllmSampler.alive.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard vLLM's progress bars and warnings. Its errors are still raised."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Redirect the file descriptors, because vLLM's C++ code bypasses Python's streams.
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with Path(os.devnull).open("w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, _ in kept:
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
