"""One attempt of a job on Ray: the driver that supervises, the students that learn, the teacher that answers.

`python -m cluster.driver --attempt-file X` is what the control plane submits. The driver itself loads no torch and
holds no tensor: it starts the groups, tells the control plane how far they are, and writes down how it ended.
"""
