"""What all tests share. Annotated shapes and types are checked in every call of a unit test."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from threadpoolctl import threadpool_limits

# Tiny models gain nothing from threads, and lose much where others want the cores too.
torch.set_num_threads(1)
threadpool_limits(1)

# Before any test imports the package: only modules imported under the hook are checked.
jaxtyping.install_import_hook("hooked_asr", "beartype.beartype")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recordings and trained weights; tests that ask for it skip without it."""
    folder = Path(os.environ.get("HOOKED_ASR_SHARED") or REPOSITORY.parent / "shared")
    if not folder.is_dir():
        pytest.skip("no shared recordings and checkpoints (HOOKED_ASR_SHARED names their folder)")
    return folder


@pytest.fixture(scope="session")
def refit(shared: Path) -> Path:
    """A trained whisper-tiny.en, its token embedding fitted anew."""
    folder = shared / "checkpoints" / "whisper-tiny.en-refit"
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} among the shared checkpoints")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _checked(request):
    """Shapes and types are checked where parts are tested.

    Elsewhere whole models are compared with others', trained and run at length: without the checks,
    which take most of a decoding of many steps.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("parity", "checkpoint", "nano", "tutorials"):
            patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """The same for one test."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; gives what it wrote, and its exit code."""

    from hooked_asr import cli  # only now: modules are to be imported under the hook

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["hooked-asr", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, lines=out.splitlines())

    return run
