"""Population search: operators and loops that know nothing of networks, and fitness over patched networks."""
