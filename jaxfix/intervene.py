"""Run a network while recording or replacing what enters or leaves a named layer, or only from that layer on.

A layer is named by its path in the parameters: 'fc1', 'stage2/unit1/conv2'. `record` and `apply` intercept module
calls (`flax.linen.intercept_methods`), so the model's code is not touched.

`prefix` and `suffix` cut a network at one or more layers: the first computes, once, every activation that the second
needs; the second evaluates only what can change when the weights of those layers change. An activation that bypasses
the cut (a residual connection) is part of the cache, found by following data flow in the traced program.

  cache = prefix(classifier, z, ('fc2', 'fc3'))
  suffix(candidate, cache, ('fc2', 'fc3'))      # == candidate.logits_of_normalized(z), at the cost of fc2 and fc3

To change what a layer gives instead of its weights, cut after it (`at='output'`) and replace its output in the suffix.
"""
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jaxfix.classifier import Classifier
from jaxfix.errors import UnknownNameError

Replacement = jax.Array | Callable[[jax.Array], jax.Array]
Cache = tuple[jax.Array, ...]
Side = Literal['input', 'output']

_CUT = 'jaxfix_cut'


def layer_paths(classifier: Classifier) -> tuple[str, ...]:
  """Paths of all submodules, in the order in which a forward pass enters them."""
  paths = {}

  def note(next_fun, args, kwargs, context):
    if context.method_name == '__call__' and context.module.path:
      paths.setdefault('/'.join(context.module.path))
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(note):
    jax.eval_shape(classifier.module.apply, classifier.variables, _input_aval(classifier, 1))
  return tuple(paths)


