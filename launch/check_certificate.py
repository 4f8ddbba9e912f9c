"""Checks a certificate: whether the network that it speaks of satisfies the specification that it speaks of.

  python -m launch.check_certificate proof.npz --model=net.onnx --spec=prop.vnnlib

With --model and --spec the certificate must also be about that network and that specification, number for number;
without, the claim is checked about what the certificate itself carries. Exits with 0 if it holds, 1 if not.

All that must be trusted is jaxfix/verify/checker.py (NumPy only) and, for --model and --spec, the readers of those
files and the tracer: the claim is about the network as read, and where that differs from the file by rounding, a line
says so.
"""
import threadpoolctl
from absl import flags

from jaxfix import interchange
from jaxfix.errors import DataNotFoundError, OutputError
from jaxfix.interchange import vnnlib
from jaxfix.verify import certificate, checker
from launch import cli

_MODEL = flags.DEFINE_string('model', None, 'Network that the certificate must be about.')
_SPEC = flags.DEFINE_string('spec', None, 'Specification that the certificate must be about (.vnnlib).')


def _model_sha256() -> tuple[str, tuple[str, ...]]:
  """Hash of the network as read, and remarks on where it is not the file's."""
  from jaxfix.verify import faithful
  from jaxfix.verify.graph import trace  # the tracer starts JAX, which a check without --model does without
  from jaxfix.verify.normal_form import lower
  classifier = interchange.read_classifier(_MODEL.value)
  if _SPEC.value:
    faithful.check_outputs(classifier, vnnlib.read(_SPEC.value))
  return checker.network_sha256(certificate.network_of(lower(trace(classifier)))), faithful.remarks(classifier)


def main(path: str) -> int:
  try:
    with threadpoolctl.threadpool_limits(1, user_api='blas'):   # the checker has threads of its own
      report = checker.check(path)
  except FileNotFoundError as e:
    raise DataNotFoundError(f'No file {path}.') from e
  except OSError as e:
    raise OutputError(f'{path} cannot be read: {e.strerror or e}.') from e
  except checker.RejectedError as e:
    print(f'REJECTED: {e}')
    return 1
  found, remarks = _model_sha256() if _MODEL.value else (report.network_sha256, ())
  if found != report.network_sha256:
    print(f'REJECTED: the certificate is about another network than {_MODEL.value}')
    return 1
  if _SPEC.value and report.spec_sha256 != checker.spec_sha256(
      tuple(map(certificate.property_of, vnnlib.read(_SPEC.value)))):
    print(f'REJECTED: the certificate is about another specification than {_SPEC.value}')
    return 1
  print('\n'.join((*report.counts, *remarks)))
  network = _MODEL.value or f'the network that it carries ({report.network_sha256[:12]})'
  spec = _SPEC.value or f'the specification that it carries ({report.spec_sha256[:12]})'
  print(f'CERTIFIED ({report.strength}): {network} satisfies {spec}')
  return 0


if __name__ == '__main__':
  cli.run(main, arguments=('FILE',))
