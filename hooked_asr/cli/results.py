"""`hooked-asr results`: what tutorials found, run beside run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hooked_asr.cli.lens_options import say
from hooked_asr.cli.options import OptionError
from hooked_asr.cli.tables import new_table, show
from hooked_asr.files import written_aside
from hooked_asr.reproduce.results import Results, differences
from hooked_asr.reproduce.tables import by_tutorial, markdown, read_results, side_by_side


def results(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files results.json, or folders of such files.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the tables to this Markdown file instead.")
    ] = None,
) -> None:
    """Show what runs of tutorials found, side by side, and what they do not share."""
    found = read_results(paths)
    if out is not None:
        if out.suffix != ".md":
            raise OptionError(f"--out takes a Markdown file, .md; got {str(out)!r}")
        with written_aside(out) as aside:
            aside.write_text(markdown(found), encoding="utf-8")
        say(f"wrote {out}")
        return
    for number, runs in by_tutorial(found).items():
        _show(number, runs)


def _show(number: str, runs: dict[str, Results]) -> None:
    numbers = side_by_side(runs)
    title = f"{number} {next(iter(runs.values())).title}"
    table = new_table(title, *map(str, numbers.columns))
    for name, row in zip(numbers.index, numbers.to_numpy().tolist(), strict=True):
        table.add_row(*(escape(str(one)) for one in (name, *row)))
    for name, values in differences(runs).items():
        table.add_row(f"({name})", "", *map(escape, values), style="dim")
    show(table)
