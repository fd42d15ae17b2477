"""A local filesystem that fails at a chosen operation: to tear writes at every point where they can tear."""

from __future__ import annotations

import errno
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs


class InjectedFailure(OSError):
    """What the filesystem raises at the chosen operation."""


class FailingHandler(pafs.FileSystemHandler):
    """Counts operations that change something, and fails at number `fail_at` (from 0).

    With `dead=True` everything after that fails as well, the cleaning up too: as if the process had been killed.
    """

    def __init__(self, *, fail_at: int | None = None, dead: bool = False, error: int = errno.EIO) -> None:
        self.done: list[str] = []
        self._fail_at, self._dead, self._error = fail_at, dead, error
        self._local = pafs.LocalFileSystem()

    def change(self, what: str) -> None:
        """Count one operation, or fail."""
        at = len(self.done)
        if self._fail_at is not None and (at == self._fail_at or (self._dead and at > self._fail_at)):
            self.done.append(f"{what} (failed)")
            raise InjectedFailure(self._error, f"injected at operation {at}: {what}")
        self.done.append(what)

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return self._local.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._local.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.change("create_dir")
        self._local.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.change("delete_dir")
        self._local.delete_dir(path)

    def delete_file(self, path: str) -> None:
        self.change("delete_file")
        self._local.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self.change("move")
        self._local.move(src, dest)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self._local.open_input_stream(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return self._local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        self.change("open_output_stream")
        return pa.PythonFile(_Writer(self._local.open_output_stream(path), self.change), mode="w")

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        raise NotImplementedError("never asked for")

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("never asked for")

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError("never asked for")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError("never asked for")


class _Writer:
    """Writes half of what it is given before it fails: the file is torn, not just missing."""

    def __init__(self, stream: pa.NativeFile, change: Any) -> None:
        self._stream, self._change = stream, change

    @property
    def closed(self) -> bool:
        return self._stream.closed

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            self._change("write")
        except InjectedFailure:
            self._stream.write(view[: len(view) // 2])
            raise
        return self._stream.write(view)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if not self._stream.closed:
            self._stream.close()
            self._change("close")
