"""A folder on any filesystem that pyarrow knows, with writes that are seen whole or not at all.

Local paths, `file://`, `s3://`, `gs://`, `abfs://`, `hdfs://`. Where files can be renamed, a file is written under a
hidden name, flushed to the disk and renamed; an object store shows an object only when its upload has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs as pafs

from shoal.errors import CheckpointError

_OBJECT_STORES = {"s3", "gcs", "abfs"}


class Storage:
    """One folder: its files and folders by name. Every failure is a CheckpointError with path, reason and remedy.

    `uri` is a path or a URI; with `filesystem` it is a path inside that pyarrow filesystem. Creating the value touches
    nothing but, for some remote filesystems, their region or credentials service.
    """

    def __init__(self, uri: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None) -> None:
        self.uri = os.fspath(uri).rstrip("/") or "/"
        self.filesystem, self.root = _resolve(self.uri, filesystem)
        if filesystem is None and "://" not in self.uri:
            self.uri = self.root  # absolute: other processes have other working folders

    @property
    def is_object_store(self) -> bool:
        """No folders, no renaming; an object appears when its upload ends."""
        return self.filesystem.type_name in _OBJECT_STORES

    @property
    def is_local(self) -> bool:
        return self._local(self.root) is not None

    def path(self, name: str) -> str:
        """Path of `name` inside the filesystem."""
        return f"{self.root.rstrip('/')}/{name}"

    def uri_of(self, name: str) -> str:
        """URI of `name`; the options after a `?` stay where they are."""
        head, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{head.rstrip('/')}/{name}{mark}{options}"

    def child(self, name: str) -> Storage:
        """The folder `name` in this one."""
        made = object.__new__(Storage)
        made.uri, made.root, made.filesystem = self.uri_of(name), self.path(name), self.filesystem
        return made

    def entries(self) -> list[pafs.FileInfo]:
        """Everything below this folder, at any depth; empty if there is no such folder."""
        with explained("list", self.uri):
            return self.filesystem.get_file_info(pafs.FileSelector(self.root, recursive=True, allow_not_found=True))

    def sizes(self, names: list[str]) -> list[int | None]:
        """Bytes of each file; None where there is no such file."""
        with explained("look at", self.uri):
            infos = self.filesystem.get_file_info([self.path(name) for name in names])
        return [info.size if info.type == pafs.FileType.File else None for info in infos]

    def read(self, name: str) -> bytes | None:
        """The whole file, or None if there is none."""
        with explained("read", self.uri_of(name)):
            try:
                with self.filesystem.open_input_stream(self.path(name)) as stream:
                    return stream.read()
            except FileNotFoundError:
                return None

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading at random."""
        with explained("open", self.uri_of(name)):
            return self.filesystem.open_input_file(self.path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream whose content becomes the file `name` when the block ends well, and nothing when it does not."""
        target = self.path(name)
        unseen = target if self.is_object_store else self.path(f".{name}.{secrets.token_hex(4)}.partial")
        with explained("write", self.uri_of(name)):
            try:
                if not self.is_object_store:
                    self.filesystem.create_dir(self.root, recursive=True)
                with self.filesystem.open_output_stream(unseen) as stream:
                    yield stream
                if not self.is_object_store:
                    self._flush(unseen)
                    self.filesystem.move(unseen, target)
                    self._flush(self.root)
                    self._flush(os.path.dirname(self.root))
            except BaseException:
                # Give the disk its space back. If even that fails, the hidden file is removed with the next leftovers.
                if not self.is_object_store:
                    with contextlib.suppress(OSError):
                        self.filesystem.delete_file(unseen)
                raise

    def delete_file(self, name: str) -> None:
        """Delete a file; nothing happens if there is none."""
        with explained("delete", self.uri_of(name)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder and all it holds; nothing happens if there is none."""
        with explained("delete", self.uri_of(name)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(name))

    def _flush(self, path: str) -> None:
        """Make a file's content, or a folder's list of names, survive a loss of power. Only local disks need it."""
        local = self._local(path)
        if local is None:
            return
        descriptor = os.open(local, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _local(self, path: str) -> str | None:
        filesystem = self.filesystem
        while isinstance(filesystem, pafs.SubTreeFileSystem):
            path, filesystem = f"{filesystem.base_path.rstrip('/')}/{path.lstrip('/')}", filesystem.base_fs
        return path if isinstance(filesystem, pafs.LocalFileSystem) else None


@contextlib.contextmanager
def explained(doing: str, where: str) -> Iterator[None]:
    """Turn what a filesystem raises inside the block into a CheckpointError: path, reason, remedy."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise CheckpointError(f"cannot {doing} {where}: {_reason(error)}") from error


def _resolve(uri: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    if filesystem is not None:
        return filesystem, uri
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        with explained("use", uri):
            return pafs.FileSystem.from_uri(uri)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; give a local path, or a URI such as file:///data/run, s3://bucket/run, gs://bucket/run, "
            f"abfs://container@account/run or hdfs://host/run"
        ) from error


_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space, keep fewer (checkpoints.keep_last) or set checkpoints.path",
    errno.EDQUOT: "the disk quota is used up; free some space, keep fewer (checkpoints.keep_last) or set "
    "checkpoints.path",
    errno.EFBIG: "the file is larger than this process may write; raise `ulimit -f` or set checkpoints.path",
    errno.EACCES: "permission denied; make the folder writable for this user, or set checkpoints.path",
    errno.EPERM: "permission denied; make the folder writable for this user, or set checkpoints.path",
    errno.EROFS: "the filesystem is read-only; set checkpoints.path to a writable place",
    errno.ENOENT: "there is no such file or folder; look at the path, and whether it was deleted meanwhile",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away, or set checkpoints.path",
}


def _reason(error: Exception) -> str:
    said = " ".join(str(error).split())
    remedy = _REMEDIES.get(getattr(error, "errno", None) or 0)
    if remedy is not None:
        return f"{remedy} ({said})"
    if any(word in said for word in ("ACCESS_DENIED", "Forbidden", "redential", "Unauthorized")):
        return f"the storage refuses access; look at the credentials of this process ({said})"
    return said
