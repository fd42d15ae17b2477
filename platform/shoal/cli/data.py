"""`shoal data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.cli.data_inspect import inspect
from shoal.cli.data_order import order
from shoal.cli.data_verify import verify

if TYPE_CHECKING:
    from shoal.data.prepare import Prepared, Progress


@click.group()
def data() -> None:
    """Prepare your own text for training; look at data, check it, and ask which samples a step uses."""


for command in (inspect, verify, order):
    data.add_command(command)


@data.command(short_help="Text to packed blocks of tokens, as Parquet.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New folder to write.")
@click.option(
    "--block",
    required=True,
    type=click.IntRange(2),
    metavar="N",
    help="Tokens in a block: the model's context, plus one for the token after it.",
)
@click.option(
    "--tokenizer", metavar="FILE", help="A tokenizer.json of the library `tokenizers`. Default: bytes, no tokenizer."
)
@click.option("--end-token", metavar="TOKEN", help="Ends every document. Default: the tokenizer's own.")
@click.option(
    "--text-column", default="text", show_default=True, metavar="NAME", help="Field of JSON lines, column of Parquet."
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.05,
    show_default=True,
    metavar="FRACTION",
    help="Documents held out for validation, chosen by a hash of the text.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Bad rows: refuse the input and say where they are, or leave them out.",
)
@click.option(
    "--borders",
    type=click.Choice(["cross", "keep"]),
    default="cross",
    show_default=True,
    help="Whether tokens see the documents before theirs in the block, or only their own.",
)
@click.option(
    "--whole", is_flag=True, help="Do not cut documents that fit into a block; pad blocks. With --borders keep."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def prepare(
    *,
    inputs: tuple[str, ...],
    output: Path,
    block: int,
    tokenizer: str | None,
    end_token: str | None,
    text_column: str,
    held_out: float,
    on_bad: str,
    borders: str,
    whole: bool,
    quiet: bool,
) -> None:
    """Turn text into packed blocks of tokens: Parquet that `data.train` takes.

    INPUT: text files, JSON lines, Parquet with a text column, folders of them, globs, s3:// and gs:// URIs. The result
    depends on the input and the options alone, and appears whole or not at all.

    \b
    shoal data prepare books/ --output corpus --block 129
    shoal data prepare 'logs/*.jsonl' --output corpus --block 513 --tokenizer tokenizer.json --text-column body
    shoal data prepare notes.jsonl --output corpus --block 513 --borders keep --whole
    shoal train jobs/gpt.py --set data.train=corpus --set data.block=none
    """
    from shoal.data.prepare import PrepareOptions
    from shoal.data.prepare import prepare as make

    options = PrepareOptions(
        block=block,
        tokenizer=tokenizer,
        end_token=end_token,
        text_column=text_column,
        held_out=held_out,
        on_bad="skip" if on_bad == "skip" else "stop",
        borders="keep" if borders == "keep" else "cross",
        whole=whole,
    )
    shown = None if quiet else _Shown()
    done = make(inputs, output, options, progress=shown)
    if shown is not None:
        shown.close()
    for line in _summary(done, output):
        click.echo(line)


class _Shown:
    """Progress of the preparation."""

    def __init__(self) -> None:
        from shoal.cli.progress import ProgressLine

        self._line = ProgressLine()

    def __call__(self, progress: Progress) -> None:
        from shoal.cli import text

        part = progress.bytes / progress.total_bytes if progress.total_bytes else 1.0
        bad = f", {progress.bad} bad rows" if progress.bad else ""
        line = f"{part:4.0%} of {text.size(progress.total_bytes)}, {text.amount(progress.samples)} blocks{bad}"
        self._line.say(line, last=progress.units >= progress.total_units)

    def close(self) -> None:
        """Leave the line."""
        self._line.keep()


def _summary(done: Prepared, output: Path) -> list[str]:
    from shoal.cli import text

    lines = [
        f"{name:<11} {split.samples} blocks of {done.block} from {split.documents} documents "
        f"({text.size(split.text_bytes)}); {split.dropped_tokens} tokens at the end are less than a block"
        for name, split in done.splits.items()
    ]
    lines += [
        f"packing     {name}: {split.packing_rate:.2%} of the places hold tokens, {split.truncated_documents} of "
        f"{split.documents} documents are cut"
        for name, split in done.splits.items()
    ]
    if done.bad:
        lines.append(f"left out    {done.bad} bad rows, the first: {'; '.join(done.bad_examples[:3])}")
    lines.append(
        f"vocabulary  {done.vocabulary} ({done.tokenizer}), {done.bytes_per_token:.4g} bytes per token; "
        f"digest {done.digest[:12]}"
    )
    keep = " --set task.borders=keep" if done.borders == "keep" else ""
    lines.append(
        f"use it      --set data.train={output} --set data.block=none --set task.context={done.block - 1}{keep}"
    )
    return lines
