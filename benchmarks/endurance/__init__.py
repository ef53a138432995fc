"""Parts of `benchmarks/load.py`: an installation of its own, a crowd that asks, and the picture."""
