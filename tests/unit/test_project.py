"""The project's own rules: layering, style, types, and a README that says what is so."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_qwen2_checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    tool, *arguments = command
    executable = Path(sys.executable).with_name(tool)
    return subprocess.run([executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [
        ("lint-imports",),
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", "hooked_asr"),
    ],
    ids=lambda command: " ".join(command),
)
def test_tool_finds_nothing(command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"```bash\n(.+?)\n```", README, flags=re.DOTALL)
    (tests,) = [command for command in commands if command.endswith("pytest")]
    assert tests in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_file_that_the_readme_links_to_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL):
        exec(block, names)
    assert (tmp_path / "heads.html").exists()
    assert "decoder." in capsys.readouterr().out
    names["audio"] = np.random.default_rng(0).uniform(-1, 1, 12_000)  # a window there is one second
    assert isinstance(names["ask"](save_checkpoint(tmp_path / "qwen2")), str)
