"""What must not be shown is taken out of a text: one place for all that goes to MLflow, to the ledger and to people.

Storage and tracking servers are named by URIs, and URIs carry secrets: `user:password@host`, a signature (`?sig=…`), a
key (`?secret_key=…`). The run folder's `job.json` and `record.json` keep them, because the run could not go on without.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HIDDEN = "***"
_WORDS = r"(?:sig|signature|token|secret|password|passwd|pwd|credential|key)"
_RULES = (
    # scheme://user:password@host, or scheme:/ where a URI was taken for a path
    (re.compile(r"(\b[a-zA-Z][\w+.-]*:/{1,2}[^/\s:@'\"?]*):[^/\s'\"?]+@"), rf"\1:{HIDDEN}@"),
    # https://token@host; elsewhere what stands before the @ is a name, as in abfs://container@account
    (re.compile(r"(\bhttps?://)(?!\*\*\*)[^/\s:@'\"?]+@"), rf"\1{HIDDEN}@"),
    # ?sig=… &X-Amz-Security-Token=… &secret_key=…
    (re.compile(rf"([?&;](?:amp;)?[\w.%-]*{_WORDS}=)[^&#\s'\"<>;]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # AWS_SECRET_ACCESS_KEY=… in a command
    (re.compile(rf"(\b[A-Z0-9_]*{_WORDS.upper()}=)[^\s'\"]+"), rf"\1{HIDDEN}"),
)


def redact(text: str) -> str:
    """`text` with the secrets that URIs and assignments in it carry replaced by `***`."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


@contextmanager
def redacted(path: Path) -> Iterator[Path]:
    """The file or folder at `path`, or a copy of it, of the same name, where something in it must not be shown."""
    files = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file()]
    hidden = {file.relative_to(path): text for file in files if (text := _hidden(file)) is not None}
    if not hidden:
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / path.name
        if path.is_dir():
            shutil.copytree(path, copy)
        for name, text in hidden.items():
            (copy / name).write_text(text)
        yield copy


def _hidden(file: Path) -> str | None:
    """The file's text without what is hidden; None: it is no text, or hides nothing."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        return None
    shown = redact(text)
    return shown if shown != text else None
