"""What a plot of a report is, how all of them look, and how one becomes files. Same data, same bytes.

A plot has no title inside: its caption stands beside it, with an alternative text for readers who cannot see it, and
the numbers that it draws as rows. Categories have Okabe and Ito's colors, approaches their own markers and a name at
the point, so that nothing rests on color alone. Axes show percent; the rows beside a plot hold fractions and seconds.
"""
import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.figures import BLUE, GREEN, GREY, ORANGE, RED
from jaxfix.study.published import Figure, Published

if TYPE_CHECKING:
  import matplotlib.figure
  from matplotlib.axes import Axes

INK, SOFT, FAINT = '#1b1f24', '#5b6470', '#e3e7eb'
DAGGER = '\u2020'   # at a published figure that contradicts others of the same paper
CATEGORY_COLORS = {'model': BLUE, 'layer': ORANGE, 'neuron': GREEN, 'block': RED, 'provable': '#CC79A7'}
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '<', '>', 'p', 'h', '*', 'd', '8', 'H')

# Text becomes outlines, so that every viewer shows the same letters; a dollar sign in a name is a dollar sign.
_STYLE = {
  'svg.fonttype': 'path', 'svg.hashsalt': 'jaxfix', 'font.family': 'DejaVu Sans', 'font.size': 9,
  'text.parse_math': False, 'text.color': INK, 'axes.labelcolor': INK, 'axes.edgecolor': SOFT, 'xtick.color': SOFT,
  'ytick.color': SOFT, 'axes.spines.top': False, 'axes.spines.right': False, 'axes.titlesize': 9,
  'axes.titlelocation': 'left', 'axes.linewidth': 0.8, 'legend.frameon': False, 'legend.fontsize': 8,
  'figure.facecolor': 'white', 'hatch.linewidth': 0.6, 'axes.axisbelow': True, 'path.simplify': True,
}
_DPI = 150
_LONGEST = 24   # letters of a name inside a plot
_LONG = re.compile(rb'(?<![\d.])([1-9]\d*\.\d\d)\d+')   # smaller numbers may be factors


@dataclasses.dataclass(frozen=True)
class Plot:
  """One plot.

  Attributes:
    id: 'P1', or 'P5.apricot.digits_lenet5' where there is one a run.
    caption: what is shown, and how; stands outside.
    alt: the caption's first sentence and the most extreme points, in words.
    draw: makes the figure.
    data: header and rows of everything that is drawn; fractions and seconds, None for what is missing.
    approach: registry key of the approach that the plot is about, '' if about several.
  """
  id: str
  caption: str
  alt: str
  draw: Callable[[], 'matplotlib.figure.Figure']
  data: tuple[tuple[Any, ...], ...]
  approach: str = ''

  @property
  def stem(self) -> str:
    """File name without its ending."""
    return re.sub(r'[^A-Za-z0-9_.-]+', '_', self.id)


def images(plot: Plot) -> tuple[bytes, bytes]:
  """SVG, and PNG at 150 dots an inch, without dates."""
  with _style():
    figure = plot.draw()
    settle(figure)   # once for both
    return _bytes(figure, 'svg', {'Date': None, 'Creator': None}), _bytes(figure, 'png', {'Software': None})


def _bytes(figure: 'matplotlib.figure.Figure', format: str, metadata: Mapping[str, None]) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format=format, dpi=_DPI, metadata=metadata)
  # the second decimal is a seventieth of a point: more only makes the page heavy
  return _LONG.sub(rb'\1', buffer.getvalue()) if format == 'svg' else buffer.getvalue()


def _style():
  import matplotlib  # takes seconds: only who draws pays
  return matplotlib.rc_context(_STYLE)


