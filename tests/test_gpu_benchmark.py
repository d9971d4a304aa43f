"""`benchmarks/gpu.py` in small sizes on a CPU: all of its blocks, and one that fails."""

import json
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.slow


def _run(train: Any, out: Path, *more: str) -> tuple[int, str, dict[str, Any]]:
    command = [SCRIPT, "--device", "cpu", "--tiny", "--out", out, *more]
    ((code, said),) = train.python(command, output=out / "said.txt")
    return code, said, json.loads((out / "gpu.json").read_text())


def test_every_block_runs_on_a_cpu(train: Any, tmp_path: Path) -> None:
    code, said, results = _run(train, tmp_path)
    assert code == 0, said
    found = {name: result["findings"] for name, result in results.items()}
    assert [result["ended"] for result in results.values()] == [0] * 9
    for block in ("gradients", "ranks"):
        for finding in found[block].values():
            assert finding["weights_without_gradient"] == 0
            assert finding["finite"]
            assert finding["gradient_3D_off_by"] < 0.2
    assert found["commands"]["SIGTERM"]["in_order"]
    assert len(found["commands"]["--c"]["foreground"]) > 0
    assert found["commands"]["prediction"]["cases"] == 1
    assert found["resenc2"]["SegFormer-B2, fp32, batch = replace"]["times_nnunets"] > 0
    assert found["resenc4"]["SegFormer-B2, fp32, batch = add"]["times_nnunets"] > 0
    assert len(found["estimates"]) == 16
    assert all(value > 0 for finding in found["estimates"].values() for value in finding.values())


def test_a_block_that_fails_leaves_the_others_and_the_exit_code_says_so(train: Any, tmp_path: Path) -> None:
    (tmp_path / "segformer").write_text("a file where a folder would be")
    code, said, results = _run(train, tmp_path, "--blocks", "gradients,environment")
    assert code == 1
    assert "gradients: whole block FAILED: error" in said
    assert "blocks with something wrong: gradients" in said
    assert results["environment"]["findings"]["versions"]["torch"]
