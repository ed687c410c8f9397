"""What this machine can do at most: ``python -m benchmarks.machine``.

Matrix products in each dtype, reading weights from memory (a product with four rows, which is what a decoding step of
four replies is), and attention forward and backward. In CPU seconds of one thread unless ``--threads`` says otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from agentopcd.rollouts.sampling import decoding
from agentopcd.rollouts.sampling.decoding import _packed_linear as packed_product

SHAPES = ((2048, 2048, 2048), (500, 576, 1536), (500, 1536, 576), (256, 576, 49152))


def seconds(act: Callable[[], Any], repeats: int) -> float:
    act()
    began = time.process_time()
    for _ in range(repeats):
        act()
    return (time.process_time() - began) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for dtype in (torch.float32, torch.bfloat16):
        for rows, inner, columns in SHAPES:
            x, w = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
            spent = seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w), args.repeats)
            rate = 2 * rows * inner * columns / spent / 1e9
            print(f"{dtype}: [{rows}, {inner}] x [{inner}, {columns}]: {rate:.0f} GFLOP/s", flush=True)
    for dtype, columns, many in ((torch.bfloat16, 1536, 100), (torch.float32, 49152, 2)):
        weights = [torch.randn(columns, 576).to(dtype) for _ in range(many)]  # more than the caches hold
        x = torch.randn(4, 576).to(dtype)
        size = sum(w.numel() * w.element_size() for w in weights) / 1e9
        spent = seconds(lambda ws=weights, x=x: [torch.nn.functional.linear(x, w) for w in ws], args.repeats)
        line = f"{dtype}: [4, 576] x [576, {columns}]: {size / spent:.1f} GB/s of weights read"
        if decoding.can_pack(dtype):
            packed = [torch.ops.mkldnn._reorder_linear_weight(w, decoding.PACKED_ROWS) for w in weights]
            spent = seconds(lambda ws=packed, x=x: [packed_product(x.dtype, w, None, x) for w in ws], args.repeats)
            line += f", packed {size / spent:.1f}"
        print(line, flush=True)
    for tokens in (110, 500, 1000):
        for dtype in (torch.float32, torch.bfloat16):
            qkv = [torch.randn(4, 9, tokens, 64).to(dtype).requires_grad_() for _ in range(3)]

            def attend(qkv: list[torch.Tensor] = qkv) -> None:
                q, k, v = qkv
                torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()

            spent = seconds(attend, args.repeats)
            print(f"{dtype}: attention [4, 9, {tokens}, 64] with its gradients: {spent * 1e3:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
