"""Many command lines of one launcher in one process, since starting JAX takes longer than most of what is tested."""
import json
import os
import pathlib
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]

_DRIVER = """
import contextlib, importlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
name, positional, commands = json.load(sys.stdin)
module = importlib.import_module('launch.' + name)
from launch import cli
done = []
for command in commands:
  out, err, code = io.StringIO(), io.StringIO(), 0
  sys.argv = [name, *command]
  saved = flagsaver.save_flag_values()
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      cli.run(module.main, arguments=positional)
  except SystemExit as e:
    code = e.code
  except BaseException as e:
    code = f'{type(e).__name__}: {e}'
  flagsaver.restore_flag_values(saved)
  done.append((code or 0, out.getvalue(), err.getvalue()))
json.dump(done, sys.__stdout__)
"""


def environment():
  """That of a launcher under test."""
  return {**os.environ, 'JAX_PLATFORMS': 'cpu'}


def launch(name, commands, positional=()):
  """(exit code, stdout, stderr) of every command line, all run by one process."""
  done = subprocess.run([sys.executable, '-c', _DRIVER], cwd=_ROOT, text=True, capture_output=True, timeout=300,
                        env=environment(), input=json.dumps((name, positional, commands)), check=False)
  assert done.returncode == 0, done.stderr
  return [tuple(result) for result in json.loads(done.stdout)]
