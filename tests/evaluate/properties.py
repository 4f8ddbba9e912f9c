"""How property tests run: the same examples every time, however slow the machine."""
import hypothesis


def examples(number: int) -> hypothesis.settings:
  """A decorator that sets the number of examples."""
  return hypothesis.settings(max_examples=number, deadline=None, derandomize=True, database=None,
                             suppress_health_check=[hypothesis.HealthCheck.too_slow])
