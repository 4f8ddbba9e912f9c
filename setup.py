"""Packaging of jaxfix. Tool settings are in pyproject.toml."""
import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_VERSION = re.search(r"__version__ = '([^']+)'", (_ROOT / 'jaxfix/__init__.py').read_text()).group(1)

# Lower bounds are the versions that the suite was run with (BUILD_NOTES.md).
_CORE = [
  'jax>=0.10',
  'flax>=0.12.8',
  'optax>=0.2.7',
  'chex>=0.1.92',
  'numpy>=2.0',
  'scipy>=1.15',
  'highspy>=1.11',
  'cvxpy>=1.7',
  'absl-py>=2.1',
  'safetensors>=0.5',
  'scikit-learn>=1.6',
  'threadpoolctl>=3.1',
  'tensorflow-datasets>=4.9.8',
  'array_record>=0.7; platform_system != "Windows"',
  'importlib_resources>=6',  # tensorflow-datasets imports it and does not say so
  'pillow>=11',
  'rich>=13',
  'matplotlib>=3.9',
  'jinja2>=3.1',
]
_KERAS = ['h5py>=3.11']
_ONNX = ['onnx>=1.23']

setuptools.setup(
  name='jaxfix',
  version=_VERSION,
  description='Repair trained classifiers in JAX and report, with evidence, what the repair did.',
  long_description=(_ROOT / 'README.md').read_text() if (_ROOT / 'README.md').exists() else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['jaxfix', 'jaxfix.*', 'launch', 'launch.*']),
  package_data={'jaxfix': ['study/templates/*', 'study/published/*'],
                'launch': ['results/*/*.jsonl', 'results/*/*/*.json', 'results/*/*/*.npz']},
  install_requires=_CORE,
  extras_require={
    'cuda': ['jax[cuda12]>=0.10'],
    'tpu': ['jax[tpu]>=0.10'],
    'keras': _KERAS,
    'onnx': _ONNX,
    'test': [
      *_KERAS,
      *_ONNX,
      'onnxruntime>=1.31',
      'maraboupy>=2.0',
      'pytest>=8',
      'pytest-cov>=5',
      'pytest-xdist>=3.6',
      'hypothesis>=6.100',
      'ruff>=0.9',
      'foolbox>=3.3.4',
      'fairlearn>=0.12',
      'statsmodels>=0.14',
    ],
  },
)