def record(classifier: Classifier, z: jax.Array, paths: Sequence[str]) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Input and output of each named layer, in evaluation mode.

  Args:
    classifier: the model.
    z: normalized inputs `[n, *input_shape]`.
    paths: layers; one that is called several times gives its last call.
  Returns:
    path -> (first argument, output), both with leading axis n.
  Raises:
    UnknownNameError: the network does not call a layer of that name.
  """
  seen = {}

  def interceptor(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    if context.method_name == '__call__' and (path := '/'.join(context.module.path)) in paths:
      seen[path] = (args[0], out)
    return out

  with nn.intercept_methods(interceptor):
    classifier.module.apply(classifier.variables, z, train=False)
  _check_seen(classifier, paths, seen)
  return seen


def apply(classifier: Classifier, z: jax.Array, *, inputs: Mapping[str, Replacement] | None = None,
          outputs: Mapping[str, Replacement] | None = None) -> jax.Array:
  """Logits `[n, c]` with the inputs or outputs of named layers replaced.

  Args:
    classifier: the model.
    z: normalized inputs `[n, *input_shape]`.
    inputs, outputs: path -> array that takes the place of the value, or a function of the value.
  Raises:
    UnknownNameError: the network does not call a layer of that name.
  """
  seen = {}
  with _replacing(inputs or {}, outputs or {}, seen):
    logits = classifier.module.apply(classifier.variables, z, train=False)
  _check_seen(classifier, [*(inputs or {}), *(outputs or {})], seen)
  return logits


def prefix(classifier: Classifier, z: jax.Array, paths: Sequence[str], *, at: Side = 'input') -> Cache:
  """Everything that `suffix` needs of the inputs: arrays with leading axis n (what crosses the cut, and bypasses).

  Pure; call it inside `jit`, which drops the layers after the cut.

  Args:
    classifier: the model.
    z: normalized inputs `[n, *input_shape]`.
    paths: the layers whose weights, or outputs, will change. Layers before them, or beside them, are cached.
    at: the cut runs through the 'input' of those layers, or through their 'output'.
  Raises:
    UnknownNameError: the network does not call a layer of that name.
  """
  traced, boundary, _ = _cut(classifier, z.shape[0], tuple(paths), at, {})
  return _evaluate(traced, traced.jaxpr.eqns, traced.jaxpr.invars, boundary, _leaves(classifier, z))


def suffix(classifier: Classifier, cache: Cache, paths: Sequence[str], *, at: Side = 'input',
           outputs: Mapping[str, Replacement] | None = None) -> jax.Array:
  """Logits `[n, c]` from a cache of `prefix`, exactly those of the whole network if only `paths` have new weights.

  With `at='output'` the weights of the first of them are not read either: only what `outputs` replaces can differ.

  Args:
    classifier: the model, with any weights in the layers `paths`.
    cache: result of `prefix` for the same `paths` and `at` and a classifier of the same module.
    paths, at: as given to `prefix`.
    outputs: path -> replacement of a layer's output, as in `apply`, for layers at or after the cut.
  """
  traced, boundary, late = _cut(classifier, cache[0].shape[0], tuple(paths), at, outputs or {})
  weights = jax.tree.leaves(classifier.variables)
  invars = [*traced.jaxpr.invars[:len(weights)], *boundary]
  return _evaluate(traced, late, invars, traced.jaxpr.outvars, [*weights, *cache])[0]


def _input_aval(classifier: Classifier, n: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((n, *classifier.input_shape), 'float32')


def _leaves(classifier: Classifier, z: jax.Array) -> list[jax.Array]:
  return [*jax.tree.leaves(classifier.variables), z]


def _check_seen(classifier: Classifier, paths: Sequence[str], seen: Mapping[str, Any]) -> None:
  for path in paths:
    if path not in seen:
      raise UnknownNameError('layer', path, layer_paths(classifier))


@contextlib.contextmanager
def _replacing(inputs: Mapping[str, Replacement], outputs: Mapping[str, Replacement], seen: dict[str, Any]):
  """Within it, module calls see `inputs` and give `outputs`; every path that was called is noted in `seen`."""

  def interceptor(next_fun, args, kwargs, context):
    if context.method_name != '__call__':
      return next_fun(*args, **kwargs)
    path = '/'.join(context.module.path)
    seen[path] = True
    if path in inputs:
      args = (_replaced(args[0], inputs[path]), *args[1:])
    out = next_fun(*args, **kwargs)
    return _replaced(out, outputs[path]) if path in outputs else out

  with nn.intercept_methods(interceptor):
    yield


def _cut(classifier: Classifier, n: int, paths: tuple[str, ...], at: Side, outputs: Mapping[str, Replacement]):
  """The traced network, the variables that cross the cut, and the equations of the suffix.

  Every value is one of three: computed from weights alone; from the input but not through a cut layer (prefix); or
  through a cut layer (suffix). The boundary is what suffix equations read of the prefix.
  """
  seen = {}

  def crossing(path):
    return lambda h: _replaced(checkpoint_name(h, _CUT), outputs.get(path, lambda marked: marked))

  if at == 'input':
    marks = {path: lambda h: checkpoint_name(h, _CUT) for path in paths}, outputs
  else:
    marks = {}, {**outputs, **{path: crossing(path) for path in paths}}

  def marked(variables, z):
    with _replacing(*marks, seen):
      return classifier.module.apply(variables, z, train=False)

  avals = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), classifier.variables)
  traced = jax.make_jaxpr(marked)(avals, _input_aval(classifier, n))
  _check_seen(classifier, [*paths, *outputs], seen)

  early, late = {traced.jaxpr.invars[-1]}, set()
  boundary, late_eqns = {}, []
  for eqn in traced.jaxpr.eqns:
    reads = [v for v in eqn.invars if isinstance(v, core.Var)]
    is_mark = eqn.primitive.name == 'name' and eqn.params['name'] == _CUT
    if is_mark or any(v in late for v in reads):
      late.update(eqn.outvars)
      boundary.update((v, None) for v in reads if v in early)
      late_eqns.append(eqn)
    elif any(v in early for v in reads):
      early.update(eqn.outvars)
    else:
      late_eqns.append(eqn)  # of weights alone: cheap, and the weights may be new
  return traced, list(boundary), late_eqns


def _replaced(value: jax.Array, replacement: Replacement) -> jax.Array:
  return replacement(value) if callable(replacement) else replacement


def _evaluate(traced: core.ClosedJaxpr, eqns, invars, outvars, arguments) -> Cache:
  names = traced.jaxpr.debug_info._replace(arg_names=None, result_paths=None)
  jaxpr = core.Jaxpr(traced.jaxpr.constvars, list(invars), list(outvars), list(eqns), traced.jaxpr.effects, names)
  return tuple(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, traced.consts))(*arguments))
