"""The gRPC services: each translates between the wire and the store, and decides nothing else."""
