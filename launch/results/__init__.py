"""Measured stores that come with jaxfix, a folder each: for reports, recommendations and estimates out of the box."""
import contextlib
import os
import pathlib
from typing import Any

from jaxfix.errors import DataNotFoundError
from jaxfix.study import store

_FOLDER = pathlib.Path(__file__).parent


def stores() -> tuple[pathlib.Path, ...]:
  """Folders of the stores that come with jaxfix."""
  return tuple(sorted(f.parent for f in _FOLDER.glob(f'*/{store.FILE}')))


def known_rows(out: str | os.PathLike) -> list[dict[str, Any]]:
  """Rows of the store in `out` if there is one, and of those that come with jaxfix."""
  rows = []
  for folder in (pathlib.Path(out), *stores()):
    with contextlib.suppress(DataNotFoundError):
      rows += store.read(folder).rows
  return rows
