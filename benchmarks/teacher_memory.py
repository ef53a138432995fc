"""How much memory each process of a sharded teacher takes, while it loads and while it answers, and what that costs.

Peak memory is the kernel's own (VmHWM, set back before each part) above what the process had after its imports.
I7 allows a shard, two layers and activations; these are what a teacher in one process needs above its weights.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
ROW = 256
DEADLINE_S = 540
MIB = 1 << 20
CHANGES: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "ours": lambda _zero, _layer: {},
    "no_prefetch": lambda _zero, _layer: {"stage3_prefetch_bucket_size": 0},
    "half_layer_prefetch": lambda _zero, layer: {"stage3_prefetch_bucket_size": layer // 2},
    "coalesced": lambda _zero, _layer: {"stage3_allgather_sequential": False},
    "deepspeed_defaults": lambda zero, _layer: {key: None for key in zero if key.startswith("stage3_")},
    "memory_kept": lambda _zero, _layer: {},
    "whole_loading": lambda zero, _layer: {key: None for key in zero if key.startswith("stage3_")},
}
"""What is asked of DeepSpeed other than by `trainer.sharded_loading.stage3`; None leaves a setting to DeepSpeed."""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        model = Path(directory) / "model"
        sizes = _write(model, arguments.dtype)
        runs = [
            _run(Path(directory), model, world, settings, arguments)
            for world in arguments.worlds
            for settings in (arguments.settings if world > 1 else ["ours"])
        ]
    result = {
        "benchmark": "teacher_memory",
        "model": sizes,
        "runs": _with_ratios(runs, sizes),
        "n": arguments.repeats,
        "tokens_per_process": arguments.tokens,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": _memory_gib(), "threads_per_process": 1},
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers", "safetensors")}
        | {"python": platform.python_version()},
    }
    if not arguments.json:
        for run in result["runs"]:
            print(*(f"{key}={value}" for key, value in run.items() if key != "spread"))
    print(json.dumps(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="nothing but one JSON object on the last line")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--settings", nargs="+", choices=CHANGES, default=["ours", "whole_loading"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--tokens", type=int, default=2048, help="positions that each process is asked for at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", help="where the model is written (default: the temporary directory)")
    return parser.parse_args()


def _write(directory: Path, dtype: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.models import DTYPES, num_parameters
    from trainer.sharded_loading import layer_elements

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=DTYPES[dtype])
    model.save_pretrained(directory)
    itemsize = DTYPES[dtype].itemsize
    return {
        "parameters": num_parameters(model),
        "dtype": dtype,
        "whole_mib": num_parameters(model) * itemsize / MIB,
        "layer_mib": layer_elements(model) * itemsize / MIB,
        "embedding_mib": model.get_input_embeddings().weight.numel() * itemsize / MIB,
    }


def _run(directory: Path, model: Path, world: int, settings: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One teacher of `world` processes."""
    store = directory / f"store-{world}-{settings}"
    context = get_context("spawn")
    work = (world, str(store), str(model), settings, arguments.dtype, arguments.tokens, arguments.repeats)
    processes = [context.Process(target=_shard, args=(rank, *work)) for rank in range(world)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + DEADLINE_S
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
                process.join()
    if any(process.exitcode for process in processes):
        sys.exit(f"a process of {world} ({settings}) failed: {[process.exitcode for process in processes]}")
    found = [json.loads(Path(f"{store}-{rank}.json").read_text()) for rank in range(world)]
    seconds = [max(times) for times in zip(*(one["targets_s"] for one in found), strict=True)]
    print(f"{world} processes ({settings}): {statistics.median(seconds):.2f} s", file=sys.stderr)
    return {
        "world": world,
        "settings": settings,
        **{f"{key}_mib": max(one[key] for one in found) for key in ("load", "resident", "targets", "head")},
        "load_s": max(one["load_s"] for one in found),
        "targets_s": statistics.median(seconds),
        "head_s": max(one["head_s"] for one in found),
        "spread": {"targets_s": [min(seconds), max(seconds)]},
    }


def _shard(rank: int, world: int, store: str, model: str, settings: str, dtype: str, tokens: int, repeats: int) -> None:
    import trainer.teacher as teaching
    from trainer.device import import_deepspeed
    from trainer.generate import TokenIds
    from trainer.wanted import Wanted

    logging.getLogger("trainer").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    import_deepspeed()
    _choose(teaching, settings)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
        dist.barrier()
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    imports = _status("VmRSS")
    found: dict[str, Any] = {}

    def peak_of(work: Callable[[], Any]) -> tuple[Any, float, float]:
        Path("/proc/self/clear_refs").write_text("5")
        start = time.monotonic()
        result = work()
        return result, _status("VmHWM") - imports, time.monotonic() - start

    teacher, found["load"], found["load_s"] = peak_of(
        lambda: teaching.TeacherModel(
            model, dtype=dtype, rank=rank, world=world, tokens=TokenIds(CONFIG["vocab_size"], 0, (1,))
        )
    )
    found["resident"] = _status("VmRSS") - imports
    batch = _batch(rank, tokens)
    for _ in range(2):  # DeepSpeed sees the order of the layers once before it fetches ahead
        teacher.targets(batch, Wanted())
    parts = [peak_of(lambda: teacher.targets(batch, Wanted())) for _ in range(repeats)]
    found["targets"], found["targets_s"] = max(part[1] for part in parts), [part[2] for part in parts]
    _, found["head"], found["head_s"] = peak_of(teacher.head)
    Path(f"{store}-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def _choose(teaching: Any, settings: str) -> None:
    ours, whole = teaching.stage3, teaching.load_model
    from trainer import sharded_loading

    def stage3(model: Any, dtype: torch.dtype) -> dict[str, Any]:
        config: dict[str, Any] = ours(model, dtype)
        zero = config["zero_optimization"]
        changed = {**zero, **CHANGES[settings](zero, sharded_loading.layer_elements(model))}
        return {**config, "zero_optimization": {key: value for key, value in changed.items() if value is not None}}

    teaching.stage3 = stage3
    if settings == "memory_kept":
        vars(sharded_loading)["return_freed_memory"] = lambda: None
    if settings == "whole_loading":
        teaching.load_sharded = lambda source, dtype, _peers: (whole(source, dtype), "asked for")


def _batch(rank: int, tokens: int) -> Any:
    from trainer.batch import Sample, collate

    ids = torch.randint(2, CONFIG["vocab_size"], (tokens // ROW, ROW), generator=torch.Generator().manual_seed(rank))
    samples = [Sample(sample_id=i, input_ids=row, labels=row) for i, row in enumerate(ids.tolist())]
    return collate([(i,) for i in range(len(samples))], samples, 0)


def _with_ratios(runs: list[dict[str, Any]], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """To what I7 allows: the shard, and two layers or the embedding if that weighs more; activations are taken off."""
    whole = sizes["whole_mib"]
    alone = [run for run in runs if run["world"] == 1]
    activations = max(0.0, alone[0]["targets_mib"] - alone[0]["resident_mib"]) if alone else 0.0
    two_layers = max(2 * sizes["layer_mib"], sizes["embedding_mib"])
    for run in runs:
        allowed = whole / run["world"] + (two_layers if run["world"] > 1 else 0.0)
        run["allowed_mib"], run["activations_mib"] = allowed, activations
        run["load_ratio"] = run["load_mib"] / allowed
        run["targets_ratio"] = (run["targets_mib"] - activations) / allowed
        run["head_ratio"] = run["head_mib"] / allowed
    return [{key: round(value, 3) if isinstance(value, float) else value for key, value in run.items()} for run in runs]


def _status(key: str) -> float:
    """MiB, from /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1)


if __name__ == "__main__":
    main()
