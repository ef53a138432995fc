"""The `athanor` command. Its modules load what a command needs when it runs, so that `--help` answers at once."""
