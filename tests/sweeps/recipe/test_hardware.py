"""A stand-in for nvidia-smi for each profile, and for cards and machines that no profile names."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.records import BadInput
from sweeps.cli import app
from sweeps.recipe.hardware import machine_dtype, profile_of, this_machine, visible_gpus


def found(folder: Path, monkeypatch: pytest.MonkeyPatch, *cards: tuple[str, int | str], visible: str | None = None):
    rows = [f"{n}, GPU-{n}f3a, {name}, {mib}, 3" for n, (name, mib) in enumerate(cards)]
    script = folder / "nvidia-smi"
    script.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(rows) + "\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return profile_of(visible_gpus())


@pytest.mark.parametrize(
    ("name", "mib", "profile"),
    [
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090"),
        ("NVIDIA GeForce RTX 5090", 32607, "rtx5090"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80g"),
        ("NVIDIA A100 80GB PCIe", 81251, "a100-80g"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80g"),
        ("NVIDIA H200", 143771, "h200-141g"),
    ],
)
def test_each_profile_is_found_by_its_card(
    name: str, mib: int, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(tmp_path, monkeypatch, (name, mib)) == (profile, f"{name}: hardware profile {profile}")


@pytest.mark.parametrize(
    ("name", "mib", "profile"),
    [
        ("NVIDIA A100-PCIE-40GB", 40960, "rtx5090"),
        ("NVIDIA L40S", 46068, "rtx5090"),
        ("NVIDIA GeForce RTX 3090", 24576, "rtx4090"),
        ("NVIDIA B200", 183359, "h200-141g"),
        ("NVIDIA RTX PRO 6000 Blackwell", 97887, "a100-80g"),  # the slower of two of one size
    ],
)
def test_another_card_gets_the_nearest_smaller_profile_and_is_told(
    name: str, mib: int, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, words = found(tmp_path, monkeypatch, (name, mib))
    assert chosen == profile and "nearest smaller" in words and name in words


def test_a_card_that_shares_the_machines_memory_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 119 * 2**18}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    profile, words = found(tmp_path, monkeypatch, ("NVIDIA GB10", "[N/A]"))
    assert profile == "a100-80g" and words.startswith("NVIDIA GB10 (119 GiB) has no profile of its own")


@pytest.mark.parametrize("says", ["[GPU is lost]", "[Unknown Error]"])
def test_a_lost_card_is_none_with_the_machines_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    two = [("NVIDIA H200", 143771), ("NVIDIA H200", says)]
    with pytest.raises(BadInput, match=r"nvidia-smi says: 1, GPU-1f3a, NVIDIA H200, \[.*; mend the driver, or name"):
        found(tmp_path, monkeypatch, *two)
    assert found(tmp_path, monkeypatch, *two, visible="0")[0] == "h200-141g"
    with pytest.raises(BadInput, match="no GPU 1"):
        found(tmp_path, monkeypatch, *two, visible="1")


def test_the_smallest_of_the_visible_cards_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [("NVIDIA H200", 143771), ("NVIDIA GeForce RTX 4090", 24564)]
    assert found(tmp_path, monkeypatch, *two)[0] == "rtx4090"
    assert found(tmp_path, monkeypatch, *two, visible="0")[0] == "h200-141g"
    assert found(tmp_path, monkeypatch, *two, visible="GPU-1f")[0] == "rtx4090"
    assert found(tmp_path, monkeypatch, *two, visible="")[0] == "cpu"
    assert found(tmp_path, monkeypatch, *two, visible="-1")[0] == "cpu"
    with pytest.raises(BadInput, match="no GPU 7"):
        found(tmp_path, monkeypatch, *two, visible="7")


def test_a_small_card_and_a_broken_driver_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="Tesla T4 has 15 GiB, less than every"):
        found(tmp_path, monkeypatch, ("Tesla T4", 15360))
    lost = "Unable to determine the device handle for GPU0: 0000:01:00.0: Unknown Error"
    for script, says in (
        ("#!/bin/sh\nexit 9\n", "nvidia-smi failed"),
        ("no program", "nvidia-smi failed"),
        ("#!/bin/sh\necho No devices were found\n", "nvidia-smi says: No devices were found; mend the driver"),
        (f"#!/bin/sh\necho '{lost}'\n", "nvidia-smi says: Unable to determine"),
    ):
        (tmp_path / "nvidia-smi").write_text(script)
        with pytest.raises(BadInput, match=says):
            visible_gpus()


def test_a_part_of_a_card_is_evaluated_on_and_trained_on_by_a_profile_that_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="no GPU MIG-7f; name the --hardware"):
        found(tmp_path, monkeypatch, ("NVIDIA A100-SXM4-80GB", 81920), visible="MIG-7f")
    monkeypatch.setenv("EM_VLLM", "")
    result = CliRunner().invoke(app, ["evaluate", str(model), "--dry-run"])
    assert result.exit_code == 0 and "--model hf" in result.stdout, result.exception


def test_a_card_that_is_named_twice_is_not_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="0 is there twice"):
        found(tmp_path, monkeypatch, ("NVIDIA A100-SXM4-80GB", 81920), visible="0,0")


def test_the_type_is_a_cards_only_where_one_is_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.recipe.precision.cpu_dtype", lambda: "float32")
    found(tmp_path, monkeypatch, ("NVIDIA A100-SXM4-80GB", 81920))
    assert machine_dtype() == "bfloat16"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_dtype() == "float32"


def test_no_driver_is_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert profile_of(visible_gpus()) == ("cpu", "no GPU here: hardware profile cpu")
    assert this_machine("smollm2-135m")[0] == "cpu"
    with pytest.raises(BadInput, match=r"no GPU here, and qwen7b has 7\.6 billion parameters"):
        this_machine("qwen7b")


def test_train_composes_for_the_card_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(tmp_path, monkeypatch, ("NVIDIA H100 80GB HBM3", 81559))
    result = CliRunner().invoke(app, ["train", "dpo", "--model", "qwen7b", "--rank", "1", "--dry-run"])
    assert "tf32: true" in result.stdout and "CpuPlugin" not in result.stdout
    assert "H100 80GB HBM3: hardware profile h100-80g" in result.stderr
