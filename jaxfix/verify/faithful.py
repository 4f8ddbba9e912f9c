"""Where the network that is verified is not, number for number, the one that a file describes."""

from jaxfix.classifier import Classifier
from jaxfix.errors import Unadaptable
from jaxfix.models import structure
from jaxfix.verify import checker
from jaxfix.verify.normal_form import NormalForm
from jaxfix.verify.spec import Spec


def remarks(classifier: Classifier) -> tuple[str, ...]:
  """What a reader of a proof must know: what was rounded or removed on the way from the file to the network proven.

  The proof is about the network as it was read: batch normalization with the float32 factor that JAX computes,
  constants that the file combines rounded to float32.
  """
  notes = [note for note in getattr(classifier.module, 'notes', ()) if 'rounded' in note or 'softmax' in note.lower()]
  if any(layer.kind == 'bn' for layer in structure.layer_list(classifier)):
    notes.append('Batch normalization multiplies by scale / sqrt(var + epsilon) rounded to float32.')
  return tuple(notes)


def check_outputs(classifier: Classifier, spec: Spec) -> None:
  """Raises `Unadaptable` if a softmax was removed from the end of the file and the spec does more than order outputs.

  Probabilities are ordered as logits are; with any other number the spec would speak of something else.
  """
  if not any('softmax' in note.lower() for note in getattr(classifier.module, 'notes', ())):
    return
  for p in spec:
    for clause in p.clauses:
      ordered = not clause.h.any() and all(sorted(row[row != 0].tolist()) in ([], [-1., 1.]) for row in clause.g)
      if not ordered:
        raise Unadaptable('the file ends in Softmax, which is not piecewise linear: only properties that compare '
                          'outputs with each other can be decided.')


def check_float32(classifier: Classifier, form: NormalForm) -> None:
  """Raises `Unadaptable` if no claim about float32 evaluations of the file can be made."""
  if found := remarks(classifier):
    raise Unadaptable(f'float32 evaluations of the file differ from those of the network as read: {found[0]}')
  for op in form.ops:
    if op.array is not None and checker.has_subnormal(op.array):
      raise Unadaptable('a weight is subnormal in float32, and some devices take it for zero.')
