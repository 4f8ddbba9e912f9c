"""jaxfix repairs a trained classifier and says what the repair did. Start with `classifier` and `problem`."""

__version__ = '0.1.0'
