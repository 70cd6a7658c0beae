"""A simulated day of a fleet: how many replicas the shipped rules ask for, how long pictures wait, who is refused, what it costs.

Runs no model and no Kubernetes: service times are measured beforehand, the rules are read from the manifest that is shipped, and
``verify`` compares the simulator with real processes.
"""
