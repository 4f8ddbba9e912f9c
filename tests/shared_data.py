"""Where the data that is not committed lies, for the tests that need it."""
import pathlib
import unittest

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'


def shared_data(name: str = '') -> pathlib.Path:
  """Path of `name` under ../shared/data; skips the calling test, with the reason, where it is absent."""
  path = _FOLDER / name
  if not path.exists():
    raise unittest.SkipTest(f'needs {path}, which is not in this checkout')
  return path
