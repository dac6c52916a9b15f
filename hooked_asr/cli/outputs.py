"""Where transcripts go: to the terminal, or into a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

from hooked_asr.cli.formats import Format, Heard, json_text, written
from hooked_asr.cli.options import OptionError
from hooked_asr.files import written_aside

# Takes a recording and what was heard in it, as soon as it is there.
Put = Callable[[Path, Heard], None]


def output(
    audio: Sequence[Path], chosen: Format, times: bool, out: Path | None
) -> AbstractContextManager[Put]:
    """A context that gives a function to put each transcript where it belongs.

    Raises `OptionError` where two recordings would be written to one file, or the terminal cannot
    tell their subtitles apart.
    """
    if out is not None:
        files = _files(audio, out, chosen)
        out.mkdir(parents=True, exist_ok=True)  # better now than after the first recording
        return _to_folder(files, chosen, times)
    several = len(audio) > 1
    if chosen.has_times and several:
        raise OptionError(
            f"the {chosen.value} of {len(audio)} recordings make no one file: give --out FOLDER, "
            "or one recording"
        )
    if chosen is Format.text:
        return _as_lines(times, named=several)
    return _as_json_list() if several else _as_is(chosen)


def _files(audio: Sequence[Path], out: Path, chosen: Format) -> dict[Path, Path]:
    """The file of each recording, named by it."""
    files: dict[Path, Path] = {}
    for path in audio:
        file = out / (path.stem + chosen.suffix)
        if file in files.values():
            raise OptionError(
                f"two recordings would be written to {file}: name them apart, or write them to "
                "folders of their own"
            )
        files[path] = file
    return files


@contextmanager
def _to_folder(files: dict[Path, Path], chosen: Format, times: bool) -> Iterator[Put]:
    def put(audio: Path, heard: Heard) -> None:
        with written_aside(files[audio]) as aside:
            aside.write_text(written(audio, heard, chosen, times), encoding="utf-8")
        _show(f"wrote {files[audio]}")

    yield put


@contextmanager
def _as_lines(times: bool, named: bool) -> Iterator[Put]:
    def put(audio: Path, heard: Heard) -> None:
        text = written(audio, heard, Format.text, times).rstrip("\n")
        between = "\n" if times else " "
        _show(f"{audio.name}:{between}{text}" if named else text)

    yield put


@contextmanager
def _as_is(chosen: Format) -> Iterator[Put]:
    yield lambda audio, heard: _write(written(audio, heard, chosen, times=True))


@contextmanager
def _as_json_list() -> Iterator[Put]:
    """A list that is whole whenever the block ends, also where some recordings gave nothing."""
    before = "[\n"

    def put(audio: Path, heard: Heard) -> None:
        nonlocal before
        _write(f"{before}{json_text(audio, heard)}\n")
        before = ","

    try:
        yield put
    finally:
        _write("]\n" if before == "," else "[]\n")


def _show(line: str) -> None:
    # A `Text` of its own: a model may say what rich would take for markup or an emoji.
    Console().print(Text(line), soft_wrap=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
