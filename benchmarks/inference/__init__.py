"""The sides of `benchmarks/serving.py`, each in a process of its own."""
