"""absl programs: flags in, one call into jaxfix, results out."""
