"""The sides of the control plane's measurement, each a process of its own."""
