"""Figures of a repair report, as strings of SVG or PNG that stand inside the page. Same data, same bytes."""
import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

# Okabe and Ito's palette: told apart with any color vision, and in grey.
BLUE, ORANGE, GREEN, RED, GREY = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#999999'
COLORS = (BLUE, ORANGE, GREEN, RED, '#CC79A7', '#56B4E9')


def _figure(width: float, height: float, columns: int = 1):
  """A new figure and its axes, on the backend that draws to memory; matplotlib takes seconds to import."""
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot
  pyplot.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'jaxfix', 'font.size': 9,
                          'axes.spines.top': False, 'axes.spines.right': False})
  return pyplot.subplots(1, columns, figsize=(width, height), layout='constrained', squeeze=False)


def _svg(figure) -> str:
  from matplotlib import pyplot
  text = io.StringIO()
  figure.savefig(text, format='svg', metadata={'Date': None, 'Creator': None})
  pyplot.close(figure)
  svg = text.getvalue()
  return svg[svg.index('<svg'):]


def curves(series: Mapping[str, np.ndarray], xlabel: str, first: int, selected: Mapping[str, int] | None = None) -> str:
  """Line plots, one panel a curve.

  Args:
    series: name -> values.
    xlabel: what an entry is.
    first: number of the first entry on the horizontal axis.
    selected: name of a curve -> place, from 0, of the entry that is marked.
  """
  figure, axes = _figure(3.2 * len(series), 2.3, len(series))
  for ax, (name, values), color in zip(axes[0], series.items(), COLORS * len(series), strict=False):
    steps = first + np.arange(len(values))
    ax.plot(steps, values, color=color, linewidth=1.4, marker='o' if len(values) < 30 else None, markersize=3)
    if selected and name in selected:
      ax.axvline(first + selected[name], color=GREY, linestyle=':', linewidth=1)
    ax.set_title(name.replace('_', ' '), fontsize=9, loc='left')
    ax.set_xlabel(xlabel)
  return _svg(figure)


def flips(rows: Sequence[Mapping]) -> str:
  """Stacked bars, one an approach: originally failing samples fixed or not, and correct ones broken."""
  figure, axes = _figure(6.6, 0.7 + 0.45 * len(rows))
  ax = axes[0][0]
  for i, row in enumerate(rows):
    c = row['counts']
    ax.barh(i, c['fixed'], color=GREEN, label='fixed' if i == 0 else None)
    ax.barh(i, c['both_wrong'], left=c['fixed'], color=GREY, label='still wrong' if i == 0 else None)
    ax.barh(i, -c['broken'], color=RED, label='broken' if i == 0 else None)
    ax.text(c['fixed'] + c['both_wrong'], i, f'  +{c["fixed"]} / -{c["broken"]}', va='center', fontsize=8)
  ax.axvline(0, color='black', linewidth=0.8)
  ax.set_yticks(range(len(rows)), [row['approach'] for row in rows])
  ax.invert_yaxis()
  ax.set_xlabel('test samples')
  ax.margins(x=0.15)
  ax.legend(loc='upper left', bbox_to_anchor=(1, 1), frameon=False)
  return _svg(figure)


def confusion_change(y: np.ndarray, before: np.ndarray, after: np.ndarray, class_names: Sequence[str]) -> str:
  """Heat map of how many more (or fewer) samples of each true class get each label after the repair."""
  c = len(class_names)
  matrix = lambda p: np.bincount(y[p >= 0] * c + p[p >= 0], minlength=c * c).reshape(c, c)
  change = matrix(after) - matrix(before)
  figure, axes = _figure(4.2, 3.8)
  ax, limit = axes[0][0], max(1, int(np.abs(change).max()))
  image = ax.imshow(change, cmap='PuOr_r', vmin=-limit, vmax=limit)
  if c <= 12:
    for i, j in zip(*np.nonzero(change), strict=True):
      strong = abs(change[i, j]) > 0.6 * limit
      ax.text(j, i, f'{change[i, j]:+d}', ha='center', va='center', fontsize=7, color='white' if strong else 'black')
    ax.set_xticks(range(c), class_names, rotation=90 if max(map(len, class_names)) > 3 else 0, fontsize=7)
    ax.set_yticks(range(c), class_names, fontsize=7)
  ax.set_xlabel('predicted label')
  ax.set_ylabel('true label')
  figure.colorbar(image, ax=ax, shrink=0.8, label='samples, after minus before')
  return _svg(figure)


def picture(x: np.ndarray, size: int = 72) -> str:
  """A sample `[h, w, c]` (uint8, or float in [0, 1]) as a data URI, enlarged without smoothing."""
  pixels = x if x.dtype == np.uint8 else (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
  image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
  scale = max(1, size // max(image.size))
  image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return 'data:image/png;base64,' + base64.b64encode(buffer.getvalue()).decode()
