"""The command line: options, messages and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from frugalore._build import with_cuda
from frugalore.cli.commands import frugalore
from frugalore.pretrain import REGISTRY, ConfigError, PretrainConfig, metrics
from frugalore.pretrain.config import from_dict, load
from frugalore.pretrain.model import build_model, llama_config
from pretrain_helpers import tiny


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 60)
    return path


@pytest.fixture
def config_file(tmp_path, text):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny(text).to_dict()))
    return path


def call(*arguments):
    return CliRunner().invoke(frugalore, [str(a) for a in arguments])


def refused(*arguments):
    result = call(*arguments)
    assert result.exit_code != 0
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.mark.parametrize("optimizer", sorted(REGISTRY))
def test_a_run_from_a_file_shows_its_table_and_leaves_its_files(tmp_path, config_file, optimizer):
    out = tmp_path / "run"
    result = call("pretrain", "--config", config_file, "--out", out, "--optimizer", optimizer)
    assert result.exit_code == 0, result.output
    for shown in (f"{optimizer}, measured", "AdamW fp32", "GaLore fp32", "validation loss", "tokens/s"):
        assert shown in result.output
    names = {path.name for path in out.iterdir()}
    assert names == {"checkpoint-00000006", "manifest.json", "metrics.jsonl", "summary.json", "loss.png"}


def test_options_override_the_file(tmp_path, config_file):
    out = tmp_path / "run"
    options = ("--steps", 3, "--lr", 0.5, "--target-modules", "q_proj, v_proj", "--dtype", "bfloat16")
    assert call("pretrain", "--config", config_file, "--out", out, *options).exit_code == 0
    saved = json.loads((out / "summary.json").read_text())["config"]
    assert (saved["steps"], saved["lr"], saved["dtype"]) == (3, 0.5, "bfloat16")
    assert saved["target_modules"] == ["q_proj", "v_proj"]


def test_stop_and_resume_without_naming_the_config_again(tmp_path, config_file):
    out = tmp_path / "run"
    stopped = call("pretrain", "--config", config_file, "--out", out, "--stop-after", 2)
    assert "stopped at step 2 of 6; --resume continues" in stopped.output
    resumed = call("pretrain", "--out", out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "continuing after step 2" in resumed.output
    assert [row["step"] for row in metrics.read(out)] == [1, 2, 3, 4, 5, 6]


def test_resume_with_another_config_names_the_keys(tmp_path, config_file):
    out = tmp_path / "run"
    call("pretrain", "--config", config_file, "--out", out, "--stop-after", 2)
    output = refused("pretrain", "--out", out, "--resume", "--rank", 3, "--seed", 9)
    assert "rank: 8 -> 3" in output
    assert "seed: 0 -> 9" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rank", 0), "rank: an integer of at least 1 expected, got 0"),
        (("--lr", "nan"), "lr: a finite number"),
        (("--optimizer", "adamm"), "adamw"),
        (("--data", "nowhere"), "data: no such file or folder: nowhere"),
        (("--config", "nowhere"), "config: neither a file nor a preset (demo): nowhere"),
        (("--config", __file__), f"Error: config: a .json or .toml file expected, got {__file__}"),
        (("--target-modules", "zzz"), "'zzz'"),
        (("--resume",), "holds none"),
        (("--resume", "--overwrite"), "contradict"),
        (("--stop-after", 0), "--stop-after: at least 1"),
    ],
)
def test_bad_input_is_one_clear_message_and_writes_nothing(tmp_path, config_file, options, message):
    out = tmp_path / "run"
    output = refused("pretrain", "--config", config_file, "--out", out, *options)
    assert message in output
    assert "Traceback" not in output
    assert not out.exists()


def test_an_unknown_key_in_the_file_is_named(tmp_path, config_file):
    config_file.write_text(json.dumps({"stepz": 3}))
    output = refused("pretrain", "--config", config_file, "--out", tmp_path / "run")
    assert "unknown key: stepz (did you mean steps?)" in output


@pytest.mark.skipif(with_cuda(), reason="this build has CUDA kernels")
def test_qgalore_on_cuda_needs_a_build_with_cuda():
    config = PretrainConfig(device="cuda")
    with pytest.raises(ConfigError, match="this build of frugalore has no CUDA kernels"):
        REGISTRY["qgalore"].build(build_model(config), config)


def test_the_readmes_configuration_is_one(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    file = tmp_path / "mine.toml"
    file.write_text(readme.partition("```toml\n")[2].partition("```")[0])
    config = from_dict(load(str(file)))
    assert config.steps == 1000
    assert llama_config(config).num_hidden_layers == 4


def test_help_lists_every_optimizer():
    output = call("pretrain", "--help").output
    for name in REGISTRY:
        assert f"{name}: " in " ".join(output.split())


def test_the_doctor_finds_this_installation_well():
    result = call("doctor")
    assert result.exit_code == 0, result.output
    for shown in ("version", "compiler", "cpu_isa", "torch"):
        assert shown in result.output
    assert "int4_quantize on cpu    ok" in result.output


@pytest.fixture
def without_click(tmp_path):
    """Runs ``python -m frugalore`` where a click that cannot be imported stands before the real one."""
    (tmp_path / "click.py").write_text("raise ModuleNotFoundError('click', name='click')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}

    def run(*arguments):
        command = [sys.executable, "-m", "frugalore", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


def test_a_missing_package_is_one_line_that_says_what_to_install(without_click):
    result = without_click("pretrain")
    assert result.returncode == 1
    assert result.stderr == "frugalore: click is not installed; pip install 'frugalore[train]' installs it\n"


def test_the_doctor_runs_without_the_packages_of_the_command_line(without_click):
    result = without_click("doctor")
    assert result.returncode == 0, result.stderr
    assert "int8_quantize on cpu    ok" in result.stdout


def test_terminating_a_run_saves_it_and_resume_continues(tmp_path, config_file):
    out = tmp_path / "run"
    options = ["--steps", "100000", "--save-every", "100000"]
    code = "from frugalore.cli.main import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "pretrain",
        "--config",
        str(config_file),
        "--out",
        str(out),
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(metrics.read(out)) < 3:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    step = metrics.read(out)[-1]["step"]
    assert f"stopped at step {step} of 100000" in output
    resumed = call("pretrain", "--out", out, "--resume", "--stop-after", step + 1)
    assert resumed.exit_code == 0, resumed.output
    assert metrics.read(out)[-1]["step"] == step + 1
