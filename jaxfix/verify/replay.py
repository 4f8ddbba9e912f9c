"""Running a counterexample on the file itself, in onnxruntime: a runtime that is not ours."""
import importlib.util
import os
import pathlib

import numpy as np

from jaxfix.verify.spec import Spec


def violates_in_onnxruntime(path: str | os.PathLike, spec: Spec, x: np.ndarray) -> tuple[bool | None, str]:
  """Whether some property fails at `x` by the outputs that onnxruntime computes, in the file's own float32.

  Args:
    path: the network.
    spec: its properties.
    x: `[n]`, an input.
  Returns:
    The answer, or None and one line on why it cannot be had: the file is no ONNX file, or onnxruntime is not installed,
    does not load the file, or does not take the input.
  """
  if pathlib.Path(path).suffix.lower() != '.onnx':
    return None, f'onnxruntime does not read {path}'
  if importlib.util.find_spec('onnxruntime') is None:
    return None, 'onnxruntime is not installed'
  import onnxruntime
  try:
    session = onnxruntime.InferenceSession(os.fspath(path), providers=['CPUExecutionProvider'])
    entry = session.get_inputs()[0]
    shape = [d if isinstance(d, int) else 1 for d in entry.shape]
    y = session.run(None, {entry.name: x.astype(np.float32).reshape(shape)})[0]
  except Exception as e:   # it has many kinds of errors, without a common parent
    return None, f'onnxruntime does not run {path}: {(str(e) or type(e).__name__).splitlines()[0]}'
  y = np.asarray(y, np.float64).reshape(-1)
  return any(bool(p.inputs.contains(x)) and not bool(p.holds(y)) for p in spec), ''
