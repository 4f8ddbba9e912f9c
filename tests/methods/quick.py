"""Settings that make an approach quick on tiny problems, where its defaults are not."""
from jaxfix.methods.method import configure

_QUICK = {
  'apricot': {'n_submodels': 2, 'submodel_epochs': 1, 'adjust_batch': 50, 'retrain_epochs': 1, 'max_retrain_epochs': 2},
  'arachne': {'population': 8, 'generations': 4},
  'arachne_pso': {'particles': 8, 'iterations': 4},
  'adrep': {'particles': 8, 'iterations': 8, 'window': 2},
  'neurecover': {'particles': 8, 'iterations': 4, 'include_bias_in_norm': False},
  'distrrep': {'particles': 8, 'iterations': 4, 'merge_particles': 8, 'merge_iterations': 4, 'min_pair_failures': 1},
  'care': {'particles': 8, 'iterations': 4},
  'irepair': {'max_iters': 4, 'eval_every': 2},
  'genmunn': {'population': 6, 'generations': 3, 'rounds': 2},
  'inner': {'num_blocks': 1, 'epochs': 1, 'probe_epochs': 2, 'routing_steps': 5},
  'mode': {'rounds': 1, 'max_classes': 1, 'epochs': 1},
}


def config_of(method):
  """The method's config for tests."""
  return configure(method, _QUICK.get(method.name, {}))
