"""What the plug-in does on a GPU: whether it is right, how fast, and in how much memory.

    python benchmarks/gpu.py --out results [--blocks gradients,plain2] [--minutes 9]
    python benchmarks/gpu.py --device cpu --tiny --out look

A line for each finding, and all of them in `gpu.json` in the folder. Each block runs in a process of its own: if it
fails, hangs or runs out of memory, its findings so far stay and the next block follows. Blocks that are in `gpu.json`
already stay there, so that several calls may share the blocks. It needs no network: the SegFormer has random weights.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # to ask for cards must not start CUDA before a fork

import torch
import typer
from gpu_blocks.commands import commands
from gpu_blocks.correct import environment, gradients, ranks
from gpu_blocks.estimates import estimates
from gpu_blocks.findings import FAILED, Findings
from gpu_blocks.site import Site
from gpu_blocks.speed import steps

from nnunet_mn.bridge.files import write_whole
from nnunet_mn.device import compile_anew

Block = Callable[[Site, Findings], None]
BLOCKS: dict[str, Block] = {
    "environment": environment,
    "gradients": gradients,
    "commands": commands,
    "ranks": ranks,
    "plain2": partial(steps, kind="plain", batch=2),
    "plain4": partial(steps, kind="plain", batch=4),
    "resenc2": partial(steps, kind="resenc", batch=2),
    "resenc4": partial(steps, kind="resenc", batch=4),
    "estimates": estimates,
}
LEAST_SECONDS = 20.0  # a block is not begun with less


def run_block(site: Site, name: str, seconds: float, start_method: str) -> dict[str, Any]:
    """Run a block in another process; its findings, its exit code and its seconds."""
    file = site.work / f"{name}.json"
    file.unlink(missing_ok=True)
    start = time.monotonic()
    process = multiprocessing.get_context(start_method).Process(target=_in_process, args=(site, name, file))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    found = json.loads(file.read_text()) if file.exists() else {}
    ended = "out of time" if late else process.exitcode
    return {"findings": found, "ended": ended, "seconds": round(time.monotonic() - start, 1)}


def _in_process(site: Site, name: str, file: Path) -> None:
    findings = Findings(name, file)
    compile_anew()
    with findings.attempt("whole block"):
        BLOCKS[name](site, findings)


def is_good(result: dict[str, Any]) -> bool:
    """Whether a block ended by itself, and no part of it failed."""
    return result["ended"] == 0 and not any(FAILED in key for key in result["findings"])


def main(
    out: Annotated[Path, typer.Option(help="folder for gpu.json and all work")],
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="sizes for a look at the blocks on a CPU")] = False,
    blocks: Annotated[str, typer.Option(help="names with commas between them")] = ",".join(BLOCKS),
    minutes: Annotated[float, typer.Option(help="for all blocks; one that would begin too late is left out")] = 60.0,
    start_method: Annotated[str, typer.Option(help="fork, or spawn where CUDA does not start in a fork")] = "fork",
) -> None:
    """Run blocks one after the other. The exit code is 1 if anything failed."""
    if unknown := set(blocks.split(",")) - set(BLOCKS):
        raise typer.BadParameter(f"no block is named {', '.join(sorted(unknown))}; there are {', '.join(BLOCKS)}")
    end = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    site = Site(device=torch.device(device), tiny=tiny, work=out.absolute())
    file = out / "gpu.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in blocks.split(","):
        left = end - time.monotonic()
        if left < LEAST_SECONDS:
            print(f"{name}: not begun, {left:.0f} s are left", flush=True)
            continue
        results[name] = run_block(site, name, left, start_method)
        write_whole(file, json.dumps(results, indent=1))
        print(f"{name}: ended {results[name]['ended']} after {results[name]['seconds']} s", flush=True)
    bad = [name for name, result in results.items() if not is_good(result)]
    print(f"blocks with something wrong: {', '.join(bad) or 'none'}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    typer.run(main)
