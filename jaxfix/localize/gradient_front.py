"""Arachne's first localization: entries of one kernel that none beats in gradient loss and raw forward impact.

Only failing samples are looked at. Of the entries with the largest gradient loss, some for each failing sample, those
on the Pareto front of gradient loss and forward impact are kept.

Source: Sohn, Kang, Yoo, arXiv 1912.12463v1, in the form of eAI-Repair-Toolkit, whose forward impact reads the first
sample only; here it is the mean over all. NeuRecover, DistrRep and AdRep start from the same step.
"""
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.errors import RepairFailure
from jaxfix.localize.batches import Batches, make_batches
from jaxfix.localize.forward_impact import raw_forward_impact
from jaxfix.localize.gradient_loss import gradient_loss
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import Targets, make_targets
from jaxfix.problem import Split


def gradient_front(classifier: Classifier, part: Split, path: str, candidates_per_failure: int) -> Targets:
  """The entries of the kernel of `path` to blame for the samples of `part`.

  Args:
    classifier: the network.
    part: the failing samples, at least one.
    path: a Dense or Conv layer.
    candidates_per_failure: entries kept by gradient loss before the front is taken, per sample.
  Raises:
    RepairFailure: gradient loss or forward impact of every entry is NaN.
  """
  return batch_front(classifier, make_batches(part.x, part.y), path, candidates_per_failure)


def batch_front(classifier: Classifier, batches: Batches, path: str, candidates_per_failure: int) -> Targets:
  """`gradient_front` of the samples of weight 1, so that sets of many sizes share one program."""
  loss = np.ravel(gradient_loss(classifier, batches, paths=(path,))[path])
  impact = np.ravel(raw_forward_impact(classifier, batches, paths=(path,))[path])
  usable = np.flatnonzero(~np.isnan(loss))
  most = candidates_per_failure * int(batches.count)
  first = np.sort(usable[np.argsort(-loss[usable], kind='stable')[:most]])
  chosen = first[pareto_front(loss[first], impact[first])]
  if not len(chosen):
    raise RepairFailure(f'Nothing could be localized in the kernel of {path}: gradient loss or forward impact of every '
                        "entry is NaN. Activations overflow; check the scale of the model's inputs.")
  return make_targets(classifier, (path,), chosen)
