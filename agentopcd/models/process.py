"""Settings for the whole process: log level, memory, attention, threads. The command line makes them, a library call
never does.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def prepare_process() -> None:
    """Set this process up for models. The command line does so once, before it loads a model.

    The function silences transformers, keeps freed memory, computes attention on a CPU in float32 and uses no more
    threads than the container has CPUs; on a GPU, cuDNN computes no attention. All but the first two change the last
    digits of results. A second call changes nothing.
    """
    quiet()
    keep_freed_memory()
    float32_attention()
    fit_threads()
    # cuDNN plans anew for each length, and episodes have many: a profile of a rollout on an H200 showed most of the
    # processor's time there (docs/LOG.md).
    torch.backends.cuda.enable_cudnn_sdp(False)


def quiet() -> None:
    """Silence the progress bars and warnings of transformers and its hub client; their errors still show."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()


@contextlib.contextmanager
def relayed_warnings(*, but: Sequence[str] = ()) -> Iterator[None]:
    """Turn what transformers logs as a warning inside this block into Python warnings, whatever its log level is.

    The command line silences transformers, but a warning while a model is loaded is about that model.

    Args:
        but: words of warnings that the caller answers itself.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.get_verbosity()  # the first call sets the logger up, which must not happen inside the block
    logger, heard = logging.getLogger("transformers"), _Heard()
    level, handlers, upwards = logger.level, logger.handlers[:], logger.propagate
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [heard], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, upwards
        logger.setLevel(level)
    for message in heard.messages:
        if not any(words in message for words in but):
            warnings.warn(message, stacklevel=4)


class _Heard(logging.Handler):
    """Keeps each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.messages[" ".join(record.getMessage().split())] = None


def keep_freed_memory() -> None:
    """Let glibc keep freed buffers. Mapping large buffers again at each token or step costs page faults.

    Without glibc (macOS, Windows, musl) the function does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt(m_mmap_max, 0)  # allocate from the heap, which is kept; a separate mapping would be given back
    mallopt(m_trim_threshold, 512 << 20)


def give_back_memory() -> None:
    """Give memory that was freed back to the machine, once: what was kept was far more than a step needs.

    Without glibc the function does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


SPARE_BYTES = 512 << 20
"""So much may a process hold beyond what it held when it last gave memory back."""


class FreedMemory:
    """Gives freed memory back whenever the process has grown by :data:`SPARE_BYTES`.

    Buffers of many sizes, which live for one reply or for a whole game, leave holes in a heap that is kept. A
    play can come to hold several times what is in use.
    """

    def __init__(self) -> None:
        self.held = resident_bytes()

    def look(self) -> None:
        """Give memory back if there may be much of it. Without glibc or Linux the method does nothing."""
        if resident_bytes() > self.held + SPARE_BYTES:
            give_back_memory()
            self.held = resident_bytes()


def resident_bytes() -> int:
    """The memory that this process holds; 0 where the system is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def float32_attention() -> None:
    """On a CPU, keep the attention of transformers in float32 under autocast.

    With gradients, float32 attention takes 0.6 times as long as bfloat16 for a hundred tokens and about as long for a
    thousand (``benchmarks/machine.py``), and it rounds less. The setting holds for the whole process, because gradient
    checkpointing recomputes attention outside of any ``with`` block.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if getattr(usual, "func", None) is not _in_float32:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = functools.partial(_in_float32, usual)


def _in_float32(usual: Any, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    """Under autocast on a CPU, call ``usual`` on float32 ``[B, H, T, D]`` with autocast off; else call it unchanged."""
    if query.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return usual(module, query, key, value, attention_mask, **kwargs)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        return usual(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def fit_threads() -> None:
    """Use no more threads than the container has CPUs. Torch counts the host's CPUs, and surplus threads spin.

    ``OMP_NUM_THREADS``, if set, decides instead. The quota is read from Linux control groups, version 2. The number of
    threads follows from the machine and not from a timing, because it changes the last digits of results.
    """
    try:
        quota, period = CPU_QUOTA.read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), int(quota) // int(period))))
