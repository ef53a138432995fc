"""Measurements of Athanor: each module with a `main` here is one of them; `make bench` runs them all."""
