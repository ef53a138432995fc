"""The sides that `distill_step.py` measures, each a process of its own."""
