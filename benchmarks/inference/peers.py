"""What `transformers` itself offers, one way per process: static batches, its continuous batching, one at a time.

Static batches are the ideal kind: all requests are there at the start, and those with answers of like length share a
batch, so that no row waits long for another. Continuous batching is the manager behind `generate_batch`, asked
directly, since `generate_batch` gives all requests of a call the same length.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.inference.workload import Request, load, num_tokens, requests
from benchmarks.measure import memory_mib

_MEMORY_SHARE = 0.2
"""Of what is free, for the cache of `generate_batch`: by default it takes most of the machine."""


def static(model: Any, tokenizer: Any, wanted: Sequence[Request], rows: int) -> None:
    ordered = sorted(wanted, key=lambda each: each.max_tokens)
    for start in range(0, len(ordered), rows):
        batch = ordered[start : start + rows]
        width = max(len(each.prompt_ids) for each in batch)
        ids = torch.tensor([[0] * (width - len(each.prompt_ids)) + list(each.prompt_ids) for each in batch])
        mask = torch.tensor([[0] * (width - len(each.prompt_ids)) + [1] * len(each.prompt_ids) for each in batch])
        most = max(each.max_tokens for each in batch)
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)
        for row, each in enumerate(batch):
            tokenizer.decode(output[row, width : width + each.max_tokens])


def sequential(model: Any, tokenizer: Any, wanted: Sequence[Request], rows: int) -> None:  # noqa: ARG001
    static(model, tokenizer, wanted, 1)


def continuous(model: Any, tokenizer: Any, wanted: Sequence[Request], rows: int) -> None:  # noqa: ARG001
    from transformers import ContinuousBatchingConfig, GenerationConfig

    bounds = ContinuousBatchingConfig(max_memory_percent=_MEMORY_SHARE)
    config = GenerationConfig(do_sample=False, max_new_tokens=max(each.max_tokens for each in wanted), eos_token_id=-1)
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=bounds, block=True, timeout=5
    ) as manager:
        for each in wanted:
            manager.add_request(list(each.prompt_ids), max_new_tokens=each.max_tokens)
        left = len(wanted)
        while left:
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                tokenizer.decode(result.generated_tokens)
                left -= 1
            elif result is None and not manager.is_running():
                raise RuntimeError("the manager ended before its requests")


WAYS: dict[str, Callable[[Any, Any, Sequence[Request], int], None]] = {
    "static": static,
    "generate_batch": continuous,
    "sequential": sequential,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--of", type=int, required=True, help="so many are measured, taken evenly from all")
    chosen = parser.parse_args()
    model, tokenizer = load(chosen.root)
    before, run = memory_mib("VmRSS"), WAYS[chosen.way]
    everything = requests(chosen.requests)
    wanted = everything[:: max(1, len(everything) // chosen.of)][: chosen.of]
    run(model, tokenizer, requests(min(chosen.rows, len(wanted)), seed=1), chosen.rows)  # warm
    began = time.perf_counter()
    run(model, tokenizer, wanted, chosen.rows)
    seconds = time.perf_counter() - began
    figures = {"tokens_per_s": num_tokens(wanted) / seconds, "requests": len(wanted)}
    print(json.dumps({**figures, "peak_mib": memory_mib(), "loaded_mib": before}))


if __name__ == "__main__":
    main()
