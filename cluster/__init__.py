"""The control plane, everything that touches Ray orchestration, and the `athanor` command."""

__version__ = "0.1.0"
