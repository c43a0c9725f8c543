"""Putting a snapshot in the place of the backend, so that a crash at any moment leaves the one or the other.

    snapshot.partial/   a snapshot that is being received                        nothing depends on it
    snapshot/           one that is whole and durable                            the log may be given its mark
    backend/            the store's own

The order is the rule: `complete` (whole, synced, renamed, the folder synced), then the log's mark (term, index)
durable, then `swap`.  At the next start `settle` looks at the mark that the log recovered.  If `snapshot` is the one
that the mark names, the log has been replaced and only the snapshot explains it (D15): the swap is finished, whatever
`backend` holds.  Where `backend` is missing a swap was begun, so the mark was durable, whatever is left of the log: it
is finished, too.  Otherwise the log still has all that `backend` needs, and the snapshot goes.  A `backend` that took
a snapshot's place is never beside one with the same mark, because a member takes no snapshot that is not above what it
has committed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import lmdb

from raftkv_node.adr.files import Files

from .backend import APPLIED, SNAPSHOT_KEY
from .errors import StoreCorrupt

BACKEND = "backend"
PARTIAL = "snapshot.partial"
WHOLE = "snapshot"
REPLACED = "backend.old"


def complete(files: Files, data_dir: Path) -> Path:
    """Gives a finished sink's folder its name, durably; returns it."""
    shutil.rmtree(data_dir / WHOLE, ignore_errors=True)
    files.sync_folder(data_dir / PARTIAL)
    files.rename(data_dir / PARTIAL, data_dir / WHOLE)
    files.sync_folder(data_dir)
    return data_dir / WHOLE


def swap(files: Files, data_dir: Path) -> None:
    """Puts `snapshot` in the place of `backend`: only when the log's mark is durable.  May be repeated."""
    shutil.rmtree(data_dir / REPLACED, ignore_errors=True)
    if (data_dir / BACKEND).is_dir():
        files.rename(data_dir / BACKEND, data_dir / REPLACED)
    files.rename(data_dir / WHOLE, data_dir / BACKEND)
    files.sync_folder(data_dir)
    shutil.rmtree(data_dir / REPLACED, ignore_errors=True)


def finish_begun(files: Files, data_dir: Path) -> bool:
    """Finishes a swap that a crash has cut off between its two renames; whether there was one.

    Only then is there a whole snapshot and no `backend`: who receives one has a backend.
    """
    if (data_dir / BACKEND).is_dir() or not (data_dir / WHOLE).is_dir():
        return False
    swap(files, data_dir)
    return True


def discard(data_dir: Path) -> None:
    """Removes a whole snapshot that the log has no mark of."""
    shutil.rmtree(data_dir / WHOLE)


def settle(files: Files, data_dir: Path, mark: tuple[int, int] | None) -> bool:
    """At a start, before the store is opened: finishes a swap, or removes what came to nothing.  Whether it did finish.

    `mark`: (index, term) of the last snapshot that the log was replaced by, as far as it still knows of one.
    """
    shutil.rmtree(data_dir / PARTIAL, ignore_errors=True)
    finished = finish_begun(files, data_dir)
    if (data_dir / WHOLE).is_dir():
        if mark is not None and snapshot_of(data_dir / WHOLE) == mark:
            swap(files, data_dir)
            finished = True
        else:
            shutil.rmtree(data_dir / WHOLE)
    if (data_dir / BACKEND).is_dir():
        shutil.rmtree(data_dir / REPLACED, ignore_errors=True)
    return finished


def snapshot_of(folder: Path) -> tuple[int, int] | None:
    """(index, term) of the snapshot that a backend was made of; `None` when it was not made of one."""
    try:
        env = lmdb.open(str(folder), max_dbs=8, create=False, mode=0o600)
    except lmdb.Error as error:
        raise StoreCorrupt(f"the snapshot in {folder} cannot be opened: {error}") from error
    try:
        with env.begin() as txn:
            found = txn.get(SNAPSHOT_KEY, db=env.open_db(b"meta", txn=txn, create=False))
    except lmdb.Error as error:
        raise StoreCorrupt(f"the snapshot in {folder} cannot be read: {error}") from error
    finally:
        env.close()
    return None if found is None else APPLIED.unpack(found)