def to_csv(plot: Plot) -> str:
  """The plot's numbers as CSV; what is missing is empty."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  for row in plot.data:
    writer.writerow('' if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in row)
  return out.getvalue()


def describe(caption: str, points: Iterable[tuple[str, float]], form: Callable[[float], str],
             scale: Callable[[float], float] = float) -> str:
  """Alternative text: the caption's first sentence and the three points farthest from the median.

  Args:
    caption: of the plot.
    points: name and value of everything drawn; NaN is left out.
    form: prints a value with its unit.
    scale: what distances are measured on, say the logarithm.
  """
  points = [(name, value) for name, value in points if value is not None and math.isfinite(value)]
  first = re.split(r'(?<=[.!?])\s', caption, maxsplit=1)[0].rstrip('.')
  if not points:
    return f'{first}.'
  middle = float(np.median([value for _, value in points]))
  extreme = sorted(points, key=lambda p: (-abs(scale(p[1]) - scale(middle)), p[0]))[:3]
  words = '; '.join(f'{name} {form(value)}' for name, value in extreme)
  return f'{first}. Most extreme: {words}; median {form(middle)}.'


def percent(value: float) -> str:
  """A fraction as percent, with three significant digits."""
  return f'{100 * value:.3g} %'


def seconds(value: float) -> str:
  """Seconds in the unit that a person would choose."""
  for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
    if value >= 2 * size:
      return f'{value / size:.3g} {unit}'
  return f'{value:.3g} s'


def printed(published: Published | None, summary: Summary, metric: str) -> Figure | None:
  """The published counterpart of a mean, or None: also for stand-ins, which have none."""
  if published is None or not (summary.code and summary.published_subject):
    return None
  return published.figure(summary.code, summary.published_subject, metric)


def short(name: str) -> str:
  """A name that leaves room for the rest of the plot: the middle of a long one is left out."""
  return name if len(name) <= _LONGEST else f'{name[:_LONGEST - 9]}\u2026{name[-8:]}'


def color(category: str) -> str:
  """Color of a category of approaches."""
  return CATEGORY_COLORS.get(category, GREY)


def markers(names: Sequence[str]) -> dict[str, str]:
  """A marker for every approach, by its place; after the fifteenth they begin again."""
  return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def panels(count: int, *, width: float, height: float, columns: int = 2, **options: Any
           ) -> tuple['matplotlib.figure.Figure', list['Axes']]:
  """A figure with `count` axes in rows of `columns`; width and height in inches are those of one."""
  import matplotlib.figure
  columns = min(columns, count)
  rows = -(-count // columns)
  figure = matplotlib.figure.Figure(figsize=(width * columns, height * rows), layout='constrained')
  axes = [figure.add_subplot(rows, columns, i + 1, **options) for i in range(count)]
  return figure, axes


def settle(figure: 'matplotlib.figure.Figure') -> None:
  """Lays the figure out and keeps it so: places on paper are then known."""
  if (engine := figure.get_layout_engine()) is not None:
    engine.execute(figure)
    figure.set_layout_engine('none')


def label_points(ax: 'Axes', points: Sequence[tuple[float, float]], texts: Sequence[str], colors: Sequence[str],
                 obstacles: Sequence[tuple[float, float]] = (), size: float = 7.5) -> None:
  """Writes a name beside every point where it covers least of the other names and points.

  Args:
    ax: its limits, and everything else in the figure, are final.
    points, texts, colors: of the names.
    obstacles: further points that should stay free.
    size: of the letters, in typographic points.
  """
  figure = ax.figure
  settle(figure)
  to_paper = lambda p: ax.transData.transform(p) * 72 / figure.dpi
  frame = ax.get_window_extent().extents * 72 / figure.dpi
  marks = [to_paper(p) for p in (*points, *obstacles)]
  taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in marks]
  for point, text, ink in zip(points, texts, colors, strict=True):
    x, y = to_paper(point)
    width, height = 0.62 * size * len(text), 1.15 * size
    best = None
    for distance in (5, 11, 18, 27, 38):
      for angle in range(0, 360, 30):
        dx, dy = distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle))
        left = x + dx - (width / 2) * (1 - math.cos(math.radians(angle)))
        bottom = y + dy - height / 2
        box = (left, bottom, left + width, bottom + height)
        cost = sum(_overlap(box, other) for other in taken) + 3 * _outside(box, frame) + 0.35 * distance
        if best is None or cost < best[0] - 1e-6:
          best = cost, distance, box
    _, distance, box = best
    taken.append(box)
    line = {'arrowstyle': '-', 'color': GREY, 'linewidth': 0.5, 'shrinkA': 0, 'shrinkB': 3} if distance > 11 else None
    ax.annotate(text, point, ((box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y), textcoords='offset points',
                ha='center', va='center', fontsize=size, color=ink, arrowprops=line, zorder=5,
                bbox={'boxstyle': 'square,pad=0.05', 'facecolor': 'white', 'alpha': 0.7, 'linewidth': 0})


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
  return max(0., min(a[2], b[2]) - max(a[0], b[0])) * max(0., min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Sequence[float], frame: Sequence[float]) -> float:
  inside = _overlap(box, frame)
  return (box[2] - box[0]) * (box[3] - box[1]) - inside
