"""Decides whether a network satisfies a specification.

  python -m launch.verify --model=net.onnx --spec=prop.vnnlib --timeout=60 --certificate=proof.npz

Prints PROVED, REFUTED with a counterexample, or UNKNOWN with the reason, and exits with 0, 4 or 3 (2 is a mistake in
the input, 1 a defect of ours). A counterexample violates the property in exact arithmetic, and in onnxruntime on the
file itself, where that is installed. --certificate writes a proof that `launch.check_certificate` checks without
trusting this program.
"""
import pathlib

import jax
import numpy as np
from absl import flags

from jaxfix import files, interchange
from jaxfix.errors import Unadaptable, UnsupportedLayerError
from jaxfix.interchange import vnnlib
from jaxfix.verify import certificate, faithful, replay
from jaxfix.verify import decide as decisions
from jaxfix.verify.verdict import Outcome, Verdict
from launch import cli

_MODEL = flags.DEFINE_string('model', None, f'Network: {", ".join(interchange.READERS)}.', required=True)
_SPEC = flags.DEFINE_string('spec', None, 'Specification: VNN-LIB 1.0 (.vnnlib).', required=True)
_TIMEOUT = flags.DEFINE_float('timeout', 600., 'Seconds for the whole specification.', lower_bound=1e-3)
_CERTIFICATE = flags.DEFINE_string('certificate', None, 'File (.npz) for the proof.')
_STRENGTH = flags.DEFINE_enum('strength', 'real', ['real', 'float32'], 'What is proved: the network as a function of '
                              'the reals, or every float32 evaluation of it.')
_ENGINE = flags.DEFINE_enum('engine', 'auto', list(decisions.ENGINES), 'How boxes are decided.')
_VNNCOMP = flags.DEFINE_bool('vnncomp', False, "The competition's words: unsat, sat, unknown, timeout.")
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the search for counterexamples.', lower_bound=0)

_EXIT = {Verdict.PROVED: 0, Verdict.REFUTED: 4, Verdict.UNKNOWN: 3}
_WORDS = {Verdict.PROVED: 'unsat', Verdict.REFUTED: 'sat', Verdict.UNKNOWN: 'unknown'}


def _say(verdict: Verdict, reason: str, detail: str = '') -> int:
  if _VNNCOMP.value:
    print('timeout' if reason == 'time' else _WORDS[verdict], flush=True)
  else:
    print(verdict.name + (f' ({reason})' if reason else '') + (f': {detail}' if detail else ''), flush=True)
  return _EXIT[verdict]


def main() -> int:
  if _CERTIFICATE.value:
    files.check_writable(_CERTIFICATE.value)
  spec = vnnlib.read(_SPEC.value)
  try:
    classifier = interchange.read_classifier(_MODEL.value)
    if not _VNNCOMP.value:
      needed = decisions.expected_bytes(classifier, spec, _ENGINE.value)
      print('\n'.join([f'{len(spec)} properties; may need {needed / 2**30:.1f} GiB', *faithful.remarks(classifier)]),
            flush=True)
    decision = decisions.decide(classifier, spec, key=jax.random.key(_SEED.value), time_limit_s=_TIMEOUT.value,
                                strength=_STRENGTH.value, engine=_ENGINE.value, on_outcome=_report)
  except (UnsupportedLayerError, Unadaptable) as e:
    _remove_earlier_certificate()
    return _say(Verdict.UNKNOWN, 'operator', str(e))
  verdict, reason = decision.verdict, decision.reason
  if decision.certificate is None:
    _remove_earlier_certificate()
  if verdict is Verdict.REFUTED:
    x = decision.outcomes[-1].counterexample
    agreed, why = replay.violates_in_onnxruntime(_MODEL.value, spec, x)
    if agreed is False:
      return _say(Verdict.UNKNOWN, 'numerics', 'a violation in exact arithmetic is none in onnxruntime')
    code = _say(verdict, '', f'in exact arithmetic {"and in onnxruntime" if agreed else f"({why})"}, at')
    y = np.asarray(classifier.logits(x.astype(np.float32).reshape(1, *classifier.input_shape))).reshape(-1)
    print(vnnlib.counterexample(x, y))
    return code
  detail = f'{decision.seconds:.1f} s'
  if verdict is Verdict.PROVED:
    detail += f', {_STRENGTH.value}' if decision.certificate is not None else (
      ', over the reals, by the word of a solver; there is no certificate')
  code = _say(verdict, reason, detail)
  if _CERTIFICATE.value and decision.certificate is not None:
    certificate.save(_CERTIFICATE.value, decision.certificate)
    if not _VNNCOMP.value:
      print(f'certificate in {_CERTIFICATE.value}')
  return code


def _remove_earlier_certificate() -> None:
  """An earlier run's proof beside another verdict would be taken for this run's."""
  if _CERTIFICATE.value:
    pathlib.Path(_CERTIFICATE.value).unlink(missing_ok=True)


def _report(i: int, outcome: Outcome) -> None:
  if not _VNNCOMP.value:
    reason = f' ({outcome.reason}; {outcome.decided:.1%} of the inputs proven)' if outcome.reason else ''
    print(f'property {i}: {outcome.verdict.value}{reason}, {outcome.num_boxes} boxes, {outcome.seconds:.1f} s, '
          f'{outcome.engine}', flush=True)


if __name__ == '__main__':
  cli.run(main)
